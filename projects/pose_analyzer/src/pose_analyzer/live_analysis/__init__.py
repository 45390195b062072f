"""Where the sessions of live streams run: in the service's thread, or in processes.

A step takes half a millisecond of Python per person; many streams need processes.
"""

from pose_analyzer.live_analysis.in_processes import ProcessAnalysis
from pose_analyzer.live_analysis.in_service import LocalAnalysis

__all__ = ["LocalAnalysis", "ProcessAnalysis"]

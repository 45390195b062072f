"""Where the sessions of live streams run: in the service's thread, or in processes.

A step takes half a millisecond of Python per person. A process on the way costs a lone stream as
much again; many streams need several.
"""

from pose_analyzer.live_analysis.first_here import FirstHereAnalysis
from pose_analyzer.live_analysis.in_processes import ProcessAnalysis
from pose_analyzer.live_analysis.in_service import LocalAnalysis

__all__ = ["FirstHereAnalysis", "LocalAnalysis", "ProcessAnalysis"]

"""Where the sessions of live streams run: in one thread, or in processes that share the streams.

A step takes half a millisecond of Python per person. With processes, this one only packs, sends,
receives and resolves.
"""

from pose_analyzer.live_analysis.in_processes import ProcessAnalysis
from pose_analyzer.live_analysis.in_thread import LocalAnalysis

__all__ = ["LocalAnalysis", "ProcessAnalysis"]

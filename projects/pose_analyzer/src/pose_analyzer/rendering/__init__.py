"""Pictures of what was analysed: skeletons drawn on frames, and the overlay video."""

from pose_analyzer.rendering.drawing import draw_people
from pose_analyzer.rendering.writer import OverlayWriter

__all__ = ["OverlayWriter", "draw_people"]

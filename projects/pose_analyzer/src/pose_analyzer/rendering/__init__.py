"""What was analysed to be seen and heard: skeletons drawn on frames, the overlay video, cues."""

from pose_analyzer.rendering.drawing import draw_people
from pose_analyzer.rendering.speech import SpokenTrack, add_sound, speak_cues, write_wav
from pose_analyzer.rendering.voices import EspeakVoice, Voice
from pose_analyzer.rendering.writer import OverlayWriter

__all__ = [
    "EspeakVoice",
    "OverlayWriter",
    "SpokenTrack",
    "Voice",
    "add_sound",
    "draw_people",
    "speak_cues",
    "write_wav",
]

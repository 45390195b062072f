"""Text on pictures: sizes that suit the picture, readable plates, places that do not overlap."""

from dataclasses import dataclass, field
from typing import Final

import cv2
import numpy as np
from jaxtyping import UInt8

Rgb = tuple[int, int, int]
Rect = tuple[int, int, int, int]
"""x, y of the upper left corner, width, height in pixels."""

DIMMED_TEXT: Final[Rgb] = (165, 165, 165)
_FONT: Final = cv2.FONT_HERSHEY_SIMPLEX
# Height of capitals in pixels at font scale 1; OpenCV documents neither, both are close to this
# (4.x stroke font 21, 5.x TrueType 20).
_CAPITAL_PX: Final = 21.0
_MIN_TEXT_PX: Final = 11.0


@dataclass(frozen=True, slots=True)
class TextStyle:
    """Sizes for one picture; text sizes are heights of capitals in pixels."""

    small: float
    medium: float
    large: float
    line_px: int
    margin_px: int

    @classmethod
    def for_picture(cls, height_px: int, width_px: int) -> "TextStyle":
        """Sizes that read well when the picture fills a screen or a phone."""
        side = min(height_px, width_px)
        small = max(_MIN_TEXT_PX, side / 48)
        return cls(
            small=small,
            medium=1.5 * small,
            large=4.0 * small,
            line_px=max(2, round(side / 180)),
            margin_px=max(6, round(side / 45)),
        )


@dataclass(frozen=True, slots=True)
class Label:
    """A piece of text and its look."""

    text: str
    capital_px: float
    """Height of its capitals."""
    colour: Rgb
    plate: Rgb | None = None
    """Colour behind the text; None darkens the picture there."""
    degrees: bool = False
    """Whether a degree sign follows."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels that it covers."""
        (width, _), _ = cv2.getTextSize(self.text, _FONT, _scale(self), _thickness(self))
        sign = 2 * _degree_radius(self) if self.degrees else 0
        return width + sign + 2 * _pad(self), round(1.05 * self.capital_px) + 2 * _pad(self)


@dataclass(slots=True)
class LabelLayout:
    """Keeps the labels of one picture apart and inside it."""

    width_px: int
    height_px: int
    taken: list[Rect] = field(default_factory=list)

    def place(self, corner: tuple[int, int], size: tuple[int, int]) -> Rect:
        """Rectangle of `size` at `corner`, or the nearest free one above or below it."""
        x = max(0, min(corner[0], self.width_px - size[0]))
        candidates = [
            (x, max(0, min(corner[1] + step * size[1], self.height_px - size[1])), *size)
            for step in (0, 1, -1, 2, -2, 3, -3)
        ]
        free = (
            rect for rect in candidates if not any(_overlap(rect, other) for other in self.taken)
        )
        chosen = next(free, candidates[0])
        self.taken.append(chosen)
        return chosen


def bgr(colour: Rgb) -> tuple[int, int, int]:
    """Channels in OpenCV's order."""
    return colour[2], colour[1], colour[0]


def draw_label(canvas: UInt8[np.ndarray, "_ _ 3"], label: Label, rect: Rect) -> None:
    """Write `label` into `rect` on its plate, or on the darkened picture if it has none.

    The degree sign is drawn, because the fonts of OpenCV 4 have ASCII only.
    """
    x, y, width, height = rect
    under = canvas[max(0, y) : y + height, max(0, x) : x + width]
    if label.plate is None:
        np.right_shift(under, 2, out=under)
    else:
        under[:] = bgr(label.plate)
    pad, thickness, colour = _pad(label), _thickness(label), bgr(label.colour)
    base = (x + pad, y + height - pad)
    cv2.putText(canvas, label.text, base, _FONT, _scale(label), colour, thickness, cv2.LINE_AA)
    if label.degrees:
        radius = _degree_radius(label)
        centre = (x + width - pad - radius, y + pad + radius)
        cv2.circle(canvas, centre, radius, colour, max(1, thickness - 1), cv2.LINE_AA)


def _overlap(a: Rect, b: Rect) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def _scale(label: Label) -> float:
    return label.capital_px / _CAPITAL_PX


def _thickness(label: Label) -> int:
    return max(1, round(label.capital_px / 9))


def _pad(label: Label) -> int:
    return max(2, round(label.capital_px / 4))


def _degree_radius(label: Label) -> int:
    return max(1, round(label.capital_px / 7))

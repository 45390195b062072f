"""Single pictures are those that a reading of the whole video gives."""

from pathlib import Path

import numpy as np
import pytest

from pose_analyzer.errors import UnreadableSourceError
from pose_analyzer.sources import open_source, stills

from .video_files import at_rate, write_video


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_pictures_are_those_of_the_whole_video(tmp_path: Path, suffix: str) -> None:
    path = write_video(tmp_path / f"clip{suffix}", at_rate(25, 4))
    frames = list(open_source(path).frames())
    with stills(path) as still_at:
        for index in (77, 3, 0, 99, 40, 41):
            found = still_at(frames[index].time_s)
            assert found is not None
            np.testing.assert_array_equal(found, frames[index].image_bgr)


def test_irregular_times_that_begin_late(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", [700 + t for t in (0, 33, 66, 400, 433, 1000, 1900)])
    frames = list(open_source(path).frames())
    with stills(path) as still_at:
        for frame in reversed(frames):
            np.testing.assert_array_equal(still_at(frame.time_s), frame.image_bgr)
        assert still_at(0.7) is None
        assert still_at(5.0) is None


def test_what_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("no video")
    with pytest.raises(UnreadableSourceError), stills(path):
        pass

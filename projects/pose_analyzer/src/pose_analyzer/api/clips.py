"""Short clips that clients upload: one at a time, each with a detector of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from anyio import CapacityLimiter, to_thread

from pose_analyzer.api.problems import ClipTooLongError
from pose_analyzer.errors import NotAVideoError, UnreadableSourceError
from pose_analyzer.form_sequences import JudgedPerson, judge_clip
from pose_analyzer.ports import PoseDetector
from pose_analyzer.settings import Settings
from pose_analyzer.sources import open_source
from pose_analyzer.stream_analyzer import AnalysisConfig

MAX_CLIP_S: Final = 60.0
CLIP_FPS: Final = 30.0

ClipDetectorFactory = Callable[[str, Settings], PoseDetector]
"""Makes a detector for one recording."""


class ClipReader:
    """Judges clips. Live streams need the machine too: one clip waits for the other."""

    def __init__(self, settings: Settings, factory: ClipDetectorFactory) -> None:
        self._settings = settings
        self._factory = factory
        self._turn = CapacityLimiter(1)

    async def judge(
        self, path: Path, name: str, detector: str, config: AnalysisConfig
    ) -> JudgedPerson | None:
        """Judge what the main person does; None if nobody is to be seen.

        Raises
        ------
        NotAVideoError, ClipTooLongError
            The upload is no short clip.
        ModelUnavailableError, BackendFailedError
            The detector cannot be had.
        """
        return await to_thread.run_sync(
            self._judge, path, name, detector, config, limiter=self._turn
        )

    def _judge(
        self, path: Path, name: str, detector: str, config: AnalysisConfig
    ) -> JudgedPerson | None:
        try:
            source = open_source(path)
            duration_s = source.info.duration_s
            if duration_s > MAX_CLIP_S:
                raise ClipTooLongError(duration_s, MAX_CLIP_S)
            model = self._factory(detector, self._settings)
            try:
                return judge_clip(config, source, model)
            finally:
                model.close()
        except UnreadableSourceError as error:
            raise NotAVideoError(name, error.reason) from error

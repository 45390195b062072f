"""Looks for people in chunks with one detector after the other: what `ChunkDuty` asks for."""

from collections.abc import Callable
from pathlib import Path

from pose_analyzer.artifact_keys import plan_key
from pose_analyzer.backends import create_chunk_detector
from pose_analyzer.chunk_aggregation import DetectionSettings
from pose_analyzer.chunk_detection import extract_pose_landmarks
from pose_analyzer.chunk_files import decode_plan, encode_chunk
from pose_analyzer.ports import ChunkDetector
from pose_analyzer.settings import Settings
from pose_analyzer.sources import open_chunk
from pose_analyzer.storage.artifacts import ArtifactStore
from pose_analyzer.storage.chunk_claims import ClaimedChunk
from pose_analyzer.video_chunking import ChunkSpec
from pose_analyzer.video_jobs.options import JobOptions


class ChunkDetection:
    """Analyses chunks; keeps the detector of the latest one.

    Parameters
    ----------
    settings
        Where models are.
    store
        Where plans are.
    n_threads
        Threads that decode; None: as many as there are cores.
    """

    def __init__(
        self, settings: Settings, store: ArtifactStore, n_threads: int | None = None
    ) -> None:
        self._settings = settings
        self._store = store
        self._n_threads = n_threads
        self._detector: ChunkDetector | None = None
        self._asked_for: str | None = None

    def __call__(self, claimed: ClaimedChunk, video: Path, check: Callable[[], None]) -> bytes:
        """Look for people in a chunk; what was found, as it is stored.

        Raises
        ------
        UnreadableSourceError
            The video is not the one that was planned.
        ModelUnavailableError, BackendFailedError
            The detector cannot run here.
        """
        options = JobOptions.model_validate(claimed.options)
        detector = self._detector_for(options.detector)
        spec = self._spec(claimed)
        source = open_chunk(
            video,
            spec,
            max_width_px=options.max_width_px,
            n_threads=self._n_threads,
        )
        found = extract_pose_landmarks(
            source,
            detector,
            spec,
            DetectionSettings(detector.name, options.sample_fps, options.max_width_px),
            check,
        )
        return encode_chunk(found)

    def close(self) -> None:
        """Free the detector."""
        if self._detector is not None:
            self._detector.close()
            self._detector = None

    def _spec(self, claimed: ClaimedChunk) -> ChunkSpec:
        plan = decode_plan(self._store.get(plan_key(claimed.session_id, claimed.job_id)))
        return plan.chunks[claimed.chunk_index]

    def _detector_for(self, name: str) -> ChunkDetector:
        if self._detector is None or self._asked_for != name:
            self.close()
            self._detector = create_chunk_detector(name, self._settings)
            self._asked_for = name
        return self._detector

"""What workers of both kinds work with."""

from dataclasses import dataclass

from pose_analyzer.db_connector import Database
from pose_analyzer.storage.artifacts import ArtifactStore
from pose_analyzer.storage.leases import RetryPolicy
from pose_analyzer.video_jobs.local_copies import LocalCopies


@dataclass(frozen=True, slots=True)
class Workplace:
    """Queue, files, and how patient the worker is."""

    database: Database
    store: ArtifactStore
    copies: LocalCopies
    policy: RetryPolicy

    @property
    def report_patience_s(self) -> float:
        """How long a worker tries to report; by then its work is somebody else's."""
        return 2.0 * self.policy.lease_s

"""Build hook: a wheel carries the exercises, which live outside the package."""  # noqa: INP001

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ExercisesHook(BuildHookInterface[Any]):
    """Copies config/exercises into wheels; an editable install reads them from the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Tell hatchling what to add."""
        if version == "standard":
            build_data["force_include"]["../../config/exercises"] = "pose_analyzer/exercise_files"

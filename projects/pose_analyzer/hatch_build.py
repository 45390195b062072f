"""Build hook: a wheel carries exercises, faults, texts and references from outside the package."""  # noqa: INP001

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ExercisesHook(BuildHookInterface[Any]):
    """Copies them into wheels; an editable install reads them from the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Tell hatchling what to add."""
        if version == "standard":
            included = build_data["force_include"]
            included["../../config/exercises"] = "pose_analyzer/exercise_files"
            included["../../config/faults"] = "pose_analyzer/fault_rule_files"
            included["../../config/coaching"] = "pose_analyzer/coaching_files"
            included["../../data/pose_references"] = "pose_analyzer/pose_reference_files"

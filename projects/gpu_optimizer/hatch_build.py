"""Build hook: a wheel carries the list of machines, which lives outside the package."""  # noqa: INP001

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class MachinesHook(BuildHookInterface[Any]):
    """Copies config/machines.yml into wheels; an editable install reads it from the checkout."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Tell hatchling what to add."""
        if version == "standard":
            target = "gpu_optimizer/data/machines.yml"
            build_data["force_include"]["../../config/machines.yml"] = target

"""Root of every error this project raises on purpose."""


class ProjectError(Exception):
    """An expected failure whose message tells the user what to do next."""


class InvalidSettingError(ProjectError):
    """Environment variables that do not make valid settings."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems

"""Root of every error this project raises on purpose."""


class ProjectError(Exception):
    """An expected failure whose message tells the user what to do next."""

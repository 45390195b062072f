"""Models that can be built, and how they are run."""

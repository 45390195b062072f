"""``python -m pose_analyzer.cli``."""

from pose_analyzer.cli import app

if __name__ == "__main__":
    app(prog_name="pose-analyzer")

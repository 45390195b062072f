"""Download models: the same as ``pose-analyzer models download``, with the same arguments."""

import sys

from pose_analyzer.cli import app

if __name__ == "__main__":
    app(["models", "download", *sys.argv[1:]], prog_name="pose-analyzer")

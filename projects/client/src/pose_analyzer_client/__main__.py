"""``python -m pose_analyzer_client``."""

from pose_analyzer_client.cli import main

if __name__ == "__main__":
    main()

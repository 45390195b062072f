"""People in video frames, their joint angles with error bars, and their repetitions."""

"""YOLO on an NVIDIA GPU: from files to people without leaving it."""

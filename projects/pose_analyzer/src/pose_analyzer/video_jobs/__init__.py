"""Recorded videos in the background: workers analyse chunks, and put them together."""

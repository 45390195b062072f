"""Weights and key-value caches in fewer bits, and what that costs in quality."""

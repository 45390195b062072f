"""Runs of models on GPUs: what fits, what was measured, what a script does."""

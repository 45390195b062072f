"""Tries batch sizes in processes of their own: what to try next, the process, its steps."""

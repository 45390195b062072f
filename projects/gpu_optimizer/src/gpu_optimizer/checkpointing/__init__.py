"""Recomputing parts of the forward pass in the backward pass."""

"""What helps when memory is short or in pieces."""

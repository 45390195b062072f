"""Tensors that wait in the host's memory until they are needed again."""

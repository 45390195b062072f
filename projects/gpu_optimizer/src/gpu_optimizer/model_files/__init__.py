"""What the files of a model say about it: names, numbers and shapes, never values."""

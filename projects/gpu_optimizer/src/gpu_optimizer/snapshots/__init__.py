"""PyTorch's record of its allocator: recorded, labelled, read and written."""

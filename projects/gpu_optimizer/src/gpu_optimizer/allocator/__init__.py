"""PyTorch's CUDA caching allocator: its settings, its blocks and its decisions."""

"""What CUDA's kernels and libraries do to memory, without a GPU."""

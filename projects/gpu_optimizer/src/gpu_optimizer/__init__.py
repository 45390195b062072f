"""Where a model's GPU memory goes, before and after running it."""

"""Known GPUs and machines, which of them is here, and what they cost to rent."""

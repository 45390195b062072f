"""One step of a model, and what it allocates and frees."""

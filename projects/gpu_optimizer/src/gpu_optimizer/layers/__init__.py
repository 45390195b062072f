"""A model by its layers: which one is running, what it holds, how long it takes."""

"""GPUs by vendor: a reader that may run in a child, and the interpretation of what it read."""

"""One algorithm, whole, in one file."""

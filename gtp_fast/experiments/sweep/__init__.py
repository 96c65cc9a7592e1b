"""Train a grid of data sets, settings and seeds, from the flags to one report."""

"""A trained policy: loaded from a run, sampled on a CPU or a GPU, exported as one file."""

"""Data sets: from a name or a file to validated transitions, and from these to a replay buffer on the device."""

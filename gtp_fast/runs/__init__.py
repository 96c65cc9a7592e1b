"""A run on disk: its directory, checkpoints, metrics and log, how it resumes, and how other code reads it."""

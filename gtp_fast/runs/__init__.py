"""What a run keeps on disk: its directory, checkpoints, metrics; how it resumes, and how all of it is read again."""

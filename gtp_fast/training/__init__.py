"""The training run, from settings to a trained policy, with its guards, signals and memory estimate."""

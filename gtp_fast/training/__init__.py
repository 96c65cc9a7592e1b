"""The training run: from settings to a trained policy."""

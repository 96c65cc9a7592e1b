"""Fast training of Generative Trajectory Policies for offline reinforcement learning."""

__version__ = "0.1.0"

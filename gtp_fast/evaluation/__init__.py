"""Policies in environments: rollouts, scores, videos, and the process that evaluates beside training."""

"""Policies in environments: rollouts, scores, videos, and the worker that evaluates during training."""

"""Measurements. Nothing here is installed: `make bench` and `make gpu` run it from a checkout."""

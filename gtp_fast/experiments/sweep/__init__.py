"""Grids of runs: environments x settings x seeds, from what was typed to one report.

asked: what the command or its file says. plan: the runs, validated, each in its directory. run: the plan carried out by
gtp_fast/experiments/trials.py. table: what it looks like meanwhile. on_ray: the same processes started by Ray.
"""

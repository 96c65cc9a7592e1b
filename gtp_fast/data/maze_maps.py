"""The maps of D4RL's mazes as rows of text: '1' a wall, '0' free, 'R' where the agent starts, 'G' where its goal is.

Source: U_MAZE_TEST, BIG_MAZE_TEST and HARDEST_MAZE_TEST in d4rl/locomotion/maze_env.py of Farama's D4RL (89141a6).
"""

from __future__ import annotations

MAZES = {
    "umaze": ("11111", "1R001", "11101", "1G001", "11111"),
    "medium": ("11111111", "1R011001", "10010001", "11000111", "10010001", "10100101", "100010G1", "11111111"),
    "large": (
        *("111111111111", "1R0001000001", "101101010101", "100000010001", "101111011101", "100101000001"),
        *("110101010111", "100100010G01", "111111111111"),
    ),
}


def cells(maze: str) -> tuple[tuple[int | str, ...], ...]:
    """Return a map as gymnasium-robotics takes it: 1 and 0 as numbers, 'r' and 'g' as letters."""
    return tuple(tuple(int(c) if c in "01" else c.lower() for c in row) for row in MAZES[maze])

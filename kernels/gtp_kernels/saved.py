"""What a network's launch keeps of each row for the weight gradients, and the tiles in which those are computed."""

from __future__ import annotations

from dataclasses import dataclass

from gtp_kernels.launch import blocks, padded

TIME_COLUMNS = 192  # each for t and s: sinusoids 16, hidden 32, dz of the hidden 32, dz of the embedding 16


@dataclass(frozen=True)
class Saved:
    """Columns of a kept row: [x (`inputs`, padded), h0, h1, h2, dz0, dz1, dz2 (H each), dz3, time networks].

    `layers` maps each linear layer to the columns where its input and its dL/dz begin. `slopes` floats a row are kept
    apart, for the launch itself.
    """

    inputs: int
    slopes: int
    width: int
    layers: dict[str, tuple[int, int]]

    def tiles(self, places: dict[str, tuple[int, tuple[int, ...]]], tile: int) -> list[list[int]]:
        """Return the table of `gtp_gradients`, one row for each tile of each layer.

        Args: places maps a parameter ("mlp0.w", "mlp0.b", ...) to its offset in the flat row and its shape.
        """
        table = []
        for layer, (x_column, z_column) in self.layers.items():
            weight_at, (inputs, outputs) = places[f"{layer}.w"]
            bias_at, _ = places[f"{layer}.b"]
            for i in range(0, inputs, tile):
                for j in range(0, outputs, tile):
                    table.append([x_column, z_column, inputs, outputs, weight_at, bias_at, i, j])
        return table


def actor_saved(obs_dim: int, action_dim: int, hidden: int) -> Saved:
    """Return what `gtp_actor` keeps."""
    inputs = 16 * blocks(action_dim + 32 + obs_dim, 16)
    time = inputs + 6 * hidden + padded(action_dim)
    layers = _mlp_layers(inputs, hidden)
    for i, name in enumerate("ts"):
        layers[f"{name}0"] = (time + 16 * i, time + 96 + 32 * i)
        layers[f"{name}1"] = (time + 32 + 32 * i, time + 160 + 16 * i)
    return Saved(inputs, 3 * hidden, time + TIME_COLUMNS, layers)


def critic_saved(obs_dim: int, action_dim: int, hidden: int) -> Saved:
    """Return what `gtp_critic` keeps."""
    inputs = 16 * blocks(obs_dim + action_dim, 16)
    return Saved(inputs, hidden, inputs + 6 * hidden + 16, _mlp_layers(inputs, hidden))


def _mlp_layers(inputs: int, hidden: int) -> dict[str, tuple[int, int]]:
    starts = [0, inputs, inputs + hidden, inputs + 2 * hidden]
    return {f"mlp{i}": (start, inputs + (3 + i) * hidden) for i, start in enumerate(starts)}

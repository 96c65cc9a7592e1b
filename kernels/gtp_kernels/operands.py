"""The hidden weights as products read them: rounded copies beside the float32 masters, or the masters themselves."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Operands:
    """A flat parameter buffer (M, P) and its two hidden weights, (H, H) at `first` and `second` of each row.

    With precision "fp32" `copies` is empty and the weights are read from the buffer; else it is (M, 2, H, H), float32
    rounded to TF32 or bfloat16, and whoever writes the buffer writes it too, or calls `refresh`.
    """

    flat: Tensor
    copies: Tensor
    first: int
    second: int
    precision: str

    @classmethod
    def of(cls, flat_MP: Tensor, hidden: int, first: int, precision: str) -> Operands:
        """Make the copies of a buffer whose hidden weights begin at `first`, a bias of `hidden` between them."""
        members = 0 if precision == "fp32" else flat_MP.shape[0]
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        copies = torch.empty(members, 2, hidden, hidden, dtype=kind, device=flat_MP.device)
        operands = cls(flat_MP, copies, first, first + hidden * hidden + hidden, precision)
        operands.refresh()
        return operands

    def refresh(self) -> None:
        """Write the copies anew from the buffer."""
        if self.precision == "fp32":
            return
        size = self.copies[0, 0].numel()
        for i, offset in enumerate((self.first, self.second)):
            weight = self.flat[:, offset : offset + size].view(-1, *self.copies.shape[2:])
            self.copies[:, i] = round_to_tf32(weight) if self.precision == "tf32" else weight

    def args(self) -> dict[str, object]:
        """Return the pointers and strides by the names that every kernel gives them."""
        own = self.precision == "fp32"
        return {
            "param_ptr": self.flat,
            "w1_ptr": self.flat[:, self.first :] if own else self.copies[:, 0],
            "w2_ptr": self.flat[:, self.second :] if own else self.copies[:, 1],
            "param_stride": self.flat.stride(0),
            "pair_stride": self.flat.stride(0) if own else self.copies.stride(0),
        }


def round_to_tf32(x: Tensor) -> Tensor:
    """Round float32 to the ten mantissa bits of TF32, to nearest, ties away from zero."""
    return ((x.view(torch.int32) + 0x1000) & -8192).view(torch.float32)

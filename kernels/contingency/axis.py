"""One side of a table: which ids its rows, or columns, stand for."""

from __future__ import annotations

import numbers
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST_AXIS = 2**28


class Axis(NamedTuple):
    """Position p stands for the id ``low + p``, or for ``ids[p]`` where the ids were compacted.

    ``fixed`` where the caller gave the number of ids: then each keeps its position, used or not.
    """

    low: int
    size: int
    fixed: bool
    ids: Tensor | None = None

    def ids_at(self, positions: Tensor) -> Tensor:
        return positions + self.low if self.ids is None else self.ids[positions]


def axis_of(labels: Tensor, size: int | None, name: str) -> Axis:
    """The axis 0 … size - 1 where a size is given, else the range of the labels."""
    if size is None:
        if labels.numel() == 0:
            return Axis(0, 0, False)
        low, high = torch.stack(labels.aminmax()).tolist()
        return Axis(low, high - low + 1, False)
    if isinstance(size, bool) or not isinstance(size, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {size!r}")
    if size < 0:
        raise ValueError(f"{name} must be at least 0, got {size}")
    if size > LARGEST_AXIS:
        raise MemoryError(
            f"{name}={size} needs {8 * int(size)} bytes for the ids alone; "
            f"leave {name} out to count whichever ids occur"
        )
    return Axis(0, int(size), True)


def compacted(labels: Tensor, axis: Axis) -> tuple[Tensor, Axis]:
    """Labels as ranks among the ids that occur; sorts. A fixed axis stays as it is."""
    if axis.fixed:
        return labels, axis
    ids, ranks = torch.unique(labels, return_inverse=True)
    return ranks, Axis(0, len(ids), False, ids.long())


def check_range(labels: Tensor, size: int, name: str, size_name: str) -> None:
    """Raise where labels do not lie in 0 … size - 1."""
    if labels.numel() == 0:
        return
    low, high = (int(v) for v in labels.aminmax())
    if low < 0 or high >= size:
        raise ValueError(
            f"{name} holds ids from {low} to {high}, but {size_name}={size} allows 0 to {size - 1}; "
            f"leave {size_name} out to count whichever ids occur"
        )

"""Sums of float64 numbers that are the same bits whatever is added first, or on which process.

A sum of floating-point numbers depends on their order. Here each number is cut into whole multiples of three units,
each a power of two, and those are added as int64: exactly, in any order.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LIMBS, LIMB_BITS, TOP_BITS = 3, 40, 62
LOWEST = -1000  # exponent of a unit: below, its inverse would overflow


class ExactSum:
    """Sums of at most 2^22 arrays of float64 numbers.

    Parameters
    ----------
    shape : tuple of int
    bounds : array of int that broadcasts to ``shape``
        Exponents: the absolute values of all that is added to an entry sum up to less than ``2 ** bounds``.
    device : torch.device

    Attributes
    ----------
    limbs : Tensor of shape (3, *shape), int64
        Multiples of the units ``2 ** (bounds - 62)``, ``2 ** (bounds - 102)`` and ``2 ** (bounds - 142)``. Those of
        several sums add up.

    Notes
    -----
    What is below half of the smallest unit is lost: 2^-143 of the bound.
    A limb cannot overflow: the first holds at most 2^62 and half a unit a number, the others half of 2^40 a number.

    Examples
    --------
    >>> total = ExactSum((1,), np.array([60]), torch.device("cpu"))
    >>> for number in (2.0**53, 0.75, -(2.0**53)):
    ...     total.add(torch.tensor([number], dtype=torch.float64))
    >>> total.value()
    tensor([0.7500], dtype=torch.float64)
    """

    def __init__(self, shape: tuple[int, ...], bounds: NDArray, device: torch.device) -> None:
        exponents = [np.maximum(bounds - TOP_BITS - LIMB_BITS * i, LOWEST) for i in range(LIMBS)]
        units = torch.from_numpy(np.ldexp(1.0, np.stack(exponents))).to(device)
        self._units, self._inverses = units.unbind(), units.reciprocal().unbind()
        self.limbs = torch.zeros((LIMBS, *shape), dtype=torch.int64, device=device)

    def add(self, numbers: Tensor) -> None:
        """Add float64 numbers of the sum's shape; NaN and infinity are not allowed."""
        rest = numbers
        for limb, unit, inverse in zip(self.limbs, self._units, self._inverses):
            multiple = (rest * inverse).round_()
            limb += multiple.long()
            rest = rest - multiple.mul_(unit)

    def value(self) -> Tensor:
        """The sums, float64."""
        top, middle, low = (limb.double() * unit for limb, unit in zip(self.limbs, self._units))
        return (low + middle) + top


def exponent_of(bound: NDArray | float) -> NDArray:
    """The least e with ``|bound| < 2 ** e``."""
    return np.frexp(np.asarray(bound, np.float64))[1].astype(np.int64)


def fixed_sum(x: Tensor) -> Tensor:
    """Sum of all entries in an order that no number of threads changes; torch's own depends on it beyond 32,767."""
    flat = x.reshape(-1)
    while flat.numel() > 1:
        flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 1024)).reshape(-1, 1024).sum(dim=1)
    return flat.sum()

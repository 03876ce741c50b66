"""Sums of float64 numbers that are the same bits whatever is added first, or on which process.

A sum of floating-point numbers depends on their order. Here each number is cut into whole multiples of a few units,
each a power of two, and those are added as int64: exactly, in any order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.distributed import Ranks

LIMBS, LIMB_BITS, TOP_BITS = 3, 40, 62
LOWEST = -1000  # exponent of a unit: below, its inverse would overflow


class ExactSum:
    """Sums of at most 2^22 float64 numbers for each entry of an array.

    Parameters
    ----------
    shape : tuple of int
    bounds : array of int that broadcasts to ``shape``
        Exponents: the absolute values of all that is added to an entry sum up to less than ``2 ** bounds``.
    device : torch.device
    n_limbs : int

    Attributes
    ----------
    limbs : Tensor of shape (n_limbs, *shape), int64
        Multiples of the units ``2 ** (bounds - 62)``, ``2 ** (bounds - 102)``, ``2 ** (bounds - 142)`` and so on. Those
        of several sums add up.

    Notes
    -----
    What is below half of the smallest unit is lost: of three limbs 2^-143 of the bound.
    A limb cannot overflow: the first holds at most 2^62 and half a unit a number, the others half of 2^40 a number.

    Examples
    --------
    >>> total = ExactSum((1,), np.array([60]), torch.device("cpu"))
    >>> for number in (2.0**53, 0.75, -(2.0**53)):
    ...     total.add(torch.tensor([number], dtype=torch.float64))
    >>> total.value()
    tensor([0.7500], dtype=torch.float64)
    """

    def __init__(self, shape: tuple[int, ...], bounds: NDArray, device: torch.device, n_limbs: int = LIMBS) -> None:
        exponents = [np.maximum(bounds - TOP_BITS - LIMB_BITS * i, LOWEST) for i in range(n_limbs)]
        units = torch.from_numpy(np.ldexp(1.0, np.stack(exponents))).to(device)
        self._units, self._inverses = units.unbind(), units.reciprocal().unbind()
        self.limbs = torch.zeros((n_limbs, *shape), dtype=torch.int64, device=device)

    def add(self, numbers: Tensor) -> None:
        """Add float64 numbers of the sum's shape; NaN and infinity are not allowed."""
        for limb, multiples in zip(self.limbs, self._multiples(numbers)):
            limb += multiples

    def add_rows(self, numbers: Tensor, places: Tensor) -> None:
        """Add each row of ``numbers`` (m, *shape[1:]) at its place (m,) along the first axis."""
        for limb, multiples in zip(self.limbs, self._multiples(numbers)):
            limb.index_add_(0, places, multiples)

    def value(self) -> Tensor:
        """The sums, float64."""
        *larger, total = (limb.double() * unit for limb, unit in zip(self.limbs, self._units))
        for part in reversed(larger):
            total = total + part
        return total

    def _multiples(self, numbers: Tensor) -> Iterator[Tensor]:
        for unit, inverse in zip(self._units, self._inverses):
            multiple = (numbers * inverse).round_()
            yield multiple.long()
            numbers = numbers - multiple.mul_(unit)


def exponent_of(bound: NDArray | float) -> NDArray:
    """The least e with ``|bound| < 2 ** e``."""
    return np.frexp(np.asarray(bound, np.float64))[1].astype(np.int64)


def sum_over_ranks(totals: Sequence[ExactSum], ranks: Ranks, error: BaseException | None) -> list[Tensor]:
    """The values of sums to which each rank has added its part: one all_reduce. An error of one is raised on all."""
    flat = ranks.all_sum(torch.cat([total.limbs.reshape(-1) for total in totals]), error)
    for total, limbs in zip(totals, flat.split([total.limbs.numel() for total in totals])):
        total.limbs = limbs.view_as(total.limbs)
    return [total.value() for total in totals]


def fixed_sum(x: Tensor) -> Tensor:
    """Sum of all entries in an order that no number of threads changes; torch's own depends on it beyond 32,767."""
    flat = x.reshape(-1)
    while flat.numel() > 1:
        flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 1024)).reshape(-1, 1024).sum(dim=1)
    return flat.sum()

"""The iteration of ``iterate.py`` for exponentials that are held: with scalings in place of potentials.

Nothing but sums and scalings of columns is handled between two passes, so that small problems do not wait for it.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._numba import jit
from fastdc.kernels.sinkhorn.iterate import LEAST, Marginals

LEAST_SCALING = 2.0**-125  # that float32 has
LOST, GOES_ON, CONVERGED = range(3)


class Held(Protocol):
    """Exponentials K of rows and columns; sums are float64."""

    def sums(self) -> NDArray:
        """Sums of the columns (k,)."""

    def scaled_sums(self, scaling: NDArray) -> NDArray:
        """Sums (k,) of the columns of K under weight / (K scaling) as the scaling of the rows."""


def find_scaling(held: Held, marginals: Marginals, n_iters: int, tol: float | None, dtype: np.dtype) -> NDArray | None:
    """Scaling (k,) of the columns in the last iteration, up to a factor; None where the dtype has it not."""
    columns = marginals.columns.numpy()
    scaling, sums = np.empty(columns.size, dtype), held.sums()
    allowed = -1.0 if tol is None else tol * float(marginals.total)
    for iteration in range(n_iters):
        state = next_scaling(columns, sums, scaling, iteration == 0, allowed, LEAST)
        if state == LOST:
            return None
        if state == CONVERGED or iteration + 1 == n_iters:
            break
        sums = held.scaled_sums(scaling)
    return scaling


@jit
def next_scaling(columns, sums, scaling, first, allowed, least):
    """scaling (k,) becomes columns / sums over the largest of these; what came of it.

    After the first time scaling * sums are the columns' masses, which are wanted to be ``columns``: they have converged
    within ``allowed``, and are lost where one is below the ``least``.
    """
    if not first:
        distance = 0.0
        for j in range(columns.size):
            mass = scaling[j] * sums[j]
            if columns[j] > 0 and not mass >= least:
                return LOST
            distance += abs(mass - columns[j])
        if distance <= allowed:
            return CONVERGED
    largest = 0.0
    for j in range(columns.size):
        largest = max(largest, columns[j] / sums[j])
    for j in range(columns.size):
        factor = columns[j] / sums[j] / largest
        if columns[j] > 0 and not factor >= LEAST_SCALING:
            return LOST
        scaling[j] = factor
    return GOES_ON

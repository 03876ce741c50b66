"""k-means++ over any kernel: what is drawn from what, with one pass over the rows a center.

A pass yields, for each block of rows and each candidate, the sum of squared distances that would remain. The
winner's column is then the mass of every block, so that drawing from millions of rows looks at the sums of
the blocks and the rows of one block only. Sums and draws are float64: exact enough beyond 2^24 rows.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Seeding(Protocol):
    """A pass over the rows, as a backend does it. It remembers each row's squared distance to the centers."""

    block: int  # rows of a block

    def masses(self, winner: int | None, candidates: list[int]) -> NDArray:
        """Add the center at row ``winner``; then the mass left in each block were a candidate added too.

        Shape (n_blocks, n_candidates), float64. Adding a center twice changes nothing.
        """

    def mass_of_block(self, block: int, winner: int) -> NDArray:
        """Add the center at row ``winner`` in this block; the mass of each of its rows, float64."""


def usable_weights(x: Tensor, sample_weight: Tensor | None) -> Tensor | None:
    """Weights as float64, zero for rows that are not finite; None if all are one.

    Raises
    ------
    ValueError
        If no row is left to choose from.
    """
    if sample_weight is None and bool(torch.isfinite(x.sum())):  # so is every entry
        return None
    finite = torch.isfinite(torch.linalg.vector_norm(x, ord=float("inf"), dim=1))
    if sample_weight is None and bool(finite.all()):
        return None
    weights = finite.double() if sample_weight is None else torch.where(finite, sample_weight.double(), 0.0)
    if not bool((weights > 0).any()):
        raise ValueError("x has no finite row of positive weight, so there is no center to choose")
    return weights


def draw_uniforms(n_clusters: int, n_candidates: int, seed: int) -> NDArray:
    """Random numbers of a whole seeding, (n_clusters, n_candidates); a negative seed is fresh entropy."""
    return np.random.default_rng(None if seed < 0 else seed).random((n_clusters, n_candidates))


def seed_centers(seeding: Seeding, weights: NDArray, n_rows: int, uniforms: NDArray) -> NDArray:
    """Indices (n_clusters,) of greedy k-means++. ``weights`` is empty where all are one."""
    running = np.cumsum(weights)

    def any_row(uniform: float) -> int:
        return _invert(running, uniform) if weights.size else min(int(uniform * n_rows), n_rows - 1)

    indices = [any_row(uniforms[0, 0])]
    masses = seeding.masses(None, indices)
    best = 0
    for draws in uniforms[1:]:
        of_blocks = np.cumsum(masses[:, best])
        if not of_blocks[-1] > 0:  # every row lies on a center
            indices.append(any_row(draws[0]))
            continue
        candidates = [_draw(seeding, of_blocks, indices[-1], uniform) for uniform in draws]
        masses = seeding.masses(indices[-1], candidates)
        best = int(masses.sum(axis=0).argmin())
        indices.append(candidates[best])
    return np.array(indices, dtype=np.int64)


def _draw(seeding: Seeding, of_blocks: NDArray, winner: int, uniform: float) -> int:
    """A row in proportion to its mass: first the block, then the row within."""
    block = _invert(of_blocks, uniform)
    before = of_blocks[block - 1] if block else 0.0
    within = (uniform * of_blocks[-1] - before) / (of_blocks[block] - before)
    running = np.cumsum(seeding.mass_of_block(block, winner))
    return block * seeding.block + _invert(running, min(max(within, 0.0), 1.0))


def _invert(running: NDArray, uniform: float) -> int:
    """Where a running sum first exceeds a share of its last value; never an entry that adds nothing."""
    found = int(np.searchsorted(running, uniform * running[-1], side="right"))
    return min(found, int(np.searchsorted(running, running[-1], side="left")))

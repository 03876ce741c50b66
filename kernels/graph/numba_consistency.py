"""CPU kernel of the consistency of neighbours: 64 rows at a time, in tiles that stay in cache."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._parallel import block_rows, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import Rows, empty, numpy_dtype
from fastdc.kernels.graph import numba_consistency_tiles as tiles

ELEMENT_NS = 2.0  # nanoseconds that a cluster of a row takes
TINY = np.finfo(np.float64).tiny


def consistency_loss(
    anchor: Tensor, neighbor: Tensor, entropy_weight: float, from_logits: bool
) -> tuple[Tensor, Tensor]:
    """Mean over rows of -ln <p_i, p_j> less the weighted entropy of the mean p_i; sum of p_i, float64.

    The sum is of length 0 where the entropy has no weight.
    """
    job = _Job(anchor, neighbor)
    mass = np.zeros(job.k if entropy_weight else 0)
    partial = [np.zeros_like(mass) for _ in job.scratch]
    losses, total = np.zeros(len(job.scratch)), np.zeros(1)

    def work(worker: int, start: int, stop: int) -> None:
        rows = job.anchor[start:stop], job.neighbor[start:stop]
        losses[worker] = tiles.consistency_block(*rows, from_logits, job.scratch[worker], partial[worker])

    def commit(worker: int) -> None:
        total[0] += losses[worker]
        mass[:] += partial[worker]

    run_blocks(job.n, job.rows, work, commit)
    mean = mass / job.n
    loss = total[0] / job.n + entropy_weight * (mean * np.log(np.maximum(mean, TINY))).sum()
    return torch.tensor(loss, dtype=job.torch_dtype), torch.from_numpy(mass)


def consistency_gradients(
    anchor: Tensor,
    neighbor: Tensor,
    mass: Tensor,
    grad_loss: Tensor,
    entropy_weight: float,
    from_logits: bool,
    need_anchor: bool,
    need_neighbor: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients (n, k) of the loss times ``grad_loss``, in the inputs' dtypes, of no rows where not needed."""
    job = _Job(anchor, neighbor)
    factor = grad_loss.item() / job.n
    slopes = (factor * _slopes(mass.numpy() / job.n, entropy_weight, from_logits, job.k)).astype(job.dtype)
    grad_a, grad_b = (empty((job.n if need else 0, job.k), job.dtype) for need in (need_anchor, need_neighbor))

    def work(worker: int, start: int, stop: int) -> None:
        rows = job.anchor[start:stop], job.neighbor[start:stop]
        out = grad_a.numpy()[start:stop], grad_b.numpy()[start:stop]
        tiles.gradient_block(*rows, from_logits, job.scratch[worker], job.dtype.type(factor), slopes, *out)

    run_blocks(job.n, job.rows, work)
    return grad_a.to(anchor.dtype), grad_b.to(neighbor.dtype)


def _slopes(mean: NDArray, entropy_weight: float, from_logits: bool, k: int) -> NDArray:
    """Gradient of minus the weighted entropy to the mean p (k,)."""
    if not mean.size:
        return np.zeros(k)
    slopes = entropy_weight * (np.log(np.maximum(mean, TINY)) + (mean >= TINY))
    # a constant changes no gradient of logits; without the mean there are more digits left
    return slopes - (slopes * mean).sum() if from_logits else slopes


class _Job:
    """One call's rows as the tiles want them, the size of a block, and each worker's scratch."""

    def __init__(self, anchor: Tensor, neighbor: Tensor) -> None:
        self.torch_dtype = working_dtype(anchor, neighbor)
        self.dtype = numpy_dtype(self.torch_dtype)
        self.n, self.k = anchor.shape
        self.rows = block_rows(self.n, row_ns=ELEMENT_NS * self.k)
        self.anchor, self.neighbor = Rows(anchor, self.dtype), Rows(neighbor, self.dtype)
        self.scratch = [tiles.make_scratch(self.k, self.dtype) for _ in range(n_workers(-(-self.n // self.rows)))]

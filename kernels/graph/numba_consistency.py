"""CPU kernel of the consistency of neighbours: 64 rows at a time, in tiles that stay in cache."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastdc.kernels._parallel import block_rows, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import Rows, empty, numpy_dtype
from fastdc.kernels.graph import numba_consistency_tiles as tiles


def consistency(
    anchor: Tensor, neighbor: Tensor, from_logits: bool, need_anchor: bool, need_neighbor: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum over rows of -ln <p_i, p_j>, and its gradients (n, k), of no rows where not needed."""
    torch_dtype = working_dtype(anchor, neighbor)
    dtype = numpy_dtype(torch_dtype)
    n, k = anchor.shape
    rows = block_rows(n, row_ns=8.0 * k)
    a, b = Rows(anchor, dtype), Rows(neighbor, dtype)
    grad_a, grad_b = (empty((n if need else 0, k), dtype) for need in (need_anchor, need_neighbor))
    scratch = [tiles.make_scratch(k, dtype) for _ in range(n_workers(-(-n // rows)))]
    losses, total = np.zeros(len(scratch)), np.zeros(1)

    def work(worker: int, start: int, stop: int) -> None:
        out = grad_a.numpy()[start:stop], grad_b.numpy()[start:stop]
        losses[worker] = tiles.consistency_block(a[start:stop], b[start:stop], from_logits, scratch[worker], *out)

    def commit(worker: int) -> None:
        total[0] += losses[worker]

    run_blocks(n, rows, work, commit)
    return torch.tensor(total[0], dtype=torch_dtype), grad_a, grad_b

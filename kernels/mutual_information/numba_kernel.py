"""CPU kernels: 64 rows at a time, in a tile that stays in cache.

Each op here is a Python loop over blocks of rows of every head (``run_blocks``) around one compiled function of
``numba_tiles.py`` a block. Sums over rows are float32 within 64 rows and float64 beyond, committed in order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._parallel import block_rows, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import Rows, empty, numpy_dtype
from fastdc.kernels.mutual_information import numba_logit_tiles as logit_tiles
from fastdc.kernels.mutual_information import numba_tiles as tiles
from fastdc.kernels.mutual_information import numba_vat_tiles as vat_tiles


def entropy_rows(x: Tensor, from_logits: bool, want_entropy: bool) -> tuple[Tensor, Tensor]:
    """Entropy of each row (h, n), of length 0 where not wanted, and sum of p over rows (h, k), float64."""
    job = _Job(x, logit_tiles if from_logits else tiles)
    entropy = empty((job.heads, job.n) if want_entropy else (0,), job.dtype)
    none: Any = np.empty(0, job.dtype)
    mass = np.zeros((job.heads, job.k))
    partial = [np.zeros(job.k) for _ in job.scratch]
    kernel: Any = logit_tiles.logit_block if from_logits else tiles.probability_block

    def work(worker: int, head: int, start: int, stop: int) -> None:
        out = entropy.numpy()[head, start:stop] if want_entropy else none
        kernel(job.rows[head][start:stop], job.scratch[worker], out, partial[worker])

    def commit(worker: int, head: int) -> None:
        mass[head] += partial[worker]

    job.run(work, commit)
    return entropy, torch.from_numpy(mass)


def entropy_rows_backward(x: Tensor, grad_entropy: Tensor | None, grad_mass: Tensor, from_logits: bool) -> Tensor:
    """Gradient (h, n, k) in the dtype of x; of logits p (t - E[t]) with t = grad_mass - grad_entropy ln p."""
    job = _Job(x, logit_tiles if from_logits else tiles)
    entropy = torch.zeros(1, dtype=job.torch_dtype) if grad_entropy is None else grad_entropy.to(job.torch_dtype)
    of_rows = entropy.expand(job.heads, job.n).numpy()
    of_clusters = np.ascontiguousarray(grad_mass.numpy(), dtype=job.dtype)
    out = _Out(job, x)
    kernel: Any = logit_tiles.logit_backward_block if from_logits else tiles.probability_backward_block

    def work(worker: int, head: int, start: int, stop: int) -> None:
        rows = np.ascontiguousarray(of_rows[head, start:stop])
        with out.block(worker, head, start, stop) as gradient:
            kernel(job.rows[head][start:stop], job.scratch[worker], rows, of_clusters[head], gradient)

    job.run(work)
    return out.tensor


def vat_kl(perturbed: Tensor, logits: Tensor, need_gradient: bool) -> tuple[Tensor, Tensor]:
    """Sum over rows of KL(softmax(logits) || softmax(perturbed)), and its gradient to ``perturbed``."""
    job = _Job(perturbed, vat_tiles, working_dtype(perturbed, logits))
    constant = [Rows(head, job.dtype) for head in logits]
    gradient = empty((job.heads, job.n, job.k) if need_gradient else (0,), job.dtype)
    none: Any = np.empty((0, job.k), job.dtype)
    losses = np.zeros(len(job.scratch))
    total = np.zeros(1)

    def work(worker: int, head: int, start: int, stop: int) -> None:
        out = gradient.numpy()[head, start:stop] if need_gradient else none
        rows = constant[head][start:stop], job.rows[head][start:stop]
        losses[worker] = vat_tiles.vat_block(*rows, job.scratch[worker], out)

    def commit(worker: int, head: int) -> None:
        total[0] += losses[worker]

    job.run(work, commit)
    return torch.from_numpy(total).to(job.torch_dtype)[0], gradient


class _Job:
    """One call's rows as the tiles want them, cut into blocks, and each worker's scratch."""

    def __init__(self, x: Tensor, kind: Any, dtype: torch.dtype | None = None) -> None:
        self.heads, self.n, self.k = x.shape
        self.torch_dtype = working_dtype(x) if dtype is None else dtype
        self.dtype = numpy_dtype(self.torch_dtype)
        self.rows = [Rows(head, self.dtype) for head in x]
        self.block = block_rows(self.n, row_ns=self.k)
        self.blocks_a_head = -(-self.n // self.block)
        n_blocks = self.heads * self.blocks_a_head
        self.scratch = [kind.make_scratch(self.k, self.dtype) for _ in range(n_workers(n_blocks))]

    def run(self, work: Callable[[int, int, int, int], None], commit: Callable[[int, int], None] | None = None) -> None:
        """``work(worker, head, start, stop)`` for each block, ``commit(worker, head)`` in their order."""
        heads = [0] * len(self.scratch)

        def work_one(worker: int, number: int, _: int) -> None:
            heads[worker], block = divmod(number, self.blocks_a_head)
            start = block * self.block
            work(worker, heads[worker], start, min(start + self.block, self.n))

        def commit_one(worker: int) -> None:
            assert commit is not None
            commit(worker, heads[worker])

        run_blocks(self.heads * self.blocks_a_head, 1, work_one, None if commit is None else commit_one)


class _Out:
    """A result (h, n, k) in the dtype of x; where the kernels compute in another, only a block is converted."""

    def __init__(self, job: _Job, x: Tensor) -> None:
        self.direct = x.dtype == job.torch_dtype
        shape = job.heads, job.n, job.k
        self.tensor = empty(shape, job.dtype) if self.direct else torch.empty(shape, dtype=x.dtype)
        self.scratch = [empty((0 if self.direct else job.block, job.k), job.dtype) for _ in job.scratch]

    def block(self, worker: int, head: int, start: int, stop: int) -> _Block:
        rows = self.tensor[head, start:stop]
        return _Block(rows, rows if self.direct else self.scratch[worker][: stop - start])


class _Block:
    """An array to write; converted into its rows of the result on leaving."""

    def __init__(self, rows: Tensor, written: Tensor) -> None:
        self.rows, self.written = rows, written

    def __enter__(self) -> NDArray:
        return self.written.numpy()

    def __exit__(self, *_: object) -> None:
        if self.written is not self.rows:
            self.rows.copy_(self.written)

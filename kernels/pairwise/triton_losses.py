"""GPU kernels of losses over all pairs of rows: launchers with the functions of ``numba_losses.py``."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from fastdc.kernels._triton import filled, shifted_centers
from fastdc.kernels.pairwise import triton_loss_tiles as tiles
from fastdc.kernels.pairwise.triton_kernel import Job


def pairwise_bce(
    unit: Tensor, labels: Tensor | None, chooser: Tensor | None, limits: list[float], need: bool
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient (n, k), of no rows where not needed. limits: upper, lower, eps."""
    job = Job(unit)
    totals = torch.empty(triton.cdiv(job.n, job.launch.block_n), 2, dtype=torch.float64, device=unit.device)
    grad = job.empty(job.n if need else 0, job.d)
    bounds = filled(limits, unit, job.dtype)
    job.run(
        tiles._pairwise_bce_kernel,
        *job.rows, unit if labels is None else labels, unit if chooser is None else chooser, bounds, totals, grad,
        job.n, job.d, HAS_LABELS=labels is not None, HAS_CHOOSER=chooser is not None, NEED_GRADIENT=need,
    )  # fmt: skip
    loss, count = totals.sum(dim=0)
    count = count.clamp(min=1)
    return (loss / count).to(job.dtype), grad.mul_((2.0 / count).to(job.dtype))


def soft_nearest_neighbor_loss(x: Tensor, labels: Tensor, temperature: float, need: bool) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient (n, d), of no rows where not needed."""
    job = Job(x)
    ordered = labels.sort().values
    sizes = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)
    points = (*job.rows, x if job.precision == "ieee" else shifted_centers(x), labels.contiguous())
    scale = filled([1.0 / (math.log(2.0) * temperature)], x, job.dtype)
    rows = job.empty(4, job.n)
    job.run(tiles._neighbor_rows_kernel, *points, scale, rows, job.n, job.d)
    alone = sizes == 1
    count = (~alone).sum().clamp(min=1).double()
    loss = (torch.where(alone, 0.0, rows[3].double()).sum() / count).to(job.dtype)
    grad = job.empty(job.n if need else 0, job.d)
    if need:
        rows[3].fill_(1.0)
        rows = torch.where(alone, 0.0, rows)
        job.run(tiles._neighbor_gradient_kernel, *points, scale, rows, grad, job.n, job.d)
        grad.mul_((2.0 / (temperature * count)).to(job.dtype))
    return loss, grad

"""The definition in plain torch: any device, float64 too. Written to be read, not to be fast.

Byte counts are for n rows, k prototypes and s bytes a number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastdc.kernels._group import gather_rows, shares_of, sum_over
from fastdc.kernels._precision import working_dtype


def sinkhorn_assign_reference(
    scores: Tensor,
    epsilon: float,
    n_iters: int,
    tol: float | None = None,
    row_marginal: Tensor | None = None,
    column_marginal: Tensor | None = None,
    group: Any = None,
) -> Tensor:
    """q (n, k) in the working dtype, computed in float64 (float32 where the device has no float64)."""
    precise = torch.float32 if scores.device.type == "mps" else torch.float64
    log_kernel = scores.detach().to(precise) / epsilon  # moves n k (s + 16)
    rows = _marginal(row_marginal, scores.shape[0], log_kernel, group)
    columns = _marginal(column_marginal, scores.shape[1], log_kernel)
    row_potential = torch.zeros_like(rows)
    dead = _over_ranks(torch.logsumexp(log_kernel, dim=0), group) == -torch.inf  # moves 24 n k
    for _ in range(n_iters):
        mass = _over_ranks(torch.logsumexp(log_kernel + row_potential[:, None], dim=0), group)  # moves 40 n k
        column_potential = torch.where(dead, 0.0, columns.log() - mass)
        column_potential = torch.where(columns > 0, column_potential, -torch.inf)
        log_weight = log_kernel + column_potential  # moves 16 n k
        row_potential = rows.log() - torch.logsumexp(log_weight, dim=1)  # moves 24 n k
        if tol is not None:
            reached = sum_over((log_weight + row_potential[:, None]).exp().sum(dim=0), group)  # moves 40 n k
            if (reached - columns).abs().sum() <= tol:
                break
    return torch.softmax(log_weight, dim=1).to(working_dtype(scores))  # moves 16 n k + n k s


def _marginal(marginal: Tensor | None, length: int, like: Tensor, group: Any = None) -> Tensor:
    """A marginal that sums to one over all processes; None is uniform."""
    marginal = like.new_ones(length) if marginal is None else marginal.detach().to(like.dtype)
    return marginal / sum_over(marginal.sum(), group)


def _over_ranks(logsumexp: Tensor, group: Any) -> Tensor:
    """The logarithm of the sums of all processes."""
    if group is None:
        return logsumexp
    shares = shares_of(1, group, logsumexp.device)
    return torch.logsumexp(gather_rows(logsumexp[None], shares, group), dim=0)


def swapped_prediction_loss_reference(
    z1: Tensor,
    z2: Tensor,
    prototypes: Tensor,
    queue: Tensor | None,
    temperature: float,
    assign: Callable[[Tensor], Tensor],
) -> Tensor:
    """Sum over rows of the cross-entropies of each view under the codes of the other, halved; assign makes codes."""
    dtype = working_dtype(z1, z2, prototypes)
    n, prototypes = z1.shape[0], prototypes.to(dtype)
    scores = [z.to(dtype) @ prototypes.T for z in (z1, z2)]  # writes 2 n k s
    rated = [s.detach() for s in scores]
    if queue is not None:
        rated = [torch.cat([s, more.detach().to(dtype) @ prototypes.detach().T]) for s, more in zip(rated, queue)]
    codes = [assign(s)[:n] for s in rated]
    log_p = [torch.log_softmax(s / temperature, dim=1) for s in scores]  # moves 8 n k s
    return -0.5 * ((codes[1] * log_p[0]).sum() + (codes[0] * log_p[1]).sum())  # moves 6 n k s


def optimal_transport_loss_reference(
    x: Tensor,
    centers: Tensor,
    epsilon: float,
    n_iters: int,
    tol: float | None,
    row_marginal: Tensor | None,
    column_marginal: Tensor | None,
) -> Tensor:
    """<P, C> with P held: P is the codes times the masses of the rows."""
    dtype = working_dtype(x, centers)
    cost = (x.to(dtype)[:, None] - centers.to(dtype)).square().sum(dim=2)  # moves 3 n k d s
    options = (epsilon, n_iters, tol, row_marginal, column_marginal)
    mass = _marginal(row_marginal, x.shape[0], cost.detach())
    plan = mass[:, None] * sinkhorn_assign_reference(-cost, *options)  # moves 3 n k s
    return (plan * cost).sum()  # moves 2 n k s

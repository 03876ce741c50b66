"""Collectives with gradients for losses whose batch is spread over processes.

The rule of all losses: rank r returns W / N times the sum over its own rows, W being the number of ranks and N that
of all rows. What ranks share is gathered or summed here, and its gradients are summed over the ranks. The average that
``DistributedDataParallel`` makes of the parameters' gradients is then the gradient of the mean over all rows in one
process, whatever the sizes of the local batches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


class Shares(NamedTuple):
    """How many rows each rank of a group holds, and which rank this is."""

    counts: list[int]
    rank: int

    @property
    def offset(self) -> int:
        """Rows of the ranks before this one."""
        return sum(self.counts[: self.rank])

    @property
    def total(self) -> int:
        return sum(self.counts)


def check_group(group: Any) -> None:
    """None, or a process group that this process belongs to."""
    if group is None:
        return
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "group needs torch.distributed: call torch.distributed.init_process_group first, or pass None"
        )
    if not isinstance(group, dist.ProcessGroup):
        raise TypeError(
            f"group must be a torch.distributed.ProcessGroup or None, got {type(group).__name__}; "
            "all processes are torch.distributed.group.WORLD"
        )


def shares_of(n_rows: int, group: Any, device: torch.device) -> Shares:
    """One small collective: the counts of all ranks."""
    counts = torch.zeros(dist.get_world_size(group), dtype=torch.int64, device=device)
    rank = dist.get_rank(group)
    counts[rank] = n_rows
    dist.all_reduce(counts, group=group)
    return Shares([int(count) for count in counts.tolist()], rank)


def mean_over(rows: Tensor, group: Any, shares: Shares | None = None) -> Tensor:
    """Mean of a value a row; with a group W / N times the sum over the own rows."""
    if group is None:
        return rows.mean()
    shares = shares_of(rows.shape[0], group, rows.device) if shares is None else shares
    return rows.sum() * (len(shares.counts) / shares.total)


def gather_rows(x: Tensor, shares: Shares, group: Any) -> Tensor:
    """Rows of all ranks in the order of the ranks; gradients are summed over the ranks and handed to the owner."""
    return _Gather.apply(x, shares, group)


def sum_over(x: Tensor, group: Any) -> Tensor:
    """Sum over the ranks, and of the gradients in the backward pass; x itself without a group."""
    return x if group is None else _Sum.apply(x, group)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, shares: Shares, group: Any) -> Tensor:
        ctx.shares, ctx.group = shares, group
        longest = max(shares.counts)
        own = x.new_zeros((longest, *x.shape[1:]))  # collectives want equal shapes
        own[: x.shape[0]] = x
        parts = [torch.empty_like(own) for _ in shares.counts]
        dist.all_gather(parts, own, group=group)
        return torch.cat([part[:count] for part, count in zip(parts, shares.counts)])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        shares, group = ctx.shares, ctx.group
        count = shares.counts[shares.rank]
        if dist.get_backend(group) == "gloo":
            grad = grad.contiguous().clone()
            dist.all_reduce(grad, group=group)
            return grad[shares.offset : shares.offset + count], None, None
        longest = max(shares.counts)
        parts = grad.new_zeros((len(shares.counts), longest, *grad.shape[1:]))
        for part, rows in zip(parts, grad.split(shares.counts)):
            part[: rows.shape[0]] = rows
        own = torch.empty_like(parts[0])
        dist.reduce_scatter_tensor(own, parts, group=group)
        return own[:count], None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous().clone()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None

"""The iteration, whatever computes its passes over the scores.

Logarithms are to base 2, potentials float64. A *pass* is what a backend offers:

``columns(row_potential)``: (shift, sum) of each column, float64, with log2 of the sum over rows of
2^(scores log2(e)/epsilon + row_potential) = shift + log2(sum). None is a potential of zero. Both parts are
additive over shards of rows, after one scaling to a common shift. A shift of minus infinity: no row has a
finite score.

``step(column_potential, bound)``: (log2 of each row's sum over columns of 2^(scores log2(e)/epsilon +
column_potential), and sums over rows of weight_i P_ij / sum_j P_ij for each column, or None where the backend
has no such form). Sums below ``LEAST`` have lost digits and are taken from ``columns`` instead. No exponent of a
row is above its ``bound`` (n,): a column's exponents and potentials of rows sum to log2 of its mass.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

LEAST = 2.0**-80  # of a column's mass in a step, where the largest weight of a row is 1


class Passes(Protocol):
    def columns(self, row_potential: Tensor | None) -> tuple[Tensor, Tensor]: ...

    def step(self, column_potential: Tensor, bound: Tensor) -> tuple[Tensor, Tensor | None]: ...


class Marginals:
    """Both marginals as the iteration wants them, float64, each up to a factor; of the rows those of this process."""

    def __init__(
        self, rows: Tensor | None, columns: Tensor | None, shape: tuple[int, ...], device: Any, group: Any = None
    ) -> None:
        n, k = shape
        self.group = group
        double = {"dtype": torch.float64, "device": device}
        rows = torch.ones(n, **double) if rows is None else rows.detach().to(**double)
        self.weight = rows / reduce_over(rows.max(), "MAX", group)  # largest 1
        self.total = reduce_over(self.weight.sum(), "SUM", group)
        self.log_weight = self.weight.log2()
        columns = torch.ones(k, **double) if columns is None else columns.detach().to(**double)
        self.columns = columns / columns.sum() * self.total
        self.log_columns = self.columns.log2()
        self.log_largest = self.log_columns.max()


def reduce_over(x: Tensor, operation: str, group: Any) -> Tensor:
    """The sum, or the largest, over the processes of a group; x itself without one."""
    if group is None:
        return x
    x = x.contiguous().clone()
    dist.all_reduce(x, getattr(dist.ReduceOp, operation), group=group)
    return x


class GroupPasses:
    """The passes of every process of a group, sums over rows being those over all of them."""

    def __init__(self, passes: Passes, group: Any) -> None:
        self.passes, self.group = passes, group

    def columns(self, row_potential: Tensor | None) -> tuple[Tensor, Tensor]:
        shift, mass = self.passes.columns(row_potential)
        larger = reduce_over(shift, "MAX", self.group)
        mass = torch.where(shift == -torch.inf, 0.0 * mass, mass * (shift - larger).exp2())
        return larger, reduce_over(mass, "SUM", self.group)

    def step(self, column_potential: Tensor, bound: Tensor) -> tuple[Tensor, Tensor | None]:
        row_logs, mass = self.passes.step(column_potential, bound)
        return row_logs, None if mass is None else reduce_over(mass, "SUM", self.group)


def find_potential(passes: Passes, marginals: Marginals, n_iters: int, tol: float | None) -> tuple[Tensor, Tensor]:
    """Potential (k,) of the columns in the last iteration, from which the rows follow by a softmax, and the bound."""
    if marginals.group is not None:
        passes = GroupPasses(passes, marginals.group)
    shift, mass = passes.columns(None)
    dead = shift == -torch.inf
    potential = _potential(marginals, dead, shift + mass.log2())
    bound = marginals.log_largest.expand(marginals.weight.shape[0])
    for _ in range(n_iters - 1):
        row_logs, reached = passes.step(potential, bound)
        row_potential = marginals.log_weight - row_logs
        if reached is not None and not _lost(reached, dead, marginals):
            log_mass = reached.log2() - potential
        else:
            shift, mass = passes.columns(row_potential)
            log_mass = shift + mass.log2()
            reached = torch.where(dead, 0.0, (log_mass + potential).exp2())
        if tol is not None and bool((reached - marginals.columns).abs().sum() <= tol * marginals.total):
            break
        potential, bound = _potential(marginals, dead, log_mass), marginals.log_largest - row_potential
    return potential, bound


def _potential(marginals: Marginals, dead: Tensor, log_mass: Tensor) -> Tensor:
    potential = torch.where(dead, 0.0, marginals.log_columns - log_mass)
    return torch.where(marginals.columns > 0, potential, -torch.inf)


def _lost(mass: Tensor, dead: Tensor, marginals: Marginals) -> bool:
    return bool(((mass < LEAST) & ~dead & (marginals.columns > 0)).any())

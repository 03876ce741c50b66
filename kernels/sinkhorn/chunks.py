"""Optimal transport between rows and prototypes or centers in plain torch, a chunk of rows at a time.

It is what GPUs run: a chunk's scores or squared distances are torch's own product, and nothing n x k is held.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels.sinkhorn.iterate import Marginals, find_potential

ENTRIES = 1 << 24  # of a chunk


def assign(x: Tensor, prototypes: Tensor, marginals: Marginals, epsilon: float, n_iters: int, tol: float) -> Tensor:
    """q (n, k) in the working dtype."""
    passes = ChunkPasses(x, prototypes, epsilon, marginals, distances=False)
    potential, _ = find_potential(passes, marginals, n_iters, tol or None)
    q = torch.empty(x.shape[0], prototypes.shape[0], dtype=passes.dtype, device=x.device)
    for rows, exponents in passes.chunks():
        q[rows] = passes.softmax(exponents, potential)
    return q


def label(
    x: Tensor, prototypes: Tensor, marginals: Marginals, epsilon: float, n_iters: int, tol: float
) -> tuple[Tensor, Tensor]:
    """labels (n,) int64, and confidence (n,) in the working dtype."""
    passes = ChunkPasses(x, prototypes, epsilon, marginals, distances=False)
    potential, _ = find_potential(passes, marginals, n_iters, tol or None)
    found = [passes.softmax(exponents, potential).max(dim=1) for _, exponents in passes.chunks()]
    return torch.cat([best.indices for best in found]), torch.cat([best.values for best in found]).to(passes.dtype)


def cost(
    x: Tensor, centers: Tensor, marginals: Marginals, epsilon: float, n_iters: int, tol: float, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """<P, C>, and the gradients of x and centers in the working dtype, of length 0 where not needed."""
    passes = ChunkPasses(x, centers, epsilon, marginals, distances=True)
    potential, _ = find_potential(passes, marginals, n_iters, tol or None)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    grad_x = torch.empty(x.shape if needs[0] else (0,), dtype=passes.dtype, device=x.device)
    grad_centers = torch.zeros(centers.shape if needs[1] else (0,), dtype=torch.float64, device=x.device)
    middle = centers.to(passes.dtype).mean(dim=0)
    shifted = centers.to(passes.dtype) - middle
    for rows, exponents in passes.chunks():
        plan = passes.softmax(exponents, potential) * (marginals.weight[rows] / marginals.total)[:, None]
        total += (plan * exponents).sum() / passes.scale
        weights, part = 2.0 * plan.to(passes.dtype), x[rows].to(passes.dtype) - middle
        if needs[0]:
            grad_x[rows] = weights.sum(dim=1, keepdim=True) * part - weights @ shifted
        if needs[1]:
            grad_centers += weights.sum(dim=0)[:, None] * shifted - weights.T @ part
    return total.to(passes.dtype), grad_x, grad_centers.to(passes.dtype)


class ChunkPasses:
    """The passes of ``iterate.py``; exponents are scores, or squared distances, times ``scale``."""

    def __init__(self, x: Tensor, centers: Tensor, epsilon: float, marginals: Marginals, *, distances: bool) -> None:
        self.x, self.centers, self.distances, self.weight = x, centers, distances, marginals.weight
        self.dtype = working_dtype(x, centers)
        self.scale = (-1.0 if distances else 1.0) / (math.log(2.0) * epsilon)

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """(rows, exponents (rows, k) in float64) of each chunk."""
        centers = self.centers.to(self.dtype)
        size = max(1, ENTRIES // centers.shape[0])
        for start in range(0, self.x.shape[0], size):
            rows = slice(start, start + size)
            part = self.x[rows].to(self.dtype)
            if self.distances:
                product = torch.cdist(part, centers, compute_mode="donot_use_mm_for_euclid_dist").double().square()
            else:
                product = (part @ centers.T).double()
            yield rows, product * self.scale

    def softmax(self, exponents: Tensor, potential: Tensor) -> Tensor:
        return torch.softmax((exponents + potential) * math.log(2.0), dim=1)

    def columns(self, row_potential: Tensor | None) -> tuple[Tensor, Tensor]:
        shift = self.weight.new_full((self.centers.shape[0],), -torch.inf)
        total = torch.zeros_like(shift)
        for rows, exponents in self.chunks():
            if row_potential is not None:
                exponents = exponents + row_potential[rows, None]
            larger = torch.maximum(shift, exponents.amax(dim=0))
            base = torch.where(larger == -torch.inf, 0.0, larger)
            total = total * (shift - base).exp2() + (exponents - base).exp2().sum(dim=0)
            shift = larger
        return shift, total

    def step(self, column_potential: Tensor, bound: Tensor) -> tuple[Tensor, Tensor]:
        logs, mass = torch.empty_like(self.weight), torch.zeros_like(column_potential)
        for rows, exponents in self.chunks():
            sums = torch.logsumexp((exponents + column_potential) * math.log(2.0), dim=1)
            logs[rows] = sums / math.log(2.0)
            mass += self.weight[rows] @ self.softmax(exponents, column_potential)
        return logs, mass

"""Orthogonal matching pursuit in plain torch: any device, in batches of rows. Written to be read."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._copies import map_rows
from fastdc.kernels._precision import working_dtype

BATCH_BYTES = 1 << 26  # of correlations at a time
EXPLAINED = 1e-10  # a residual this short, relative to its point, is what rounding leaves
DEPENDENT = 1e-6  # a point this near to the span of the support, relative to its length, is not added to it


def unit_rows(z: Tensor) -> Tensor:
    """Rows of length one in the working dtype; zeros stay."""
    return map_rows(z.to(working_dtype(z)), _unit_rows)


def _unit_rows(x: Tensor) -> Tensor:
    largest = x.abs().amax(dim=1, keepdim=True)
    x = x / torch.where(largest > 0, largest, 1.0)  # squares of the rest neither overflow nor vanish
    length = x.double().square().sum(dim=1, keepdim=True).sqrt()
    return (x / torch.where(length > 0, length, 1.0)).to(x.dtype)


def pursue_reference(z: Tensor, n_nonzero: int, tol: float, normalize: bool) -> tuple[Tensor, Tensor]:
    """Columns (n, n_nonzero), -1 where there is none, and coefficients in the working dtype."""
    x = unit_rows(z) if normalize else z.to(working_dtype(z))
    n = x.shape[0]
    size = max(1, BATCH_BYTES // (n * x.itemsize))
    parts = [_pursue_batch(x, start, min(start + size, n), n_nonzero, tol) for start in range(0, n, size)]
    chosen, values = (torch.cat(part) for part in zip(*parts))
    return chosen, values.to(x.dtype)


def _pursue_batch(x: Tensor, start: int, stop: int, n_nonzero: int, tol: float) -> tuple[Tensor, Tensor]:
    """Of rows start <= i < stop; all of them take a step together, those that are done with nothing."""
    targets = x[start:stop].double()
    rows = torch.arange(stop - start, device=x.device)
    chosen = torch.full((stop - start, n_nonzero), -1, device=x.device)
    values = targets.new_zeros((stop - start, n_nonzero))
    basis = targets.new_zeros((stop - start, n_nonzero, x.shape[1]))  # an orthonormal one of the support's span
    residual = targets
    limit = (EXPLAINED * residual.norm(dim=1)).clamp(min=tol)
    going = residual.norm(dim=1) > limit
    for step in range(n_nonzero):
        correlation = (residual.to(x.dtype) @ x.T).abs()  # moves 2 b n s
        correlation[rows, start + rows] = -1.0
        correlation.scatter_(1, torch.where(chosen < 0, (start + rows)[:, None], chosen), -1.0)
        best, column = correlation.max(dim=1)  # reads b n s
        going = going & (best > 0)
        point = x[column].double()
        rest = point
        for _ in range(2):  # once more takes off what rounding left
            rest = rest - torch.einsum("bkd,bk->bd", basis, torch.einsum("bkd,bd->bk", basis, rest))
        going = going & (rest.norm(dim=1) > DEPENDENT * point.norm(dim=1))
        if not bool(going.any()):
            break
        chosen[:, step] = torch.where(going, column, -1)
        direction = rest / rest.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rest.dtype).tiny)
        basis[:, step] = torch.where(going[:, None], direction, 0.0)
        residual = residual - basis[:, step] * (basis[:, step] * residual).sum(1, keepdim=True)
        going = going & (residual.norm(dim=1) > limit)
    support = x[chosen.clamp(min=0)].double() * (chosen >= 0)[:, :, None]  # (b, k, d)
    triangle = torch.einsum("bkd,bld->bkl", basis, support)  # upper: point l in the basis
    triangle = triangle + torch.diag_embed((chosen < 0).double())
    right = torch.einsum("bkd,bd->bk", basis, targets)[:, :, None]
    values = torch.linalg.solve_triangular(triangle, right, upper=True)[:, :, 0]
    return chosen, torch.where(chosen >= 0, values, 0.0)

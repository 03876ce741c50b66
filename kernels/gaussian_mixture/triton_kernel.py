"""GPU kernels: launchers with the same functions as ``numba_kernel.py``.

"diag" and "spherical" run in the kernels of ``triton_tiles.py``; "tied" and "full" in ``torch_chunks.py``.
A step is two passes over the rows: their normalisers, then the sums.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from fastdc.kernels._precision import working_dtype
from fastdc.kernels._triton import ALL_REGISTERS, Launch, chip_of, launch, row_splits
from fastdc.kernels.gaussian_mixture import torch_chunks
from fastdc.kernels.gaussian_mixture import triton_tiles as tiles
from fastdc.kernels.gaussian_mixture.parameters import find_precisions


def gmm_rows(
    x: Tensor,
    means: Tensor,
    covariances: Tensor,
    weights: Tensor,
    covariance_type: str,
    want_responsibilities: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Responsibilities (n, k), of no rows where not wanted, log density (n,) and labels (n,)."""
    if covariance_type in ("tied", "full"):
        mixture = torch_chunks.Mixture(x, means, covariances, weights, covariance_type)
        return torch_chunks.gmm_rows(mixture, want_responsibilities)
    job = _Job(x, means, covariances, weights, covariance_type)
    labels = job.find_normalisers()
    gamma = torch.empty((job.n if want_responsibilities else 0, job.k), dtype=job.dtype, device=x.device)
    if want_responsibilities:
        grid = (job.row_programs, job.component_programs)
        job.run(tiles._gmm_responsibilities_kernel, grid, job.largest, job.total, gamma, *job.sizes)
    return gamma, job.log_density(), labels


def gmm_step(
    x: Tensor,
    means: Tensor,
    covariances: Tensor,
    weights: Tensor,
    sample_weight: Tensor | None,
    covariance_type: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """log_likelihood, counts, sums, scatters and n_invalid."""
    if covariance_type in ("tied", "full"):
        mixture = torch_chunks.Mixture(x, means, covariances, weights, covariance_type)
        return torch_chunks.gmm_step(mixture, sample_weight)
    job = _Job(x, means, covariances, weights, covariance_type)
    valid = job.find_normalisers() >= 0
    weight = valid.to(job.dtype) if sample_weight is None else torch.where(valid, sample_weight.to(job.dtype), 0.0)
    n_splits, rows = row_splits(job.n, job.component_programs, 16 * job.k * job.d, job.launch.block_n, chip_of(x))
    counts = torch.empty((n_splits, job.k), dtype=torch.float64, device=x.device)
    sums, squares = (torch.empty((n_splits, job.k, job.d), dtype=torch.float64, device=x.device) for _ in range(2))
    grid = (n_splits, job.component_programs)
    job.run(tiles._gmm_moments_kernel, grid, job.largest, job.total, weight, counts, sums, squares, rows, *job.sizes)
    scatters = squares.sum(dim=0)
    log_likelihood = torch.where(valid, job.log_density().double(), 0.0) @ weight.double()
    return (
        log_likelihood,
        counts.sum(dim=0),
        sums.sum(dim=0),
        scatters if covariance_type == "diag" else scatters.sum(dim=1),
        (~valid).sum(),
    )


class _Job:
    """One call's rows and mixture, and what each row keeps between kernels."""

    def __init__(self, x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor, covariance_type: str) -> None:
        self.x, self.dtype = x, working_dtype(x, means)
        (self.n, self.d), self.k = x.shape, means.shape[0]
        self.sizes = (self.n, self.k, self.d)
        precisions = find_precisions(means, covariances, weights, covariance_type)
        precision = precisions.factor.square().to(self.dtype)
        precision = precision if covariance_type == "diag" else precision[:, None].expand(self.k, self.d)
        self.arguments = (
            x, *x.stride(), means, *means.stride(), precision, *precision.stride(), precisions.log_norm.to(self.dtype),
        )  # fmt: skip
        self.launch: Launch = launch(self.k, True, "ieee", self.dtype.itemsize, chip_of(x))
        self.row_programs = triton.cdiv(self.n, self.launch.block_n)
        self.component_programs = triton.cdiv(self.k, self.launch.block_k)
        self.largest, self.total = (torch.empty(self.n, dtype=self.dtype, device=x.device) for _ in range(2))

    def find_normalisers(self) -> Tensor:
        """Fills largest and total; the labels."""
        labels = torch.empty(self.n, dtype=torch.int64, device=self.x.device)
        self.run(tiles._gmm_rows_kernel, (self.row_programs,), self.largest, self.total, labels, *self.sizes)
        return labels

    def log_density(self) -> Tensor:
        return self.largest + self.total.log()

    def run(self, kernel: Any, grid: tuple[int, ...], *arguments: Any) -> None:
        choice = self.launch
        with torch.cuda.device_of(self.x):
            kernel[grid](
                *self.arguments,
                *arguments,
                BLOCK_N=choice.block_n,
                BLOCK_K=choice.block_k,
                num_warps=choice.num_warps,
                num_stages=choice.num_stages,
                **ALL_REGISTERS,
            )

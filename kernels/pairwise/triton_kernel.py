"""GPU kernels over all pairs of rows: launchers with the functions of ``numba_kernel.py``.

A program owns a block of rows and meets all points in turn, so that there are neither atomics nor partial sums.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdc.kernels._precision import resolve_precision, working_dtype
from fastdc.kernels._triton import (
    ALL_REGISTERS,
    Kind,
    Launch,
    chip_of,
    in_wide_pieces,
    launch,
    product_precision,
    shifted_centers,
)
from fastdc.kernels.pairwise import triton_tiles as tiles
from fastdc.kernels.pairwise.reference import ROWS, own_spread

WIDEST = 4096  # points; beyond it tiles grow no more


def silhouette_coefficients(x: Tensor, labels: Tensor, n_clusters: int) -> Tensor:
    """s (n,) in the working dtype."""
    ordered, order = labels.sort(stable=True)
    points = x[order]
    offsets = torch.searchsorted(ordered, torch.arange(n_clusters + 1, device=x.device))
    job = Job(points, kind="light")
    shifted = points if job.precision == "ieee" else _shifted_clusters(points, ordered, n_clusters)
    found = job.empty(job.n)
    job.run(tiles._silhouette_kernel, *job.rows, shifted, ordered, offsets, found, job.n, n_clusters, job.d)
    return torch.empty_like(found).scatter_(0, order, found)


def hardest_pairs(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """positive, negative (n,) int64, and their distances in the working dtype."""
    job = Job(x, kind="light")
    shifted = x if job.precision == "ieee" else shifted_centers(x)
    labels = labels.contiguous()
    positive, negative = torch.empty_like(labels), torch.empty_like(labels)
    far, near = job.empty(job.n), job.empty(job.n)
    job.run(tiles._hardest_pairs_kernel, *job.rows, shifted, labels, positive, negative, far, near, job.n, job.d)
    return positive, negative, far, near


def center_distances(x: Tensor, centers: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Distances (n,) to the own center and the nearest other one, in the working dtype."""
    job = Job(x, centers, kind="light")
    shifted = centers if job.precision == "ieee" else shifted_centers(centers)
    own, other = job.empty(job.n), job.empty(job.n)
    points = (*job.rows, centers, *centers.stride(), shifted)
    job.run(tiles._center_distances_kernel, *points, labels, own, other, job.n, len(centers), job.d)
    return own, other


def cluster_dispersion(x: Tensor, labels: Tensor, n_clusters: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """counts (k,) int64, centers (k, d), sums (k,) of distances and of squares: float64."""
    from fastdc.kernels.kmeans.triton_kernel import cluster_sums

    sums, counts = cluster_sums(x, labels, None, n_clusters)
    centers = sums / counts.clamp(min=1)[:, None]
    spread = [own_spread(x[i : i + ROWS], centers, labels[i : i + ROWS]) for i in range(0, len(x), ROWS)]
    total = cluster_sums(torch.cat(spread), labels, None, n_clusters)[0]
    return counts.long(), centers, total[:, 0].clone(), total[:, 1].clone()


class Job:
    """One call's rows, and how kernels over them are launched."""

    def __init__(self, x: Tensor, centers: Tensor | None = None, *, kind: Kind = "rows") -> None:
        self.dtype = working_dtype(x) if centers is None else working_dtype(x, centers)
        self.n, self.d = x.shape
        self.x, self.rows = x, (x, *x.stride())
        precision = resolve_precision(None, "triton", x if self.dtype != torch.float64 else x.double())
        self.precision = product_precision(precision, self.d, self.dtype)
        n_others = min(WIDEST, self.n if centers is None else len(centers))
        self.launch: Launch = launch(n_others, in_wide_pieces(x), self.precision, self.dtype.itemsize, chip_of(x), kind)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.x.device)

    def run(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        choice = self.launch
        with torch.cuda.device_of(self.x):
            kernel[(triton.cdiv(self.n, choice.block_n),)](
                *arguments,
                **constants,
                ACC=tl.float64 if self.dtype == torch.float64 else tl.float32,
                PRECISION=self.precision,
                BLOCK_N=choice.block_n,
                BLOCK_K=choice.block_k,
                BLOCK_D=choice.block_d,
                num_warps=choice.num_warps,
                num_stages=choice.num_stages,
                **ALL_REGISTERS,
            )


def _shifted_clusters(points: Tensor, ordered: Tensor, n_clusters: int) -> Tensor:
    """(n + k, d) float32: of each cluster in turn its rows less their mean, then the mean."""
    from fastdc.kernels.kmeans.triton_kernel import cluster_sums

    sums, counts = cluster_sums(points, ordered, None, n_clusters)
    means = (sums / counts.clamp(min=1)[:, None]).float()
    means = torch.where(torch.isfinite(means), means, 0.0)
    packed = means.new_empty(len(points) + n_clusters, points.shape[1])
    packed[torch.arange(len(points), device=points.device) + ordered] = points.float() - means[ordered]
    packed[counts.long().cumsum(0) + torch.arange(n_clusters, device=points.device)] = means
    return packed

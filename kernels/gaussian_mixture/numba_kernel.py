"""CPU kernels: blocks of rows on threads around the compiled functions of ``numba_tiles.py``.

Sums over rows are float64 throughout, about the mean of the means, and committed in the order of the blocks; what
is handed out is about the means themselves.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdc.kernels._lanes import make_corner, padded
from fastdc.kernels._parallel import block_rows, distances_ns, n_workers, run_blocks
from fastdc.kernels._precision import working_dtype
from fastdc.kernels._rows import Rows, as_array, empty, numpy_dtype
from fastdc.kernels._simd import prepare
from fastdc.kernels._vectors import LANES
from fastdc.kernels.gaussian_mixture import numba_tiles as tiles
from fastdc.kernels.gaussian_mixture.parameters import find_precisions
from fastdc.kernels.gaussian_mixture.update import about_means

LOG2E = 1.0 / math.log(2.0)
FLOAT64 = np.dtype(np.float64)


def gmm_rows(
    x: Tensor,
    means: Tensor,
    covariances: Tensor,
    weights: Tensor,
    covariance_type: str,
    want_responsibilities: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Responsibilities (n, k), of no rows where not wanted, log density (n,) and labels (n,)."""
    job = _Job(x, means, covariances, weights, covariance_type)
    gamma = empty((job.n if want_responsibilities else 0, job.k), job.dtype)
    log_density, labels = np.empty(job.n, job.dtype), np.empty(job.n, np.int64)
    gamma_rows = gamma.numpy()

    def work(worker: int, start: int, stop: int) -> None:
        rows = slice(start, stop)
        scratch = job.scratch[worker]
        tiles.rows_block(job.rows[rows], job.mixture, scratch, gamma_rows[rows], log_density[rows], labels[rows])

    run_blocks(job.n, job.block, work)
    return gamma, torch.from_numpy(log_density), torch.from_numpy(labels)


def gmm_step(
    x: Tensor,
    means: Tensor,
    covariances: Tensor,
    weights: Tensor,
    sample_weight: Tensor | None,
    covariance_type: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """log_likelihood, counts, sums, scatters and n_invalid."""
    job = _Job(x, means, covariances, weights, covariance_type)
    row_weights = np.empty(0) if sample_weight is None else as_array(sample_weight.double(), FLOAT64)
    total = job.make_sums()
    partial = [job.make_sums() for _ in job.scratch]

    def work(worker: int, start: int, stop: int) -> None:
        weight = row_weights[start:stop]
        tiles.step_block(job.rows[start:stop], job.mixture, job.scratch[worker], weight, partial[worker])

    def commit(worker: int) -> None:
        for whole, part in zip(total, partial[worker]):
            whole += part
            part[:] = 0.0

    run_blocks(job.n, job.block, work, commit)
    counts, moments, seconds, shift = (
        torch.from_numpy(a) for a in (total.counts, *job.moments(total), job.means - job.origin)
    )
    log_likelihood, n_invalid = total.scalars
    return (
        torch.tensor(log_likelihood, dtype=torch.float64),
        counts,
        *about_means(counts, moments, seconds, shift, covariance_type),
        torch.tensor(int(n_invalid)),
    )


def make_shape(means: NDArray, factor: NDArray, origin: NDArray, kind: str, dtype: np.dtype) -> Any:
    """What a tile needs of a mixture; means and factor in float64."""
    if kind == "diag":
        return tiles.Diag(means.astype(dtype), (LOG2E / 2 * factor**2).astype(dtype))
    if kind == "spherical":
        return tiles.Spherical(means.astype(dtype), (LOG2E / 2 * factor**2).astype(dtype))
    whitening = math.sqrt(LOG2E / 2) * np.swapaxes(factor, -1, -2)
    rows = np.ascontiguousarray(whitening.astype(dtype))
    if kind == "tied":
        return tiles.Tied(np.ascontiguousarray((means - origin) @ whitening.T, dtype), rows)
    return tiles.Full(means.astype(dtype), rows)


class _Job:
    """One call's inputs as the tiles want them, and each worker's scratch."""

    def __init__(self, x: Tensor, means: Tensor, covariances: Tensor, weights: Tensor, covariance_type: str) -> None:
        self.kind = covariance_type
        self.dtype = numpy_dtype(working_dtype(x, means))
        prepare(self.dtype)
        prepare(FLOAT64)
        (self.n, self.d), self.k = x.shape, means.shape[0]
        self.rows = Rows(x, self.dtype)
        precisions = find_precisions(means.detach(), covariances.detach(), weights.detach(), covariance_type)
        self.means = as_array(means.double(), FLOAT64)
        origin = self.means.mean(axis=0).astype(self.dtype).astype(np.float64)
        self.origin = np.where(np.isfinite(origin), origin, 0.0)
        shape = make_shape(self.means, precisions.factor.numpy(), self.origin, covariance_type, self.dtype)
        shift = np.zeros(padded(self.d), self.dtype)
        if covariance_type == "tied":
            shift[: self.d] = self.origin
        log_norm = (precisions.log_norm.numpy() * LOG2E).astype(self.dtype)
        self.mixture = tiles.Mixture(shape, log_norm, shift, self.origin)
        features = self.d * self.d if covariance_type == "full" else self.d
        self.block = block_rows(self.n, row_ns=distances_ns(features, self.k))
        self.scratch = [self._make_scratch() for _ in range(n_workers(-(-self.n // self.block)))]

    def _make_scratch(self) -> tiles.Scratch:
        width = padded(self.d)
        return tiles.Scratch(
            columns=np.empty((width, LANES), self.dtype),
            corner=make_corner(self.dtype),
            tile=np.empty((self.k, LANES), self.dtype),
            whitened=np.empty((2, self.d if self.kind in ("tied", "full") else 0, LANES), self.dtype),
            largest=np.empty(LANES, self.dtype),
            density=np.empty(LANES, self.dtype),
            best=np.empty(LANES, np.int32),
            total=np.empty(LANES),
            factor=np.empty(LANES),
            weights=np.empty((self.k, LANES)),
            rows=np.zeros((LANES, tiles.moment_width(self.mixture.shape, self.d))),
            products=np.empty({"tied": self.d * LANES, "full": width * LANES}.get(self.kind, 0)),
        )

    def make_sums(self) -> tiles.Sums:
        products = {"tied": self.d * padded(self.d), "full": self.k * sum(tiles.product_widths(self.d))}
        return tiles.Sums(
            scalars=np.zeros(2),
            counts=np.zeros(self.k),
            moments=np.zeros((self.k, tiles.moment_width(self.mixture.shape, self.d))),
            products=np.zeros(products.get(self.kind, 0)),
        )

    def moments(self, total: tiles.Sums) -> tuple[NDArray, NDArray]:
        """First and second moments about the origin."""
        d = self.d
        first = total.moments[:, :d].copy()
        if self.kind == "diag":
            return first, total.moments[:, d : 2 * d].copy()
        if self.kind == "spherical":
            return first, total.moments[:, d].copy()
        if self.kind == "tied":
            return first, total.products.reshape(d, -1)[:, :d].copy()
        seconds = np.empty((self.k, d, d))
        place = 0
        for i, width in enumerate(tiles.product_widths(d)):  # products with feature i, from a multiple of 16 on
            block = total.products[place : place + self.k * width].reshape(self.k, width)
            seconds[:, i, i:] = seconds[:, i:, i] = block[:, i % 16 : i % 16 + d - i]
            place += self.k * width
        return first, seconds

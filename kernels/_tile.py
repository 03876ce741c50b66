"""Squared distances of 64 rows to all centers, as accurate as those of differences, at the price of a product.

Rows lie in vector lanes: a tile is (n_clusters, 64), so that every step over a tile is a loop over lanes with
one center's numbers as scalars.

|x|^2 + |c|^2 - 2 x.c loses what |x - c|^2 is smaller than |x|^2 + |c|^2. Both are therefore shifted by the mean of
the centers, and a pair that is still *near* (|x - c|^2 < NEAR (|x|^2 + |c|^2), after the shift) is done again by
differences and marked in a bit mask, so that gradients treat it by differences too. With few features everything
is done by differences.

``x`` are the rows of a block from the tile's first on; up to 64 of them are treated, and a vector load may run
into the next.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, make_corner, padded, store_columns
from fastdc.kernels._math import lowest_bit
from fastdc.kernels._numba import jit
from fastdc.kernels._precision import BY_DIFFERENCES
from fastdc.kernels._simd import gemm, prepare, sq_dists, weigh_differences
from fastdc.kernels._vectors import LANES

NEAR = 0.25


class Centers(NamedTuple):
    """Centers as the tiles want them. ``padded`` is n_features rounded up to a multiple of 16."""

    raw: NDArray  # (n_clusters, n_features)
    shift: NDArray  # (padded,) mean of the centers; zeros with few features
    shifted: NDArray  # (n_clusters, n_features) raw - shift
    columns: NDArray  # (n_features, n_clusters): -shifted; raw with few features
    sq_norms: NDArray  # (n_clusters,) of the shifted centers


class Product(NamedTuple):
    """Scratch of the product form."""

    rows: NDArray  # (64, padded) shifted rows, padded with zeros
    near_gradient: NDArray  # (64, padded) what near pairs add to the gradient of a row
    sq_norms: NDArray  # (64,)
    near: NDArray  # (n_clusters,) uint64: bit l marks lane l


class Scratch(NamedTuple):
    """What one worker owns."""

    columns: NDArray  # (padded, 64) shifted rows, one a lane
    corner: NDArray  # (16, 16) what a vector load or store would overrun
    product: Product | None  # None with few features: machine code for one of the two forms is enough


def prepare_centers(centers: NDArray) -> Centers:
    raw = np.ascontiguousarray(centers)
    prepare(raw.dtype)
    n_clusters, n_features = raw.shape
    shift = np.zeros(padded(n_features), raw.dtype)
    if n_features <= BY_DIFFERENCES:
        return Centers(raw, shift, raw, np.ascontiguousarray(raw.T), np.zeros(n_clusters, raw.dtype))
    mean = raw.mean(axis=0, dtype=np.float64).astype(raw.dtype)
    shift[:n_features] = np.where(np.isfinite(mean), mean, 0)
    shifted = raw - shift[:n_features]
    sq_norms = np.einsum("kd,kd->k", shifted, shifted)
    return Centers(raw, shift, shifted, np.ascontiguousarray(-shifted.T), sq_norms)


def make_scratch(n_clusters: int, n_features: int, dtype: np.dtype) -> Scratch:
    width = padded(n_features)
    product = None
    if n_features > BY_DIFFERENCES:
        product = Product(
            rows=np.zeros((LANES, width), dtype),
            near_gradient=np.empty((LANES, width), dtype),
            sq_norms=np.empty(LANES, dtype),
            near=np.empty(n_clusters, np.uint64),
        )
    return Scratch(np.empty((width, LANES), dtype), make_corner(dtype), product)


@jit(inner=True)
def load_rows(x, centers, scratch):
    """Rows x into the scratch; lanes without a row repeat the last one."""
    load_columns(x, centers.shift, scratch.columns, scratch.corner)
    _load_product(x, centers, scratch.product)


@jit(inner=True, reassociate=True)
def _load_product(x, centers, product):
    if product is None:
        return
    m, n_features = x.shape
    rows, shift = product.rows, centers.shift
    for lane in range(LANES):
        row = x[min(lane, m - 1)]
        for d in range(n_features):
            rows[lane, d] = row[d] - shift[d]
        norm = x.dtype.type(0)
        for d in range(n_features):
            norm += rows[lane, d] * rows[lane, d]
        product.sq_norms[lane] = norm


@jit(inner=True)
def sq_distance_tile(x, centers, scratch, out):
    """out (n_clusters, 64): squared distances of the loaded rows x to each center; fills product.near."""
    _sq_distances(x, centers, scratch.columns[: x.shape[1]], scratch.product, out)


@jit(inner=True, reassociate=True)
def _sq_distances(x, centers, columns, product, out):
    if product is None:
        sq_dists(centers.raw, columns, out, False)
        return
    sq_norms, near = product.sq_norms, product.near
    n_clusters = centers.raw.shape[0]
    gemm(centers.shifted, columns, out, False)
    two, share = x.dtype.type(2), x.dtype.type(NEAR)
    for j in range(n_clusters):
        center_norm = centers.sq_norms[j]
        tile = out[j]
        some_near = False
        for lane in range(LANES):
            norms = sq_norms[lane] + center_norm
            sq_dist = norms - two * tile[lane]
            some_near |= not sq_dist >= share * norms  # also where overflow made a NaN
            tile[lane] = sq_dist
        near[j] = _redo_near(x, centers.raw[j], sq_norms, center_norm, tile) if some_near else np.uint64(0)


@jit(inner=True, reassociate=True)
def _redo_near(x, center, sq_norms, center_norm, tile):
    """Squared distances to one center by differences, where the product lost digits; their mask."""
    share = x.dtype.type(NEAR)
    mask = np.uint64(0)
    for lane in range(LANES):
        is_near = not tile[lane] >= share * (sq_norms[lane] + center_norm)
        mask |= np.uint64(is_near) << np.uint64(lane)
    rest = mask
    while rest != 0:
        lane = lowest_bit(rest)
        rest &= rest - np.uint64(1)
        row = x[min(lane, x.shape[0] - 1)]
        total = x.dtype.type(0)
        for d in range(row.size):
            difference = row[d] - center[d]
            total += difference * difference
        tile[lane] = total
    return mask


@jit(inner=True)
def gradient_tile(x, centers, scratch, weights, grad_columns, grad_x, grad_centers):
    """Sums of w_jl (x_l - c_j): over centers into grad_x (rows as x), over rows added to grad_centers.

    ``weights`` (n_clusters, 64) are zero in lanes without a row; those of near pairs become zero on the way.
    grad_columns (padded, 64) is scratch, grad_centers (n_clusters, padded); rows of grad_x beyond
    the tile are not yet written. A gradient of no rows is not wanted.
    """
    need_x = grad_x.shape[0] > 0
    _gradients(x, centers, scratch.columns, scratch.product, weights, grad_columns, need_x, grad_centers)
    if need_x:
        store_columns(grad_columns, min(LANES, x.shape[0]), grad_x, scratch.corner)


@jit(inner=True)
def _gradients(x, centers, columns, product, weights, grad_columns, need_x, grad_centers):
    if product is None:
        if need_x:
            _grad_rows_by_differences(centers, columns, weights, grad_columns)
        if grad_centers.shape[0] > 0:
            _grad_centers_by_differences(columns, centers.raw, weights, grad_centers)
    else:
        some_near = _grad_near(x, centers.raw, product, weights, need_x, grad_centers)
        if need_x:
            _grad_rows_by_product(centers, columns, product, weights, grad_columns, some_near)
        if grad_centers.shape[0] > 0:
            _grad_centers_by_product(centers, product, weights, grad_centers)


@jit(inner=True)
def row_gradient_tile(x, centers, scratch, weights, grad_columns):
    """What ``gradient_tile`` sums up over centers, left in lanes (padded, 64); less code to compile."""
    _row_gradients(x, centers, scratch.columns, scratch.product, weights, grad_columns)


@jit(inner=True)
def _row_gradients(x, centers, columns, product, weights, grad_columns):
    if product is None:
        _grad_rows_by_differences(centers, columns, weights, grad_columns)
    else:
        some_near = _grad_near(x, centers.raw, product, weights, True, centers.raw[:0])
        _grad_rows_by_product(centers, columns, product, weights, grad_columns, some_near)


@jit(inner=True)
def _grad_rows_by_differences(centers, columns, weights, grad_columns):
    for d in range(centers.columns.shape[0]):
        for lane in range(LANES):
            grad_columns[d, lane] = columns[d, lane]
    weigh_differences(centers.columns, weights, grad_columns, False)


@jit(inner=True, reassociate=True)
def _grad_rows_by_product(centers, columns, product, weights, grad_columns, some_near):
    total = np.zeros(LANES, weights.dtype)
    for j in range(weights.shape[0]):
        for lane in range(LANES):
            total[lane] += weights[j, lane]
    for d in range(centers.columns.shape[0]):
        for lane in range(LANES):
            grad_columns[d, lane] = total[lane] * columns[d, lane]
        if some_near:
            for lane in range(LANES):
                grad_columns[d, lane] += product.near_gradient[lane, d]
    gemm(centers.columns, weights, grad_columns, True)


@jit(inner=True, reassociate=True)
def _grad_centers_by_product(centers, product, weights, grad_centers):
    n_clusters, n_features = centers.raw.shape
    for j in range(n_clusters):
        total = weights.dtype.type(0)
        for lane in range(LANES):
            total += weights[j, lane]
        for d in range(n_features):
            grad_centers[j, d] -= total * centers.shifted[j, d]
    gemm(weights, product.rows, grad_centers, True)


@jit(inner=True, reassociate=True)
def _grad_near(x, centers, product, weights, need_x, grad_centers):
    """Near pairs by differences: into near_gradient and grad_centers. Whether there were any."""
    gradient = product.near_gradient
    some_near = False
    for j in range(centers.shape[0]):
        rest = product.near[j]
        if rest != 0 and not some_near:
            gradient[:] = x.dtype.type(0)
            some_near = True
        while rest != 0:
            lane = lowest_bit(rest)
            rest &= rest - np.uint64(1)
            weight = weights[j, lane]
            weights[j, lane] = x.dtype.type(0)
            row = x[min(lane, x.shape[0] - 1)]
            if need_x:
                for d in range(row.size):
                    gradient[lane, d] += weight * (row[d] - centers[j, d])
            if grad_centers.shape[0] > 0:
                for d in range(row.size):
                    grad_centers[j, d] += weight * (row[d] - centers[j, d])
    return some_near


@jit(inner=True, reassociate=True)
def _grad_centers_by_differences(columns, centers, weights, grad_centers):
    n_clusters, n_features = centers.shape
    for j in range(n_clusters):
        weight = weights[j]
        for d in range(n_features):
            coordinate = centers[j, d]
            column = columns[d]
            total = columns.dtype.type(0)
            for lane in range(LANES):
                total += weight[lane] * (column[lane] - coordinate)
            grad_centers[j, d] += total

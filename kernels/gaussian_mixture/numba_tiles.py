"""Compiled blocks of the CPU kernels. A tile is (n_components, 64): 64 rows in lanes, their last ones unused.

Logarithms are to base 2. A row's responsibilities are computed in the dtype of the rows; what they weigh is summed
in float64, about one common shift: differences of float32 numbers and their products are exact there, so that
moments about the components' own means follow without loss.

The covariance type is the type of ``Mixture.shape``: each is compiled only where it is asked for.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import overload
from numpy.typing import NDArray

from fastdc.kernels._lanes import load_columns, padded
from fastdc.kernels._math import exp2, log2
from fastdc.kernels._numba import jit
from fastdc.kernels._simd import gemm, sq_dists
from fastdc.kernels._vectors import LANES, Vectors, index, intrinsic, loop

LN2 = math.log(2.0)
CHAINS = 4  # vectors of sums that stay in registers


class Diag(NamedTuple):
    means: NDArray  # (k, d)
    scales: NDArray  # (k, d) log2(e) / 2 / variance


class Spherical(NamedTuple):
    means: NDArray  # (k, d)
    scale: NDArray  # (k,) log2(e) / 2 / variance


class Tied(NamedTuple):
    whitened: NDArray  # (k, d) shifted means
    whitening: NDArray  # (d, d): sqrt(log2(e) / 2) times the inverse of the covariance's lower Cholesky factor


class Full(NamedTuple):
    means: NDArray  # (k, d)
    whitening: NDArray  # (k, d, d)


class Mixture(NamedTuple):
    shape: Any  # one of the four above
    log_norm: NDArray  # (k,) log2 of the weight and of the density at the mean
    shift: NDArray  # (padded,) subtracted from rows before they are whitened; zeros but for Tied
    origin: NDArray  # (d,) float64: moments are about it


class Scratch(NamedTuple):
    """What one worker owns."""

    columns: NDArray  # (padded, 64)
    corner: NDArray  # as load_columns wants it
    tile: NDArray  # (k, 64)
    whitened: NDArray  # (2, d, 64)
    largest: NDArray  # (64,)
    density: NDArray  # (64,)
    best: NDArray  # (64,) int32
    total: NDArray  # (64,) float64
    factor: NDArray  # (64,) float64
    weights: NDArray  # (k, 64) float64
    rows: NDArray  # (64, width of the moments) float64
    products: NDArray  # float64, of Tied and Full


class Sums(NamedTuple):
    """float64. ``scalars`` are the log-likelihood and the number of rows without one."""

    scalars: NDArray  # (2,)
    counts: NDArray  # (k,)
    moments: NDArray  # (k, width): weighted rows, then what the covariance type adds
    products: NDArray  # weighted products of features: (d * padded,) of Tied, blocks of (k, width) of Full


@intrinsic
def weighted_sq_dist(typingctx, columns, means, scales, j, out):
    """out[j, l] = sum over d of scales[j, d] (columns[d, l] - means[j, d])^2, all sums in registers."""

    def codegen(context, builder, signature, args):
        v = Vectors(context, builder, signature.args[0].dtype)
        array = context.make_array(signature.args[1])(context, builder, args[1])
        _, n_features = cgutils.unpack_tuple(builder, array.shape)
        start = builder.mul(args[3], n_features)
        mean_row, scale_row = (v.data(signature.args[i], args[i], start) for i in (1, 2))
        target = v.data(signature.args[4], args[4], builder.mul(args[3], index(LANES)))
        for first in range(0, LANES, CHAINS * v.size):
            lanes = range(first, min(LANES, first + CHAINS * v.size), v.size)
            source = v.data(signature.args[0], args[0], index(0))

            def body(d, sums, lanes=lanes, source=source):
                mean = v.broadcast(builder.load(v.at(mean_row, d), typ=v.scalar))
                scale = v.broadcast(builder.load(v.at(scale_row, d), typ=v.scalar))
                row = v.at(source, builder.mul(d, index(LANES)))
                differences = [builder.fsub(v.load(v.at(row, index(lane))), mean) for lane in lanes]
                return [v.fma(builder.fmul(t, t), scale, partial) for t, partial in zip(differences, sums)]

            sums = loop(builder, n_features, [v.zeros()] * len(lanes), body)
            for lane, value in zip(lanes, sums):
                v.store(value, v.at(target, index(lane)))
        return context.get_dummy_value()

    return types.void(columns, means, scales, types.intp, out), codegen


def sq_distances(shape: Any, columns: Any, whitened: Any, out: Any) -> None:
    """log2(e) / 2 times the squared Mahalanobis distances of the loaded rows into out (k, 64)."""
    raise RuntimeError("only for use inside kernels")


@overload(sq_distances, inline="never")
def _sq_distances(shape, columns, whitened, out):
    def of_diag(shape, columns, whitened, out):
        for j in range(out.shape[0]):
            weighted_sq_dist(columns, shape.means, shape.scales, j, out)

    def of_spherical(shape, columns, whitened, out):
        sq_dists(shape.means, columns[: shape.means.shape[1]], out, False)
        for j in range(out.shape[0]):
            for lane in range(LANES):
                out[j, lane] *= shape.scale[j]

    def of_tied(shape, columns, whitened, out):
        n_features = shape.whitening.shape[0]
        gemm(shape.whitening, columns[:n_features], whitened[0], False)
        sq_dists(shape.whitened, whitened[0], out, False)

    def of_full(shape, columns, whitened, out):
        n_features = shape.means.shape[1]
        for j in range(out.shape[0]):
            for d in range(n_features):
                mean = shape.means[j, d]
                for lane in range(LANES):
                    whitened[0, d, lane] = columns[d, lane] - mean
            gemm(shape.whitening[j], whitened[0], whitened[1], False)
            for lane in range(LANES):
                out[j, lane] = whitened[1, 0, lane] * whitened[1, 0, lane]
            for d in range(1, n_features):
                for lane in range(LANES):
                    out[j, lane] += whitened[1, d, lane] * whitened[1, d, lane]

    return {Diag: of_diag, Spherical: of_spherical, Tied: of_tied, Full: of_full}[shape.instance_class]


@jit(inner=True)
def _log_joint_tile(x, mixture, scratch):
    """scratch.tile: log2 of the joint density of up to 64 rows."""
    tile, log_norm = scratch.tile, mixture.log_norm
    load_columns(x, mixture.shift, scratch.columns, scratch.corner)
    sq_distances(mixture.shape, scratch.columns, scratch.whitened, tile)
    for j in range(tile.shape[0]):
        for lane in range(LANES):
            tile[j, lane] = log_norm[j] - tile[j, lane]


@jit(inner=True)
def exponentials(tile, largest, total):
    """Logarithms become 2^(logarithm - largest of the lane); their sums, NaN where no logarithm is finite."""
    for lane in range(LANES):
        largest[lane] = -np.inf
        total[lane] = 0.0
    for j in range(tile.shape[0]):
        row = tile[j]
        for lane in range(LANES):
            largest[lane] = row[lane] if row[lane] > largest[lane] else largest[lane]
    for j in range(tile.shape[0]):
        row = tile[j]
        for lane in range(LANES):
            row[lane] = exp2(row[lane] - largest[lane])
    for j in range(tile.shape[0]):
        row = tile[j]
        for lane in range(LANES):
            total[lane] += row[lane]


@jit(inner=True)
def _log_densities(largest, total, out):
    """Natural logarithm of the density of each lane; NaN where it has none."""
    number = largest.dtype.type
    for lane in range(LANES):
        value = (largest[lane] + log2(number(total[lane]))) * number(LN2)
        out[lane] = value if total[lane] > 0 else number(np.nan)


@jit
def rows_block(x, mixture, scratch, gamma, log_density, labels):
    """Of rows x (m, d): responsibilities (m, k) unless gamma has no rows, natural log density and label (m,)."""
    tile, total = scratch.tile, scratch.total
    for start in range(0, x.shape[0], LANES):
        used = min(LANES, x.shape[0] - start)
        _log_joint_tile(x[start:], mixture, scratch)
        _most_probable(tile, scratch.largest, scratch.best)
        exponentials(tile, scratch.largest, total)
        _log_densities(scratch.largest, total, scratch.density)
        for lane in range(used):
            log_density[start + lane] = scratch.density[lane]
            labels[start + lane] = scratch.best[lane] if total[lane] > 0 else -1
        if gamma.shape[0] > 0:
            for lane in range(used):
                factor = x.dtype.type(1.0 / total[lane])
                for j in range(tile.shape[0]):
                    gamma[start + lane, j] = tile[j, lane] * factor


@jit(inner=True)
def _most_probable(tile, largest, best):
    """best: of each lane the first component with the largest logarithm."""
    for lane in range(LANES):
        largest[lane], best[lane] = tile[0, lane], 0
    for j in range(1, tile.shape[0]):
        row, component = tile[j], np.int32(j)
        for lane in range(LANES):
            best[lane] = component if row[lane] > largest[lane] else best[lane]
        for lane in range(LANES):
            largest[lane] = row[lane] if row[lane] > largest[lane] else largest[lane]


@jit
def step_block(x, mixture, scratch, sample_weight, sums):
    """Adds what rows x (m, d) are worth to the sums; a sample_weight of no entries is one for each row."""
    for start in range(0, x.shape[0], LANES):
        part = x[start : start + LANES]
        _log_joint_tile(x[start:], mixture, scratch)
        exponentials(scratch.tile, scratch.largest, scratch.total)
        _log_densities(scratch.largest, scratch.total, scratch.density)
        log_likelihood, n_invalid = _row_factors(scratch, sample_weight[start:], part.shape[0])
        sums.scalars[0] += log_likelihood
        sums.scalars[1] += n_invalid
        _weigh(scratch, n_invalid > 0)
        _add_counts(scratch.weights, sums.counts)
        _load_differences(part, mixture.origin, scratch.factor, scratch.rows)
        add_moments(mixture.shape, part.shape[1], scratch, sums)


@jit(inner=True)
def _row_factors(scratch, sample_weight, used):
    """factor: the row's weight over the sum of its exponentials, zero for rows that are none or not finite."""
    log_likelihood, n_invalid = 0.0, 0
    for lane in range(LANES):
        scratch.factor[lane] = 0.0
    for lane in range(used):
        weight = sample_weight[lane] if sample_weight.size > 0 else 1.0
        if scratch.total[lane] > 0:
            scratch.factor[lane] = weight / scratch.total[lane]
            log_likelihood += weight * np.float64(scratch.density[lane])
        else:
            n_invalid += 1
    return log_likelihood, n_invalid


@jit(inner=True)
def _weigh(scratch, some_invalid):
    tile, factor = scratch.tile, scratch.factor
    if some_invalid:
        for j in range(tile.shape[0]):
            for lane in range(LANES):
                tile[j, lane] = tile[j, lane] if factor[lane] != 0 else tile.dtype.type(0)
    for j in range(tile.shape[0]):
        for lane in range(LANES):
            scratch.weights[j, lane] = tile[j, lane] * factor[lane]


@jit(inner=True, reassociate=True)
def _add_counts(weights, counts):
    for j in range(weights.shape[0]):
        row, total = weights[j], 0.0
        for lane in range(LANES):
            total += row[lane]
        counts[j] += total


@jit(inner=True)
def _load_differences(x, origin, factor, rows):
    """Rows less the origin in float64, zero in lanes that do not count."""
    for lane in range(LANES):
        if lane < x.shape[0] and factor[lane] != 0:
            for d in range(x.shape[1]):
                rows[lane, d] = np.float64(x[lane, d]) - origin[d]
        else:
            for d in range(x.shape[1]):
                rows[lane, d] = 0.0


def add_moments(shape: Any, n_features: Any, scratch: Any, sums: Any) -> None:
    """Add weighted rows, and their weighted products as the covariance type wants them."""
    raise RuntimeError("only for use inside kernels")


@overload(add_moments, inline="never")
def _add_moments(shape, n_features, scratch, sums):
    def of_diag(shape, n_features, scratch, sums):
        rows = scratch.rows
        for lane in range(LANES):
            for d in range(n_features):
                rows[lane, n_features + d] = rows[lane, d] * rows[lane, d]
        gemm(scratch.weights, rows, sums.moments, True)

    def of_spherical(shape, n_features, scratch, sums):
        rows = scratch.rows
        for lane in range(LANES):
            total = 0.0
            for d in range(n_features):
                total += rows[lane, d] * rows[lane, d]
            rows[lane, n_features] = total
        gemm(scratch.weights, rows, sums.moments, True)

    def of_tied(shape, n_features, scratch, sums):
        rows, total = scratch.rows, scratch.total
        gemm(scratch.weights, rows, sums.moments, True)
        total[:] = 0.0
        for j in range(scratch.weights.shape[0]):
            for lane in range(LANES):
                total[lane] += scratch.weights[j, lane]
        weighted = scratch.products.reshape((n_features, LANES))
        for d in range(n_features):
            for lane in range(LANES):
                weighted[d, lane] = rows[lane, d] * total[lane]
        gemm(weighted, rows, sums.products.reshape((n_features, rows.shape[1])), True)

    def of_full(shape, n_features, scratch, sums):
        rows, k = scratch.rows, scratch.weights.shape[0]
        gemm(scratch.weights, rows, sums.moments, True)
        place = 0
        for d in range(n_features):
            first = d // 16 * 16  # products with the features before are known already
            width = rows.shape[1] - first
            products = scratch.products[: LANES * width].reshape((LANES, width))
            for lane in range(LANES):
                for e in range(width):
                    products[lane, e] = rows[lane, d] * rows[lane, first + e]
            gemm(scratch.weights, products, sums.products[place : place + k * width].reshape((k, width)), True)
            place += k * width

    return {Diag: of_diag, Spherical: of_spherical, Tied: of_tied, Full: of_full}[shape.instance_class]


def moment_width(shape: Any, n_features: int) -> int:
    """Columns of ``Sums.moments``."""
    return padded({Diag: 2 * n_features, Spherical: n_features + 1}.get(type(shape), n_features))


def product_widths(n_features: int) -> list[int]:
    """Columns of the blocks in which products of Full are summed, one a feature."""
    return [padded(n_features) - d // 16 * 16 for d in range(n_features)]

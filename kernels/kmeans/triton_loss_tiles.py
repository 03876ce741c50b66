"""Triton kernels of the soft k-means loss: a block of rows or a part of all rows against one tile of centers after
the other. Never is there an (N, K) matrix.

A row keeps its *smallest* squared distance, its *mass*, the sum over centers of exp((smallest - sq_dist) / T), and
its *excess*, the weighted mean of sq_dist - smallest. ``scalars`` holds 1 / T and the factor of the gradients.
Points are described in ``_triton_tile.py``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdc.kernels._triton_tile import add_center_gradient, add_row_gradient, sq_dist_tile

RUNTIME = ["N", "K", "rows_a_split"]  # neither a size of 1 nor a multiple of 16 compiles anew


@triton.jit
def capped(value, ACC: tl.constexpr):
    """What has no weight at any temperature stays finite; NaN remains."""
    LARGEST: tl.constexpr = 1e300 if ACC == tl.float64 else 1e36
    return tl.where(value > LARGEST, LARGEST, value)


@triton.jit(do_not_specialize=RUNTIME)
def _kmeans_soft_mass_kernel(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
    smallest_ptr, mass_ptr, excess_ptr, scalars_ptr,
    N, K, D,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """smallest, mass and excess (N,) of BLOCK_N rows."""
    ACC: tl.constexpr = mass_ptr.dtype.element_ty
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    inverse = tl.load(scalars_ptr)
    zero = tl.zeros([BLOCK_N], ACC)
    smallest = zero + float("inf")
    mass, excess = zero, zero
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        mask_k = (offs_k < K)[None, :]
        sq_dists, _ = sq_dist_tile(
            x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
            offs_n, offs_k, N, K, D, ACC, PRECISION, BLOCK_D,
        )  # fmt: skip
        nearest = tl.min(tl.where(mask_k, sq_dists, float("inf")), axis=1)
        smaller = tl.minimum(smallest, nearest)
        nearer_by = tl.where(mass > 0.0, capped(smallest - smaller, ACC), 0.0)
        shrink = tl.exp(-nearer_by * inverse)
        value = sq_dists - tl.where(smaller == float("inf"), 0.0, smaller)[:, None]  # all may be out of range so far
        value = capped(value, ACC)
        weight = tl.where(mask_k, tl.exp(-value * inverse), 0.0)
        excess = shrink * (excess + nearer_by * mass) + tl.sum(tl.where(mask_k, weight * value, 0.0), axis=1)
        mass = shrink * mass + tl.sum(weight, axis=1)
        smallest = smaller
    tl.store(smallest_ptr + offs_n, smallest, mask=mask_n)
    tl.store(mass_ptr + offs_n, mass, mask=mask_n)
    tl.store(excess_ptr + offs_n, excess / mass, mask=mask_n)


@triton.jit
def _gradient_tile(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
    smallest_ptr, mass_ptr, excess_ptr, scalars_ptr,
    offs_n, offs_k, N, K, D,
    PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(weights of x - c in the gradient, near pairs), each [BLOCK_N, BLOCK_K] and zero outside."""
    ACC: tl.constexpr = mass_ptr.dtype.element_ty
    mask_n, mask_k = offs_n < N, offs_k < K
    sq_dists, near = sq_dist_tile(
        x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
        offs_n, offs_k, N, K, D, ACC, PRECISION, BLOCK_D,
    )  # fmt: skip
    inverse, scale = tl.load(scalars_ptr), tl.load(scalars_ptr + 1)
    smallest = tl.load(smallest_ptr + offs_n, mask=mask_n, other=0.0)
    mass = tl.load(mass_ptr + offs_n, mask=mask_n, other=1.0)
    excess = tl.load(excess_ptr + offs_n, mask=mask_n, other=0.0)
    value = capped(sq_dists - smallest[:, None], ACC)
    weight = tl.exp(-value * inverse) * (scale / mass)[:, None]
    slope = weight * (1.0 - (value - excess[:, None]) * inverse)
    return tl.where(mask_n[:, None] & mask_k[None, :], slope, 0.0), near


@triton.jit(do_not_specialize=RUNTIME)
def _kmeans_soft_rows_kernel(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
    smallest_ptr, mass_ptr, excess_ptr, scalars_ptr, grad_ptr,
    N, K, D,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient of BLOCK_N rows into grad (N, D)."""
    ACC: tl.constexpr = mass_ptr.dtype.element_ty
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        weights, near = _gradient_tile(
            x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
            smallest_ptr, mass_ptr, excess_ptr, scalars_ptr, offs_n, offs_k, N, K, D, PRECISION, BLOCK_D,
        )  # fmt: skip
        add_row_gradient(
            x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
            weights, near, grad_ptr, start, offs_n, offs_k, N, K, D, ACC, PRECISION, BLOCK_D,
        )  # fmt: skip


@triton.jit(do_not_specialize=RUNTIME)
def _kmeans_soft_centers_kernel(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
    smallest_ptr, mass_ptr, excess_ptr, scalars_ptr, partial_ptr, rows_a_split,
    N, K, D,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Minus the gradient of one tile of centers from one part of the rows, into partial (parts, K, D)."""
    ACC: tl.constexpr = mass_ptr.dtype.element_ty
    split = tl.program_id(0).to(tl.int64)
    offs_k = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    first = split * rows_a_split
    for start in range(first, tl.minimum(first + rows_a_split, N), BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        weights, near = _gradient_tile(
            x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
            smallest_ptr, mass_ptr, excess_ptr, scalars_ptr, offs_n, offs_k, N, K, D, PRECISION, BLOCK_D,
        )  # fmt: skip
        add_center_gradient(
            x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
            weights, near, partial_ptr + split * K * D, start - first,
            offs_n, offs_k, N, K, D, ACC, PRECISION, BLOCK_D,
        )  # fmt: skip

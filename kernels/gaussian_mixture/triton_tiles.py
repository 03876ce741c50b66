"""Triton kernels of mixtures with diagonal covariances: rows against one tile of components after the other.

Never is there an (N, K) matrix but the responsibilities asked for. Distances are made of differences, a feature at
a time. ``p_ptr`` are 1 / variances; a spherical mixture has ``stride_pd`` 0. A row keeps two numbers between
kernels: the *largest* logarithm of its joint densities, and the *total* of their exponentials relative to it.
Sums over rows are made in parts by programs of their own, and added up in a fixed order by the caller.
"""

from __future__ import annotations

import triton
import triton.language as tl

RUNTIME = ["N", "K", "rows_a_split"]  # neither a size of 1 nor a multiple of 16 compiles anew


@triton.jit
def load_feature(ptr, stride_row, stride_column, rows, d, mask, ACC: tl.constexpr):
    """Feature d of the rows; zero where masked."""
    return tl.load(ptr + rows * stride_row + tl.cast(d, tl.int64) * stride_column, mask=mask, other=0.0).to(ACC)


@triton.jit
def log_joint_tile(
    x_ptr, stride_xn, stride_xd, m_ptr, stride_mk, stride_md, p_ptr, stride_pk, stride_pd, norm_ptr,
    offs_n, offs_k, N, K, D, ACC: tl.constexpr,
):  # fmt: skip
    """log (weight N(x)) [BLOCK_N, BLOCK_K]; minus infinity beyond K."""
    mask_n, mask_k = offs_n < N, offs_k < K
    sq_dists = tl.zeros([offs_n.shape[0], offs_k.shape[0]], ACC)
    for d in range(0, D):
        x = load_feature(x_ptr, stride_xn, stride_xd, offs_n, d, mask_n, ACC)
        mean = load_feature(m_ptr, stride_mk, stride_md, offs_k, d, mask_k, ACC)
        p = load_feature(p_ptr, stride_pk, stride_pd, offs_k, d, mask_k, ACC)
        difference = x[:, None] - mean[None, :]
        sq_dists += difference * difference * p[None, :]
    norm = tl.load(norm_ptr + offs_k, mask=mask_k, other=float("-inf"))
    return norm[None, :] - 0.5 * sq_dists


@triton.jit
def finite_or_zero(x):
    return tl.where(x == float("-inf"), 0.0, x)


@triton.jit(do_not_specialize=RUNTIME)
def _gmm_rows_kernel(
    x_ptr, stride_xn, stride_xd, m_ptr, stride_mk, stride_md, p_ptr, stride_pk, stride_pd, norm_ptr,
    largest_ptr, total_ptr, labels_ptr, N, K, D,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """largest and total (N,) of BLOCK_N rows; labels (N,), of equally probable components the first, -1 for none."""
    ACC: tl.constexpr = largest_ptr.dtype.element_ty
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    largest = tl.zeros([BLOCK_N], ACC) - float("inf")
    total = tl.zeros([BLOCK_N], ACC)
    label = tl.zeros([BLOCK_N], tl.int32)
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        tile = log_joint_tile(
            x_ptr, stride_xn, stride_xd, m_ptr, stride_mk, stride_md, p_ptr, stride_pk, stride_pd, norm_ptr,
            offs_n, offs_k, N, K, D, ACC,
        )  # fmt: skip
        candidates = tl.where(tile == tile, tile, float("-inf"))
        top = tl.max(candidates, axis=1)
        first = tl.argmax(candidates, axis=1, tie_break_left=True)
        label = tl.where(top > largest, start + first, label)
        larger = tl.maximum(largest, top)
        shift = finite_or_zero(larger)  # as long as nothing is finite
        total = total * tl.exp(largest - shift) + tl.sum(tl.exp(tile - shift[:, None]), axis=1)
        largest = larger
    valid = (total > 0.0) & (largest > float("-inf"))
    mask_n = offs_n < N
    tl.store(largest_ptr + offs_n, largest, mask=mask_n)
    tl.store(total_ptr + offs_n, tl.where(valid, total, float("nan")), mask=mask_n)
    tl.store(labels_ptr + offs_n, tl.where(valid, label, -1).to(tl.int64), mask=mask_n)


@triton.jit
def responsibility_tile(
    x_ptr, stride_xn, stride_xd, m_ptr, stride_mk, stride_md, p_ptr, stride_pk, stride_pd, norm_ptr,
    largest_ptr, total_ptr, offs_n, offs_k, N, K, D,
):  # fmt: skip
    """gamma [BLOCK_N, BLOCK_K]; NaN in rows without a density."""
    ACC: tl.constexpr = largest_ptr.dtype.element_ty
    tile = log_joint_tile(
        x_ptr, stride_xn, stride_xd, m_ptr, stride_mk, stride_md, p_ptr, stride_pk, stride_pd, norm_ptr,
        offs_n, offs_k, N, K, D, ACC,
    )  # fmt: skip
    largest = tl.load(largest_ptr + offs_n, mask=offs_n < N, other=0.0)
    total = tl.load(total_ptr + offs_n, mask=offs_n < N, other=1.0)
    return tl.exp(tile - largest[:, None]) / total[:, None]


@triton.jit(do_not_specialize=RUNTIME)
def _gmm_responsibilities_kernel(
    x_ptr, stride_xn, stride_xd, m_ptr, stride_mk, stride_md, p_ptr, stride_pk, stride_pd, norm_ptr,
    largest_ptr, total_ptr, gamma_ptr, N, K, D,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of gamma (N, K)."""
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    gamma = responsibility_tile(
        x_ptr, stride_xn, stride_xd, m_ptr, stride_mk, stride_md, p_ptr, stride_pk, stride_pd, norm_ptr,
        largest_ptr, total_ptr, offs_n, offs_k, N, K, D,
    )  # fmt: skip
    mask = (offs_n < N)[:, None] & (offs_k < K)[None, :]
    tl.store(gamma_ptr + offs_n[:, None] * K + offs_k[None, :], gamma, mask=mask)


@triton.jit(do_not_specialize=RUNTIME)
def _gmm_moments_kernel(
    x_ptr, stride_xn, stride_xd, m_ptr, stride_mk, stride_md, p_ptr, stride_pk, stride_pd, norm_ptr,
    largest_ptr, total_ptr, weight_ptr, counts_ptr, sums_ptr, squares_ptr, rows_a_split, N, K, D,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums over one part of the rows, for one tile of components: of weights (parts, K), of differences to the
    means and of their squares (parts, K, D), all float64; ``weight_ptr`` (N,) is zero for rows without a density.
    """
    ACC: tl.constexpr = largest_ptr.dtype.element_ty
    split = tl.program_id(0).to(tl.int64)
    offs_k = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask_k = offs_k < K
    first = split * rows_a_split
    counts = tl.zeros([BLOCK_K], tl.float64)
    for start in range(first, tl.minimum(first + rows_a_split, N), BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < N
        gamma = responsibility_tile(
            x_ptr, stride_xn, stride_xd, m_ptr, stride_mk, stride_md, p_ptr, stride_pk, stride_pd, norm_ptr,
            largest_ptr, total_ptr, offs_n, offs_k, N, K, D,
        )  # fmt: skip
        weight = tl.load(weight_ptr + offs_n, mask=mask_n, other=0.0)
        gamma = tl.where(weight[:, None] == 0.0, 0.0, gamma * weight[:, None])
        counts += tl.sum(gamma, axis=0).to(tl.float64)
        tl.debug_barrier()  # other threads may have stored what is loaded here
        for d in range(0, D):
            x = load_feature(x_ptr, stride_xn, stride_xd, offs_n, d, mask_n & (weight != 0.0), ACC)
            mean = load_feature(m_ptr, stride_mk, stride_md, offs_k, d, mask_k, ACC)
            difference = x[:, None] - mean[None, :]
            weighted = gamma * tl.where(gamma == 0.0, 0.0, difference)  # no zero times infinity
            place = (split * K + offs_k) * D + d
            again = mask_k & (offs_k * 0 + start > first)
            total = tl.load(sums_ptr + place, mask=again, other=0.0)
            tl.store(sums_ptr + place, total + tl.sum(weighted, axis=0).to(tl.float64), mask=mask_k)
            total = tl.load(squares_ptr + place, mask=again, other=0.0)
            tl.store(squares_ptr + place, total + tl.sum(weighted * difference, axis=0).to(tl.float64), mask=mask_k)
    tl.store(counts_ptr + split * K + offs_k, counts, mask=mask_k)

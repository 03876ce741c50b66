"""Triton kernels of losses over all pairs: a program owns a block of rows and meets all rows in turn."""

from __future__ import annotations

import triton
import triton.language as tl

from fastdc.kernels._triton_tile import add_row_gradient, add_to, dot, load_tile, sq_dist_tile
from fastdc.kernels.pairwise.triton_tiles import RUNTIME, largest_number


@triton.jit
def product_tile(
    x_ptr, stride_n, stride_d, offs_n, offs_k, N, D, ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """x x^T for two sets of rows, [BLOCK_N, BLOCK_K]; zero beyond N."""
    mask_n, mask_k = offs_n < N, offs_k < N
    total = tl.zeros([offs_n.shape[0], offs_k.shape[0]], ACC)
    if PRECISION == "ieee":
        for d in range(0, D):
            offs_d = tl.cast(d, tl.int64)
            a = tl.load(x_ptr + offs_n * stride_n + offs_d * stride_d, mask=mask_n, other=0.0)
            b = tl.load(x_ptr + offs_k * stride_n + offs_d * stride_d, mask=mask_k, other=0.0)
            total += a[:, None] * b[None, :]
    else:
        for start in range(0, D, BLOCK_D):
            offs_d = start + tl.arange(0, BLOCK_D)
            a = load_tile(x_ptr, stride_n, stride_d, offs_n, offs_d, mask_n, offs_d < D)
            b = load_tile(x_ptr, stride_d, stride_n, offs_d, offs_k, offs_d < D, mask_k)
            total += dot(a, b, PRECISION)
    return total


@triton.jit
def add_product_gradient(
    x_ptr, stride_n, stride_d, weights, grad_ptr, n_before, offs_n, offs_k, N, D,
    PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Weights times the rows offs_k into grad (N, D): added to it where n_before > 0, else stored."""
    mask_n, mask_k = offs_n < N, offs_k < N
    again = mask_n & (offs_n * 0 + n_before > 0)
    tl.debug_barrier()  # other threads may have stored what is loaded here
    if PRECISION == "ieee":
        for d in range(0, D):
            offs_d = tl.cast(d, tl.int64)
            b = tl.load(x_ptr + offs_k * stride_n + offs_d * stride_d, mask=mask_k, other=0.0)
            pointers = grad_ptr + offs_n * D + d
            before = tl.load(pointers, mask=again, other=0.0)
            tl.store(pointers, before + tl.sum(weights * b[None, :], axis=1), mask=mask_n)
    else:
        for start in range(0, D, BLOCK_D):
            offs_d = start + tl.arange(0, BLOCK_D)
            b = load_tile(x_ptr, stride_n, stride_d, offs_k, offs_d, mask_k, offs_d < D)
            add_to(grad_ptr, D, offs_n, offs_d, dot(weights, b, PRECISION), again, mask_n, offs_d < D)


@triton.jit(do_not_specialize=RUNTIME)
def _pairwise_bce_kernel(
    x_ptr, stride_xn, stride_xd, labels_ptr, chooser_ptr, limits_ptr, totals_ptr, grad_ptr, N, D,
    HAS_LABELS: tl.constexpr, HAS_CHOOSER: tl.constexpr, NEED_GRADIENT: tl.constexpr,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Loss and number of selected pairs of BLOCK_N rows into totals (programs, 2), float64.

    chooser (N, D): points whose products choose pairs. grad (N, D): the sums over points of the loss's derivative
    times the point. limits: upper, lower, eps.
    """
    pid = tl.program_id(0).to(tl.int64)
    offs_n = pid * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    eps = tl.load(limits_ptr + 2)
    if HAS_LABELS:
        label = tl.load(labels_ptr + offs_n, mask=mask_n, other=-1)
    loss = tl.zeros([BLOCK_N], tl.float64)
    count = tl.zeros([BLOCK_N], tl.int32)
    for start in range(0, N, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        g = product_tile(x_ptr, stride_xn, stride_xd, offs_n, offs_k, N, D, ACC, PRECISION, BLOCK_D)
        selected = mask_n[:, None] & (offs_k < N)[None, :] & (offs_n[:, None] != offs_k[None, :])
        if HAS_LABELS:
            point = tl.load(labels_ptr + offs_k, mask=offs_k < N, other=-1)
            positive = label[:, None] == point[None, :]
            selected = selected & (label[:, None] >= 0) & (point[None, :] >= 0)
        else:
            chosen = g
            if HAS_CHOOSER:
                chosen = product_tile(chooser_ptr, D, 1, offs_n, offs_k, N, D, ACC, PRECISION, BLOCK_D)
            positive = chosen >= tl.load(limits_ptr)
            selected = selected & (positive | ((chosen >= tl.load(limits_ptr + 1)) == 0))  # NaN is negative: it shows
        sign = tl.where(selected & (g >= 0.0) & (g <= 1.0), tl.where(positive, -1.0, 1.0), 0.0).to(ACC)
        count += tl.sum(selected.to(tl.int32), axis=1)
        g = tl.where(g > 1.0, 1.0, tl.where(g < 0.0, 0.0, g))
        value = tl.where(positive, g, 1.0 - g) + eps
        loss -= tl.sum(tl.where(selected, tl.log(value), 0.0), axis=1).to(tl.float64)
        if NEED_GRADIENT:
            add_product_gradient(
                x_ptr, stride_xn, stride_xd, sign / value, grad_ptr, start, offs_n, offs_k, N, D, PRECISION, BLOCK_D
            )  # fmt: skip
    tl.store(totals_ptr + 2 * pid, tl.sum(loss, axis=0))
    tl.store(totals_ptr + 2 * pid + 1, tl.sum(count.to(tl.float64), axis=0))


@triton.jit
def powers_of(exponent, wanted, lowest, total):
    """(lowest exponent met so far, sum of 2^(lowest - exponent) of those wanted), a tile later."""
    # infinite exponents weigh nothing, NaN stays
    LARGEST: tl.constexpr = largest_number(exponent.dtype) / 4.0
    exponent = tl.where(wanted, tl.where(exponent > LARGEST, LARGEST, exponent), LARGEST)
    lower = tl.minimum(lowest, tl.min(tl.where(exponent == exponent, exponent, LARGEST), axis=1))
    powers = tl.where(wanted & ((exponent < LARGEST) | (exponent != exponent)), tl.exp2(lower[:, None] - exponent), 0.0)
    return lower, total * tl.exp2(lower - lowest).to(tl.float64) + tl.sum(powers, axis=1).to(tl.float64)


@triton.jit(do_not_specialize=RUNTIME)
def _neighbor_rows_kernel(
    x_ptr, stride_xn, stride_xd, shifted_ptr, labels_ptr, scale_ptr, rows_ptr, N, D,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Of BLOCK_N rows into rows (4, N): log2 of the sums over all others and over those of the same label of
    2^(-scale d^2), the share of other labels in the first, and the loss; NaN where no label is the same.
    """
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    label = tl.load(labels_ptr + offs_n, mask=mask_n, other=-1)
    scale = tl.load(scale_ptr)
    LARGEST: tl.constexpr = largest_number(ACC) / 4.0
    low_same = tl.full([BLOCK_N], LARGEST, ACC)
    low_rest = tl.full([BLOCK_N], LARGEST, ACC)
    sum_same = tl.zeros([BLOCK_N], tl.float64)
    sum_rest = tl.zeros([BLOCK_N], tl.float64)
    for start in range(0, N, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        sq_dists, _ = sq_dist_tile(
            x_ptr, stride_xn, stride_xd, x_ptr, stride_xn, stride_xd, shifted_ptr, offs_n, offs_k, N, N, D,
            ACC, PRECISION, BLOCK_D,
        )  # fmt: skip
        exponent = sq_dists * scale
        point = tl.load(labels_ptr + offs_k, mask=offs_k < N, other=-1)
        same = label[:, None] == point[None, :]
        others = (offs_n[:, None] != offs_k[None, :]) & (offs_k < N)[None, :]
        low_same, sum_same = powers_of(exponent, others & same, low_same, sum_same)
        low_rest, sum_rest = powers_of(exponent, others & (same == 0), low_rest, sum_rest)
    log_same = tl.log2(sum_same) - low_same.to(tl.float64)  # NaN in what follows where there is none
    ratio = tl.log2(sum_rest) - low_rest.to(tl.float64) - log_same  # log2 of the ratio of the two sums
    ratio = tl.where(sum_rest == 0.0, float("-inf"), ratio)
    large = ratio > 60.0
    power = tl.exp2(tl.where(large, 0.0, ratio))
    extra = tl.where(large, ratio, tl.log2(1.0 + power))
    share = tl.where(large, 1.0, power / (1.0 + power))
    n_rows = N.to(tl.int64)
    tl.store(rows_ptr + offs_n, (log_same + extra).to(ACC), mask=mask_n)
    tl.store(rows_ptr + n_rows + offs_n, log_same.to(ACC), mask=mask_n)
    tl.store(rows_ptr + 2 * n_rows + offs_n, share.to(ACC), mask=mask_n)
    tl.store(rows_ptr + 3 * n_rows + offs_n, (extra * 0.6931471805599453).to(ACC), mask=mask_n)


@triton.jit(do_not_specialize=RUNTIME)
def _neighbor_gradient_kernel(
    x_ptr, stride_xn, stride_xd, shifted_ptr, labels_ptr, scale_ptr, rows_ptr, grad_ptr, N, D,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sums over points of the loss's derivative by d^2 scale ln 2, of both rows of a pair, times their difference.

    rows (4, N): log2 of the sum over all others and over the same label, share of other labels, and weight: 0
    for rows that are left out.
    """
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    label = tl.load(labels_ptr + offs_n, mask=mask_n, other=-1)
    scale = tl.load(scale_ptr)
    for start in range(0, N, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        mask_k = offs_k < N
        sq_dists, near = sq_dist_tile(
            x_ptr, stride_xn, stride_xd, x_ptr, stride_xn, stride_xd, shifted_ptr, offs_n, offs_k, N, N, D,
            ACC, PRECISION, BLOCK_D,
        )  # fmt: skip
        exponent = -sq_dists * scale
        same = label[:, None] == tl.load(labels_ptr + offs_k, mask=mask_k, other=-1)[None, :]
        weights = _own_weight(rows_ptr, offs_n[:, None], N, exponent, same)
        weights += _own_weight(rows_ptr, offs_k[None, :], N, exponent, same)
        inside = mask_n[:, None] & mask_k[None, :] & (offs_n[:, None] != offs_k[None, :])
        add_row_gradient(
            x_ptr, stride_xn, stride_xd, x_ptr, stride_xn, stride_xd, shifted_ptr,
            tl.where(inside, weights, 0.0), near, grad_ptr, start, offs_n, offs_k, N, N, D, ACC, PRECISION, BLOCK_D,
        )  # fmt: skip


@triton.jit
def _own_weight(rows_ptr, offs, N, exponent, same):
    """The derivative of the losses of rows ``offs``."""
    mask, n_rows = offs < N, N.to(tl.int64)
    log_all = tl.load(rows_ptr + offs, mask=mask, other=0.0)
    log_same = tl.load(rows_ptr + n_rows + offs, mask=mask, other=0.0)
    share = tl.load(rows_ptr + 2 * n_rows + offs, mask=mask, other=0.0)
    weight = tl.load(rows_ptr + 3 * n_rows + offs, mask=mask, other=0.0)
    return weight * tl.exp2(exponent - tl.where(same, log_same, log_all)) * tl.where(same, share, -1.0)

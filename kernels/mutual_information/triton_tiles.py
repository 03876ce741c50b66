"""Triton kernels: a block of rows of one head against one tile of clusters after the other.

A block is read once from memory; the passes that follow find it in cache. ``x_ptr`` is (heads, N, K) of any
strides; where sums over rows are made, programs make them in parts that the caller adds up in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

RUNTIME = ["N", "K", "rows_a_split"]  # neither a size of 1 nor a multiple of 16 compiles anew
FARTHEST = tl.constexpr(-1000.0)  # a logit this far below the row's largest, or minus infinity, has p = 0
STEEPEST = tl.constexpr(60.0)  # perturbations larger than this leave the form in which nothing cancels


@triton.jit
def smallest_normal(ACC: tl.constexpr):
    return 2.2250738585072014e-308 if ACC == tl.float64 else 1.1754943508222875e-38


@triton.jit
def load_tile(rows_ptr, stride_k, offs_k, mask_n, K, OTHER: tl.constexpr, ACC: tl.constexpr):
    """[BLOCK_N, BLOCK_K] of the rows at rows_ptr [BLOCK_N]; OTHER outside."""
    mask = mask_n[:, None] & (offs_k < K)[None, :]
    return tl.load(rows_ptr[:, None] + offs_k[None, :] * stride_k, mask=mask, other=OTHER).to(ACC)


@triton.jit
def below_largest(x, largest):
    """x - largest, kept from minus infinity, whose product with p = 0 must be 0; NaN stays."""
    below = x - largest[:, None]
    return tl.where(below < FARTHEST, FARTHEST, below)


@triton.jit
def softmax_statistics(rows_ptr, stride_k, mask_n, K, BLOCK_K: tl.constexpr, ACC: tl.constexpr):
    """Of each row: the largest logit, the sum of weights exp(x - largest), and E[x - largest]."""
    BLOCK_N: tl.constexpr = rows_ptr.shape[0]
    largest = tl.zeros([BLOCK_N], ACC) - float("inf")
    total = tl.zeros([BLOCK_N], ACC)
    weighted = tl.zeros([BLOCK_N], ACC)
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        x = load_tile(rows_ptr, stride_k, offs_k, mask_n, K, float("-inf"), ACC)
        larger = tl.maximum(largest, tl.max(x, axis=1))
        shift = tl.where(larger == float("-inf"), 0.0, larger)  # as long as all are masked
        step = largest - shift
        step = tl.where(step < FARTHEST, FARTHEST, step)
        shrink = tl.exp(step)
        below = below_largest(x, shift)
        weight = tl.exp(below)
        weighted = shrink * (weighted + total * step) + tl.sum(weight * below, axis=1)
        total = shrink * total + tl.sum(weight, axis=1)
        largest = larger
    return tl.where(largest == float("-inf"), 0.0, largest), total, weighted / total


@triton.jit
def exp_beyond_line(x):
    """e^x - 1 - x to its last digits where x is small."""
    LAST: tl.constexpr = 19 if x.dtype == tl.float64 else 10
    nested = tl.zeros_like(x) + 1.0
    for i in tl.static_range(LAST - 2):
        nested = 1.0 + nested * x * (1.0 / (LAST - i))
    return tl.where(tl.abs(x) < 1.0, 0.5 * x * x * nested, tl.exp(x) - 1.0 - x)


@triton.jit
def log_one_plus(z):
    """ln(1 + z), z >= 0, to its last digits where z is small."""
    LAST: tl.constexpr = 23 if z.dtype == tl.float64 else 11
    s = z / (2.0 + z)  # ln(1 + z) = 2 atanh(s)
    nested = tl.zeros_like(z) + 1.0 / LAST
    for i in tl.static_range(LAST // 2):
        nested = 1.0 / (LAST - 2 - 2 * i) + nested * s * s
    return tl.where(z < 0.5, 2.0 * s * nested, tl.log(1.0 + z))


@triton.jit(do_not_specialize=RUNTIME)
def _entropy_rows_kernel(
    x_ptr, stride_xh, stride_xn, stride_xk,
    entropy_ptr, largest_ptr, total_ptr, partial_ptr, rows_a_split, N, K,
    FROM_LOGITS: tl.constexpr, WANT_ENTROPY: tl.constexpr, ONE_TILE: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Entropy (heads, N) of one part of the rows; with ONE_TILE also its sum of p in partial (parts, heads, K).

    Without ONE_TILE the largest logit and the sum of weights are kept, each (heads, N), for the mass kernel.
    """
    ACC: tl.constexpr = total_ptr.dtype.element_ty
    split, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    first = split * rows_a_split
    mass = tl.zeros([BLOCK_K], tl.float64)
    for start in range(first, tl.minimum(first + rows_a_split, N), BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < N
        rows_ptr = x_ptr + head * stride_xh + offs_n * stride_xn
        if FROM_LOGITS:
            largest, total, expected = softmax_statistics(rows_ptr, stride_xk, mask_n, K, BLOCK_K, ACC)
            if WANT_ENTROPY:
                tl.store(entropy_ptr + head * N + offs_n, tl.log(total) - expected, mask=mask_n)
            if not ONE_TILE:
                tl.store(largest_ptr + head * N + offs_n, largest, mask=mask_n)
                tl.store(total_ptr + head * N + offs_n, total, mask=mask_n)
        elif WANT_ENTROPY:
            TINY: tl.constexpr = smallest_normal(ACC)
            entropy = tl.zeros([BLOCK_N], ACC)
            for tile in range(0, K, BLOCK_K):
                offs_k = tile + tl.arange(0, BLOCK_K).to(tl.int64)
                p = load_tile(rows_ptr, stride_xk, offs_k, mask_n, K, 0.0, ACC)
                entropy -= tl.sum(p * tl.log(tl.where(p < TINY, TINY, p)), axis=1)
            tl.store(entropy_ptr + head * N + offs_n, entropy, mask=mask_n)
        if ONE_TILE:
            offs_k = tl.arange(0, BLOCK_K).to(tl.int64)
            p = load_tile(rows_ptr, stride_xk, offs_k, mask_n, K, 0.0, ACC)
            if FROM_LOGITS:
                p = tl.exp(below_largest(p, largest)) / total[:, None]
            mass += tl.sum(tl.where(mask_n[:, None], p, 0.0), axis=0).to(tl.float64)
    if ONE_TILE:
        offs_k = tl.arange(0, BLOCK_K).to(tl.int64)
        pointers = partial_ptr + (split * tl.num_programs(1) + head) * K + offs_k
        tl.store(pointers, mass, mask=offs_k < K)


@triton.jit(do_not_specialize=RUNTIME)
def _mass_kernel(
    x_ptr, stride_xh, stride_xn, stride_xk, largest_ptr, total_ptr, partial_ptr, rows_a_split, N, K,
    FROM_LOGITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sum of p over one part of the rows, for one tile of clusters, into partial (parts, heads, K)."""
    ACC: tl.constexpr = total_ptr.dtype.element_ty
    split, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    offs_k = tl.program_id(2).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    first = split * rows_a_split
    mass = tl.zeros([BLOCK_K], tl.float64)
    for start in range(first, tl.minimum(first + rows_a_split, N), BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < N
        rows_ptr = x_ptr + head * stride_xh + offs_n * stride_xn
        p = load_tile(rows_ptr, stride_xk, offs_k, mask_n, K, 0.0, ACC)
        if FROM_LOGITS:
            largest = tl.load(largest_ptr + head * N + offs_n, mask=mask_n, other=0.0)
            total = tl.load(total_ptr + head * N + offs_n, mask=mask_n, other=1.0)
            p = tl.exp(below_largest(p, largest)) / total[:, None]
        mass += tl.sum(tl.where(mask_n[:, None], p, 0.0), axis=0).to(tl.float64)
    tl.store(partial_ptr + (split * tl.num_programs(1) + head) * K + offs_k, mass, mask=offs_k < K)


@triton.jit(do_not_specialize=RUNTIME)
def _entropy_backward_kernel(
    x_ptr, stride_xh, stride_xn, stride_xk,
    grad_entropy_ptr, stride_gh, stride_gn, grad_mass_ptr, grad_ptr, N, K,
    FROM_LOGITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradient (heads, N, K) of BLOCK_N rows; of logits p (t - E[t]), t = grad_mass - grad_entropy ln p."""
    ACC: tl.constexpr = grad_mass_ptr.dtype.element_ty
    head = tl.program_id(1).to(tl.int64)
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    rows_ptr = x_ptr + head * stride_xh + offs_n * stride_xn
    factor = tl.load(grad_entropy_ptr + head * stride_gh + offs_n * stride_gn, mask=mask_n, other=0.0)
    slopes_ptr = grad_mass_ptr + head * K
    mean = tl.zeros([BLOCK_N], ACC)
    if FROM_LOGITS:
        largest, total, expected = softmax_statistics(rows_ptr, stride_xk, mask_n, K, BLOCK_K, ACC)
        for start in range(0, K, BLOCK_K):
            offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
            x = load_tile(rows_ptr, stride_xk, offs_k, mask_n, K, float("-inf"), ACC)
            slope = tl.load(slopes_ptr + offs_k, mask=offs_k < K, other=0.0)[None, :]
            mean += tl.sum(tl.exp(below_largest(x, largest)) * slope, axis=1)
        mean = mean / total - factor * expected
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        x = load_tile(rows_ptr, stride_xk, offs_k, mask_n, K, 0.0, ACC)
        slope = tl.load(slopes_ptr + offs_k, mask=offs_k < K, other=0.0)[None, :]
        if FROM_LOGITS:
            below = below_largest(x, largest)
            p = tl.exp(below) / total[:, None]
            gradient = p * (slope - factor[:, None] * below - mean[:, None])
        else:
            TINY: tl.constexpr = smallest_normal(ACC)
            rounded = x < TINY
            gradient = slope - factor[:, None] * (tl.log(tl.where(rounded, TINY, x)) + tl.where(rounded, 0.0, 1.0))
        pointers = grad_ptr + (head * N + offs_n)[:, None] * K + offs_k[None, :]
        tl.store(pointers, gradient, mask=mask_n[:, None] & (offs_k < K)[None, :])


@triton.jit(do_not_specialize=RUNTIME)
def _vat_kl_kernel(
    a_ptr, stride_ah, stride_an, stride_ak, b_ptr, stride_bh, stride_bn, stride_bk,
    loss_ptr, grad_ptr, N, K,
    NEED_GRADIENT: tl.constexpr, ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sum over BLOCK_N rows of KL(softmax(a) || softmax(b)) into loss (programs, heads), gradient of b (heads, N, K).

    KL = ln(1 + E[e^t - 1 - t]), t = (b - a) - E[b - a]: every term is positive, nothing cancels where b is near a.
    Where a perturbation is too large for this form or not finite, it comes from the two softmaxes.
    """
    pid, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    offs_n = pid * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    a_rows = a_ptr + head * stride_ah + offs_n * stride_an
    b_rows = b_ptr + head * stride_bh + offs_n * stride_bn
    a_largest, a_total, _ = softmax_statistics(a_rows, stride_ak, mask_n, K, BLOCK_K, ACC)
    b_largest, b_total, _ = softmax_statistics(b_rows, stride_bk, mask_n, K, BLOCK_K, ACC)
    a_log, b_log = tl.log(a_total), tl.log(b_total)
    mean = tl.zeros([BLOCK_N], ACC)
    steepest = tl.zeros([BLOCK_N], ACC) - float("inf")
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        a = load_tile(a_rows, stride_ak, offs_k, mask_n, K, 0.0, ACC)
        b = load_tile(b_rows, stride_bk, offs_k, mask_n, K, 0.0, ACC)
        inside = (offs_k < K)[None, :]
        p = tl.exp(a - a_largest[:, None]) / a_total[:, None]
        mean += tl.sum(tl.where(inside, p * (b - a), 0.0), axis=1)
        steepest = tl.maximum(steepest, tl.max(tl.where(inside, b - a, float("-inf")), axis=1))
    gentle = steepest - mean < STEEPEST  # false also where one is NaN or infinite
    excess = tl.zeros([BLOCK_N], ACC)
    direct = tl.zeros([BLOCK_N], ACC)
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        a = load_tile(a_rows, stride_ak, offs_k, mask_n, K, 0.0, ACC)
        b = load_tile(b_rows, stride_bk, offs_k, mask_n, K, 0.0, ACC)
        p = tl.where((offs_k < K)[None, :], tl.exp(a - a_largest[:, None]) / a_total[:, None], 0.0)
        t = tl.where(gentle[:, None], b - a - mean[:, None], 0.0)
        excess += tl.sum(p * exp_beyond_line(t), axis=1)
        logarithm = (a - a_largest[:, None] - a_log[:, None]) - (b - b_largest[:, None] - b_log[:, None])
        direct += tl.sum(tl.where(p == 0.0, 0.0, p * logarithm), axis=1)
    divergence = tl.where(gentle, log_one_plus(excess), direct)
    loss = tl.sum(tl.where(mask_n, divergence, 0.0).to(tl.float64), axis=0)
    tl.store(loss_ptr + pid * tl.num_programs(1) + head, loss)
    if NEED_GRADIENT:
        known = tl.where(gentle, divergence, 0.0)
        shrink = tl.exp(-known)
        offset = exp_beyond_line(-known) - known
        for start in range(0, K, BLOCK_K):
            offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
            a = load_tile(a_rows, stride_ak, offs_k, mask_n, K, 0.0, ACC)
            b = load_tile(b_rows, stride_bk, offs_k, mask_n, K, 0.0, ACC)
            p = tl.exp(a - a_largest[:, None]) / a_total[:, None]
            t = tl.where(gentle[:, None], b - a - mean[:, None], 0.0)
            close = p * ((exp_beyond_line(t) + t) * shrink[:, None] + offset[:, None])
            far = tl.exp(b - b_largest[:, None]) / b_total[:, None] - p
            pointers = grad_ptr + (head * N + offs_n)[:, None] * K + offs_k[None, :]
            gradient = tl.where(gentle[:, None], close, far)
            tl.store(pointers, gradient, mask=mask_n[:, None] & (offs_k < K)[None, :])

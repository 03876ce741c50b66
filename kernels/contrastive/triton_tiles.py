"""Triton kernels: a block of rows against one tile of the other side after the other, their products in registers.

Rows are anchors and the other side is keys, or the other way round (TRANSPOSED). Exponents are products times scale,
to base 2. Each side's state is a matrix (3, length) of shifts, factors and what is missing at positives; of length 0
where that side has no sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdc.kernels._triton_tile import add_to, dot, load_tile

RUNTIME = ["N", "M", "n_own", "n_other", "others_a_split", "self_offset"]  # no value of them compiles anew


@triton.jit
def _products(
    x_ptr, stride_xn, stride_xd, y_ptr, stride_ym, stride_yd, offs_n, offs_m, N, M, D,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """x y^T [BLOCK_N, BLOCK_M]; with "ieee" a feature at a time. Sums of BLOCK_D features are added up apart."""
    mask_n, mask_m = offs_n < N, offs_m < M
    total = tl.zeros([offs_n.shape[0], offs_m.shape[0]], ACC)
    for start in range(0, D, BLOCK_D):
        if PRECISION == "ieee":
            part = tl.zeros([offs_n.shape[0], offs_m.shape[0]], ACC)
            for d in range(start, tl.minimum(start + BLOCK_D, D)):
                at = tl.cast(d, tl.int64)
                x = tl.load(x_ptr + offs_n * stride_xn + at * stride_xd, mask=mask_n, other=0.0)
                y = tl.load(y_ptr + offs_m * stride_ym + at * stride_yd, mask=mask_m, other=0.0)
                part += x[:, None] * y[None, :]
        else:
            offs_d = start + tl.arange(0, BLOCK_D)
            x = load_tile(x_ptr, stride_xn, stride_xd, offs_n, offs_d, mask_n, offs_d < D)
            y = load_tile(y_ptr, stride_ym, stride_yd, offs_m, offs_d, mask_m, offs_d < D)
            part = dot(x, tl.trans(y), PRECISION)
        total += part
    return total


@triton.jit
def _is_positive(positives_ptr, offs_n, offs_m, N, M, TRANSPOSED: tl.constexpr):
    """Which pairs of a tile are an anchor and its positive."""
    if TRANSPOSED:
        place = tl.load(positives_ptr + offs_m, mask=offs_m < M, other=-1)
        return place[None, :] == offs_n[:, None]
    else:
        place = tl.load(positives_ptr + offs_n, mask=offs_n < N, other=-1)
        return place[:, None] == offs_m[None, :]


@triton.jit
def _is_left_out(offs_n, offs_m, M, self_offset, HAS_SELF: tl.constexpr):
    """Pairs beyond the end, and those of a row with itself."""
    out = (offs_n * 0)[:, None] + offs_m[None, :] >= M
    if HAS_SELF:
        out = out | (offs_n[:, None] + self_offset == offs_m[None, :])
    return out


@triton.jit(do_not_specialize=RUNTIME)
def _contrast_sums_kernel(
    x_ptr, stride_xn, stride_xd, y_ptr, stride_ym, stride_yd, positives_ptr, scale_ptr, shift_ptr, sum_ptr,
    others_a_split, self_offset, N, M, D,
    HAS_POSITIVES: tl.constexpr, HAS_SELF: tl.constexpr, TRANSPOSED: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """shift and sum (parts, N), float64: 2^shift times sum is the sum over one part of the other side.

    Positives are left out. The shift is minus infinity where there is nothing.
    """
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1).to(tl.int64)
    first = split * others_a_split
    scale = tl.load(scale_ptr)
    largest = tl.full([BLOCK_N], float("-inf"), ACC)
    total = tl.zeros([BLOCK_N], tl.float64)
    for start in range(first, tl.minimum(first + others_a_split, M), BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        exponent = scale * _products(
            x_ptr, stride_xn, stride_xd, y_ptr, stride_ym, stride_yd, offs_n, offs_m, N, M, D, ACC, PRECISION, BLOCK_D
        )
        left_out = _is_left_out(offs_n, offs_m, M, self_offset, HAS_SELF)
        if HAS_POSITIVES:
            left_out = left_out | _is_positive(positives_ptr, offs_n, offs_m, N, M, TRANSPOSED)
        exponent = tl.where(left_out, float("-inf"), exponent)
        larger = tl.maximum(largest, tl.max(exponent, axis=1))
        shift = tl.where(larger == float("-inf"), 0.0, larger)
        part = tl.sum(tl.exp2(exponent - shift[:, None]), axis=1)
        total = total * tl.exp2(largest - shift).to(tl.float64) + part.to(tl.float64)
        largest = larger
    tl.store(shift_ptr + split * N + offs_n, largest.to(tl.float64), mask=offs_n < N)
    tl.store(sum_ptr + split * N + offs_n, total, mask=offs_n < N)


@triton.jit
def _weights(exponent, state_ptr, offs, length, AXIS: tl.constexpr):
    """2^(exponent - shift) times the factor of the rows (axis 1) or columns (axis 0); zero beyond the length."""
    inside = offs < length
    shift = tl.expand_dims(tl.load(state_ptr + offs, mask=inside, other=0.0), AXIS)
    factor = tl.expand_dims(tl.load(state_ptr + length + offs, mask=inside, other=0.0), AXIS)
    return tl.where(tl.expand_dims(inside, AXIS), tl.exp2(exponent - shift) * factor, 0.0)


@triton.jit
def _missing(state_ptr, offs, length):
    return tl.load(state_ptr + tl.cast(length, tl.int64) * 2 + offs, mask=offs < length, other=0.0)


@triton.jit(do_not_specialize=RUNTIME)
def _contrast_gradient_kernel(
    x_ptr, stride_xn, stride_xd, y_ptr, stride_ym, stride_yd, positives_ptr, scale_ptr, own_ptr, other_ptr, grad_ptr,
    n_own, n_other, others_a_split, self_offset, N, M, D,
    HAS_POSITIVES: tl.constexpr, HAS_SELF: tl.constexpr, TRANSPOSED: tl.constexpr, ACC: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """grad (parts, N, D): the sum over one part of the other side of weight times row of y.

    ``own_ptr`` and ``other_ptr`` are the states (3, n_own) and (3, n_other) of the two sides.
    """
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    split = tl.program_id(1).to(tl.int64)
    first = split * others_a_split
    mask_n = offs_n < N
    grad_ptr += split * N * D
    scale = tl.load(scale_ptr)
    for start in range(first, tl.minimum(first + others_a_split, M), BLOCK_M):
        offs_m = start + tl.arange(0, BLOCK_M)
        mask_m = offs_m < M
        exponent = scale * _products(
            x_ptr, stride_xn, stride_xd, y_ptr, stride_ym, stride_yd, offs_n, offs_m, N, M, D, ACC, PRECISION, BLOCK_D
        )
        weights = _weights(exponent, own_ptr, offs_n, n_own, 1) + _weights(exponent, other_ptr, offs_m, n_other, 0)
        if HAS_POSITIVES:
            missing = _missing(own_ptr, offs_n, n_own)[:, None] + _missing(other_ptr, offs_m, n_other)[None, :]
            weights = tl.where(_is_positive(positives_ptr, offs_n, offs_m, N, M, TRANSPOSED), -missing, weights)
        weights = tl.where(_is_left_out(offs_n, offs_m, M, self_offset, HAS_SELF), 0.0, weights)
        again = mask_n & (offs_n * 0 + (start - first) > 0)
        tl.debug_barrier()  # other threads may have stored what is loaded here
        if PRECISION == "ieee":
            for d in range(0, D):
                at = tl.cast(d, tl.int64)
                y = tl.load(y_ptr + offs_m * stride_ym + at * stride_yd, mask=mask_m, other=0.0)
                pointers = grad_ptr + offs_n * D + d
                before = tl.load(pointers, mask=again, other=0.0)
                tl.store(pointers, before + tl.sum(weights * y[None, :], axis=1), mask=mask_n)
        else:
            for at in range(0, D, BLOCK_D):
                offs_d = at + tl.arange(0, BLOCK_D)
                y = load_tile(y_ptr, stride_ym, stride_yd, offs_m, offs_d, mask_m, offs_d < D)
                add_to(grad_ptr, D, offs_n, offs_d, dot(weights, y, PRECISION), again, mask_n, offs_d < D)

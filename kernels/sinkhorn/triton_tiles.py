"""Triton kernels: sums over columns for blocks of rows, sums over rows for tiles of columns, and the result.

Exponents, to base 2, are float64 up to the subtraction of a shift: two operations an entry, in kernels that wait
for memory. Sums over rows are made in parts by programs of their own, and added up in a fixed order by the caller.
"""

from __future__ import annotations

import triton
import triton.language as tl

RUNTIME = ["N", "K", "rows_a_split"]  # neither a size of 1 nor a multiple of 16 compiles anew


@triton.jit
def exponents(scores_ptr, stride_sn, stride_sk, scale_ptr, offs_n, offs_k, N, K):
    """scores * scale as float64 [BLOCK_N, BLOCK_K]; minus infinity outside."""
    mask = (offs_n < N)[:, None] & (offs_k < K)[None, :]
    pointers = scores_ptr + offs_n[:, None] * stride_sn + offs_k[None, :] * stride_sk
    return tl.load(pointers, mask=mask, other=float("-inf")).to(tl.float64) * tl.load(scale_ptr)


@triton.jit
def power_sum(exponent, base, AXIS: tl.constexpr, ACC: tl.constexpr):
    """Sum of 2^(exponent - base) over an axis, float64; base is broadcast already."""
    return tl.sum(tl.exp2((exponent - base).to(ACC)), axis=AXIS).to(tl.float64)


@triton.jit
def finite_or_zero(shift):
    return tl.where(shift == float("-inf"), 0.0, shift)


@triton.jit(do_not_specialize=RUNTIME)
def _sinkhorn_rows_kernel(
    scores_ptr, stride_sn, stride_sk, scale_ptr, potential_ptr, logs_ptr, N, K,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """logs (N,): log2 of the sum over columns of 2^(score + potential), for BLOCK_N rows; potential (K,)."""
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    shift = tl.full([BLOCK_N], float("-inf"), tl.float64)
    total = tl.zeros([BLOCK_N], tl.float64)
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        potential = tl.load(potential_ptr + offs_k, mask=offs_k < K, other=0.0)
        exponent = exponents(scores_ptr, stride_sn, stride_sk, scale_ptr, offs_n, offs_k, N, K) + potential[None, :]
        larger = tl.maximum(shift, tl.max(exponent, axis=1))
        base = finite_or_zero(larger)
        total = total * tl.exp2((shift - base).to(ACC)).to(tl.float64) + power_sum(exponent, base[:, None], 1, ACC)
        shift = larger
    tl.store(logs_ptr + offs_n, shift + tl.log2(total), mask=offs_n < N)


@triton.jit(do_not_specialize=RUNTIME)
def _sinkhorn_columns_kernel(
    scores_ptr, stride_sn, stride_sk, scale_ptr, potential_ptr, shift_ptr, sum_ptr, rows_a_split, N, K,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """shift and sum (parts, K): 2^shift times sum is the sum over one part of the rows; potential (N,)."""
    split = tl.program_id(0).to(tl.int64)
    offs_k = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    first = split * rows_a_split
    shift = tl.full([BLOCK_K], float("-inf"), tl.float64)
    total = tl.zeros([BLOCK_K], tl.float64)
    for start in range(first, tl.minimum(first + rows_a_split, N), BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        potential = tl.load(potential_ptr + offs_n, mask=offs_n < N, other=0.0)
        exponent = exponents(scores_ptr, stride_sn, stride_sk, scale_ptr, offs_n, offs_k, N, K) + potential[:, None]
        larger = tl.maximum(shift, tl.max(exponent, axis=0))
        base = finite_or_zero(larger)
        total = total * tl.exp2((shift - base).to(ACC)).to(tl.float64) + power_sum(exponent, base[None, :], 0, ACC)
        shift = larger
    tl.store(shift_ptr + split * K + offs_k, shift, mask=offs_k < K)
    tl.store(sum_ptr + split * K + offs_k, total, mask=offs_k < K)


@triton.jit(do_not_specialize=RUNTIME)
def _sinkhorn_assign_kernel(
    scores_ptr, stride_sn, stride_sk, scale_ptr, potential_ptr, logs_ptr, q_ptr, N, K,
    ACC: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """One tile of q (N, K)."""
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    potential = tl.load(potential_ptr + offs_k, mask=offs_k < K, other=0.0)
    logs = tl.load(logs_ptr + offs_n, mask=offs_n < N, other=0.0)
    exponent = exponents(scores_ptr, stride_sn, stride_sk, scale_ptr, offs_n, offs_k, N, K)
    q = tl.exp2((exponent + potential[None, :] - logs[:, None]).to(ACC))
    mask = (offs_n < N)[:, None] & (offs_k < K)[None, :]
    tl.store(q_ptr + offs_n[:, None] * K + offs_k[None, :], q, mask=mask)

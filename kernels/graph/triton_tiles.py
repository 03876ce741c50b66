"""Triton kernels over edges: a program gathers a tile of neighbours of one node after the other.

Adjacency comes as indptr (N + 1) int64, and for each entry the neighbour and the number of its weight, int32 or
int64. What is summed over nodes or edges is left in parts, one a program, for the caller to add up.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdc.kernels.mutual_information.triton_tiles import (
    FARTHEST,
    below_largest,
    load_tile,
    smallest_normal,
    softmax_statistics,
)

RUNTIME = ["N", "D", "K", "M", "nodes_a_program", "n_edges"]  # neither a size of 1 nor a multiple of 16 compiles anew


@triton.jit
def gather(x_ptr, stride_xn, stride_xd, nodes, offs_d, mask_e, D, ACC: tl.constexpr):
    """Rows of some nodes, [BLOCK_E, BLOCK_D]; zero outside."""
    pointers = x_ptr + nodes.to(tl.int64)[:, None] * stride_xn + offs_d[None, :] * stride_xd
    return tl.load(pointers, mask=mask_e[:, None] & (offs_d < D)[None, :], other=0.0).to(ACC)


@triton.jit(do_not_specialize=RUNTIME)
def _laplacian_kernel(
    x_ptr, stride_xn, stride_xd, indptr_ptr, neighbors_ptr, ids_ptr, weights_ptr,
    grad_ptr, partial_ptr, nodes_a_program, N, D,
    HAS_WEIGHTS: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Gradient (N, D) of some nodes, and their part of the sum of w |x_i - x_j|^2 from either end of each edge."""
    ACC: tl.constexpr = grad_ptr.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK_D], tl.float64)
    for node in range(pid * nodes_a_program, tl.minimum((pid + 1) * nodes_a_program, N)):
        begin, end = tl.load(indptr_ptr + node), tl.load(indptr_ptr + node + 1)
        for start_d in range(0, D, BLOCK_D):
            offs_d = start_d + tl.arange(0, BLOCK_D).to(tl.int64)
            mask_d = offs_d < D
            own = tl.load(x_ptr + node * stride_xn + offs_d * stride_xd, mask=mask_d, other=0.0).to(ACC)
            gradient = tl.zeros([BLOCK_D], ACC)
            squares = tl.zeros([BLOCK_D], ACC)
            for start_e in range(begin, end, BLOCK_E):
                offs_e = start_e + tl.arange(0, BLOCK_E)
                mask_e = offs_e < end
                neighbors = tl.load(neighbors_ptr + offs_e, mask=mask_e, other=0)
                other = gather(x_ptr, stride_xn, stride_xd, neighbors, offs_d, mask_e, D, ACC)
                difference = tl.where(mask_e[:, None], own[None, :] - other, 0.0)
                weighted = difference
                if HAS_WEIGHTS:
                    ids = tl.load(ids_ptr + offs_e, mask=mask_e, other=0)
                    weights = tl.load(weights_ptr + ids.to(tl.int64), mask=mask_e, other=0.0)
                    weighted = weights[:, None] * difference
                gradient += tl.sum(weighted, axis=0)
                squares += tl.sum(weighted * difference, axis=0)
            tl.store(grad_ptr + node * D + offs_d, 2.0 * gradient, mask=mask_d)
            total += squares.to(tl.float64)
    tl.store(partial_ptr + pid, tl.sum(total, axis=0))


@triton.jit(do_not_specialize=RUNTIME)
def _edges_kernel(
    x_ptr, stride_xn, stride_xd, sources_ptr, targets_ptr, weights_ptr, sq_dists_ptr, partial_ptr, n_edges, D,
    HAS_WEIGHTS: tl.constexpr, KEEP: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Squared lengths (n_edges,) of BLOCK_E edges, kept or not, and their part of the sum of w |x_i - x_j|^2."""
    ACC: tl.constexpr = sq_dists_ptr.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    offs_e = pid * BLOCK_E + tl.arange(0, BLOCK_E)
    mask_e = offs_e < n_edges
    sources = tl.load(sources_ptr + offs_e, mask=mask_e, other=0)
    targets = tl.load(targets_ptr + offs_e, mask=mask_e, other=0)
    sq_dists = tl.zeros([BLOCK_E], ACC)
    for start_d in range(0, D, BLOCK_D):
        offs_d = start_d + tl.arange(0, BLOCK_D).to(tl.int64)
        source = gather(x_ptr, stride_xn, stride_xd, sources, offs_d, mask_e, D, ACC)
        target = gather(x_ptr, stride_xn, stride_xd, targets, offs_d, mask_e, D, ACC)
        sq_dists += tl.sum((source - target) * (source - target), axis=1)
    if KEEP:
        tl.store(sq_dists_ptr + offs_e, sq_dists, mask=mask_e)
    terms = sq_dists.to(tl.float64)
    if HAS_WEIGHTS:
        terms *= tl.load(weights_ptr + offs_e, mask=mask_e, other=0.0).to(tl.float64)
    tl.store(partial_ptr + pid, tl.sum(tl.where(mask_e, terms, 0.0), axis=0))


@triton.jit(do_not_specialize=RUNTIME)
def _propagate_kernel(
    x_ptr, stride_xn, stride_xd, indptr_ptr, columns_ptr, values_ptr, y_ptr, nodes_a_program, N, D,
    BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Some rows of y (N, D), a sparse matrix by x, computed in the dtype of the values."""
    ACC: tl.constexpr = values_ptr.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    for node in range(pid * nodes_a_program, tl.minimum((pid + 1) * nodes_a_program, N)):
        begin, end = tl.load(indptr_ptr + node), tl.load(indptr_ptr + node + 1)
        for start_d in range(0, D, BLOCK_D):
            offs_d = start_d + tl.arange(0, BLOCK_D).to(tl.int64)
            total = tl.zeros([BLOCK_D], ACC)
            for start_e in range(begin, end, BLOCK_E):
                offs_e = start_e + tl.arange(0, BLOCK_E)
                mask_e = offs_e < end
                columns = tl.load(columns_ptr + offs_e, mask=mask_e, other=0)
                values = tl.load(values_ptr + offs_e, mask=mask_e, other=0.0)
                x = gather(x_ptr, stride_xn, stride_xd, columns, offs_d, mask_e, D, ACC)
                total += tl.sum(values[:, None] * x, axis=0)
            tl.store(y_ptr + node * D + offs_d, total, mask=offs_d < D)


@triton.jit
def log_probabilities(
    rows_ptr, stride_k, offs_k, mask_n, largest, log_total, K, FROM_LOGITS: tl.constexpr, ACC: tl.constexpr
):
    """[BLOCK_N, BLOCK_K] of logarithms; of logits those of the softmax."""
    x = load_tile(rows_ptr, stride_k, offs_k, mask_n, K, 0.0, ACC)
    if FROM_LOGITS:
        return below_largest(x, largest) - log_total[:, None]
    else:
        return tl.log(x + smallest_normal(ACC))


@triton.jit
def consistency_slope(a, b, dot, log_total, FROM_LOGITS: tl.constexpr):
    """Of -ln <p, q> to p = exp(a), or to its logits."""
    if FROM_LOGITS:
        slope = tl.exp(a) - tl.exp(a + b - dot[:, None])
        return tl.where(a <= FARTHEST - log_total[:, None], 0.0, slope)
    else:
        return -tl.exp(b - dot[:, None])


@triton.jit(do_not_specialize=RUNTIME)
def _consistency_kernel(
    a_ptr, stride_an, stride_ak, b_ptr, stride_bn, stride_bk, grad_a_ptr, grad_b_ptr, partial_ptr, N, K,
    FROM_LOGITS: tl.constexpr, NEED_A: tl.constexpr, NEED_B: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sum over BLOCK_N rows of -ln <p, q> into partial, and the gradients (N, K) to each.

    A logit that lies too far below the largest gets none.
    """
    ACC: tl.constexpr = grad_a_ptr.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    offs_n = pid * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    a_rows, b_rows = a_ptr + offs_n * stride_an, b_ptr + offs_n * stride_bn
    a_largest = tl.zeros([BLOCK_N], ACC)
    b_largest, a_log, b_log = a_largest, a_largest, a_largest
    if FROM_LOGITS:
        a_largest, a_total, _ = softmax_statistics(a_rows, stride_ak, mask_n, K, BLOCK_K, ACC)
        b_largest, b_total, _ = softmax_statistics(b_rows, stride_bk, mask_n, K, BLOCK_K, ACC)
        a_log, b_log = tl.log(a_total), tl.log(b_total)
    largest = tl.zeros([BLOCK_N], ACC) - float("inf")
    total = tl.zeros([BLOCK_N], ACC)
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        a = log_probabilities(a_rows, stride_ak, offs_k, mask_n, a_largest, a_log, K, FROM_LOGITS, ACC)
        b = log_probabilities(b_rows, stride_bk, offs_k, mask_n, b_largest, b_log, K, FROM_LOGITS, ACC)
        both = tl.where((offs_k < K)[None, :], a + b, float("-inf"))
        larger = tl.maximum(largest, tl.max(both, axis=1))
        total = total * tl.exp(largest - larger) + tl.sum(tl.exp(both - larger[:, None]), axis=1)
        largest = larger
    dot = largest + tl.log(total)
    tl.store(partial_ptr + pid, tl.sum(tl.where(mask_n, -dot, 0.0).to(tl.float64), axis=0))
    if NEED_A or NEED_B:
        for start in range(0, K, BLOCK_K):
            offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
            a = log_probabilities(a_rows, stride_ak, offs_k, mask_n, a_largest, a_log, K, FROM_LOGITS, ACC)
            b = log_probabilities(b_rows, stride_bk, offs_k, mask_n, b_largest, b_log, K, FROM_LOGITS, ACC)
            offsets = offs_n[:, None] * K + offs_k[None, :]
            mask = mask_n[:, None] & (offs_k < K)[None, :]
            if NEED_A:
                slope = consistency_slope(a, b, dot, a_log, FROM_LOGITS)
                tl.store(grad_a_ptr + offsets, slope, mask=mask)
            if NEED_B:
                slope = consistency_slope(b, a, dot, b_log, FROM_LOGITS)
                tl.store(grad_b_ptr + offsets, slope, mask=mask)

"""Triton kernels over all pairs of rows. Points come as ``_triton_tile.py`` wants them."""

from __future__ import annotations

import triton
import triton.language as tl

from fastdc.kernels._triton_tile import sq_dist_tile

RUNTIME = ["N", "K"]  # one compilation serves every number of rows and centers


@triton.jit
def largest_number(ACC: tl.constexpr):
    return 1.7976931348623157e308 if ACC == tl.float64 else 3.4028234663852886e38


@triton.jit(do_not_specialize=RUNTIME)
def _silhouette_kernel(
    x_ptr, stride_xn, stride_xd, shifted_ptr, labels_ptr, offsets_ptr, out_ptr, N, K, D,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Silhouettes of BLOCK_N rows of x, sorted by label; cluster c of K begins at row offsets[c].

    shifted: of each cluster in turn its rows less their mean, and the mean.
    """
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    label = tl.load(labels_ptr + offs_n, mask=mask_n, other=-1)
    own = tl.full([BLOCK_N], -1.0, tl.float64)
    other = tl.full([BLOCK_N], float("inf"), tl.float64)
    for c in range(0, K):
        first = tl.load(offsets_ptr + c)
        count = tl.load(offsets_ptr + c + 1) - first
        total = tl.zeros([BLOCK_N], tl.float64)
        for start in range(0, count, BLOCK_K):
            offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
            sq_dists, _ = sq_dist_tile(
                x_ptr, stride_xn, stride_xd, x_ptr + first * stride_xn, stride_xn, stride_xd,
                shifted_ptr + (first + c) * D, offs_n, offs_k, N, count, D, ACC, PRECISION, BLOCK_D,
            )  # fmt: skip
            inside = mask_n[:, None] & (offs_k < count)[None, :]
            total += tl.sum(tl.sqrt(tl.where(inside, sq_dists, 0.0)), axis=1).to(tl.float64)
        is_own = label == c
        own = tl.where(is_own & (count > 1), total / tl.maximum(count - 1, 1), own)
        mean = total / tl.maximum(count, 1)
        closer = (is_own == 0) & (count > 0) & ((mean < other) | (mean != mean))
        other = tl.where(closer, mean, other)
    undefined = (own == -1.0) | ((own == 0.0) & (other == 0.0))
    largest = tl.where(own > other, own, other)
    s = tl.where(undefined, 0.0, (other - own) / tl.where(undefined, 1.0, largest))
    tl.store(out_ptr + offs_n, s.to(ACC), mask=mask_n)


@triton.jit(do_not_specialize=RUNTIME)
def _hardest_pairs_kernel(
    x_ptr, stride_xn, stride_xd, shifted_ptr, labels_ptr, positive_ptr, negative_ptr, far_ptr, near_ptr, N, D,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Of BLOCK_N rows the farthest of the same label and the nearest of another, of equals the first.

    A distance that is NaN is farther and nearer than any number.
    """
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    label = tl.load(labels_ptr + offs_n, mask=mask_n, other=-1)
    far = tl.full([BLOCK_N], -1.0, ACC)
    near = tl.full([BLOCK_N], float("inf"), ACC)
    positive = tl.full([BLOCK_N], -1, tl.int64)
    negative = tl.full([BLOCK_N], -1, tl.int64)
    LARGEST: tl.constexpr = largest_number(ACC)  # stands for infinite distances, which leaves room beyond for NaN
    columns = tl.arange(0, BLOCK_K)  # of a tile, in half the registers of a row's number
    for start in range(0, N, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        mask_k = offs_k < N
        sq_dists, _ = sq_dist_tile(
            x_ptr, stride_xn, stride_xd, x_ptr, stride_xn, stride_xd, shifted_ptr, offs_n, offs_k, N, N, D,
            ACC, PRECISION, BLOCK_D,
        )  # fmt: skip
        same = label[:, None] == tl.load(labels_ptr + offs_k, mask=mask_k, other=-1)[None, :]
        is_nan = sq_dists != sq_dists
        sq_dists = tl.where(sq_dists > LARGEST, LARGEST, sq_dists)
        wanted = same & (offs_n[:, None] != offs_k[None, :]) & mask_k[None, :]
        positives = tl.where(wanted, tl.where(is_nan, float("inf"), sq_dists), -1.0)
        tile_far = tl.max(positives, axis=1)
        column = tl.min(tl.where(positives == tile_far[:, None], columns[None, :], BLOCK_K), axis=1)
        positive = tl.where(tile_far > far, start + column, positive)
        far = tl.maximum(far, tile_far)
        wanted = (same == 0) & mask_k[None, :]
        negatives = tl.where(wanted, tl.where(is_nan, -1.0, sq_dists), float("inf"))
        tile_near = tl.min(negatives, axis=1)
        column = tl.min(tl.where(negatives == tile_near[:, None], columns[None, :], BLOCK_K), axis=1)
        negative = tl.where(tile_near < near, start + column, negative)
        near = tl.minimum(near, tile_near)
    far = tl.where(far == float("inf"), float("nan"), tl.where(far == LARGEST, float("inf"), far))
    near = tl.where(near < 0.0, float("nan"), tl.where(near == LARGEST, float("inf"), near))
    tl.store(positive_ptr + offs_n, positive, mask=mask_n)
    tl.store(negative_ptr + offs_n, negative, mask=mask_n)
    tl.store(far_ptr + offs_n, tl.sqrt(tl.where(far < 0.0, 0.0, far)), mask=mask_n)
    tl.store(near_ptr + offs_n, tl.sqrt(near), mask=mask_n)


@triton.jit(do_not_specialize=RUNTIME)
def _center_distances_kernel(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr, labels_ptr, own_ptr, other_ptr, N, K, D,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Distances of BLOCK_N rows to their own center and to the nearest other one."""
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    label = tl.load(labels_ptr + offs_n, mask=mask_n, other=-1)
    own = tl.zeros([BLOCK_N], ACC)
    other = tl.full([BLOCK_N], float("inf"), ACC)
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        sq_dists, _ = sq_dist_tile(
            x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr, offs_n, offs_k, N, K, D,
            ACC, PRECISION, BLOCK_D,
        )  # fmt: skip
        mine = label[:, None] == offs_k[None, :]
        own += tl.sum(tl.where(mine, sq_dists, 0.0), axis=1)
        rest = (offs_k < K)[None, :] & (mine == 0)
        other = tl.minimum(other, tl.min(tl.where(rest, sq_dists, float("inf")), axis=1))
    tl.store(own_ptr + offs_n, tl.sqrt(own), mask=mask_n)
    tl.store(other_ptr + offs_n, tl.sqrt(other), mask=mask_n)

"""Squared distances and gradients of a tile of rows against a tile of centers, for the GPU kernels.

PRECISION "ieee" computes by differences x - c, a feature at a time. The others are products of rows and centers
shifted by the mean of the centers; there a pair that is *near* (|x - c|^2 < NEAR (|x|^2 + |c|^2) after the shift)
is done again by differences, one pair a row at a time, since a row has few near centers. The reduced precisions
"tf32" and "bf16" leave near pairs as they are.

Points come as (x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr); ``shifted_ptr`` is
:func:`fastdc.kernels._triton.shifted_centers`, unused by differences. ``offs_n`` and ``offs_k`` are int64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdc.kernels import _tile

NEAR = tl.constexpr(_tile.NEAR)


@triton.jit
def is_exact(PRECISION: tl.constexpr):
    """Whether near pairs are done again by differences."""
    return PRECISION == "tf32x3" or PRECISION == "bf16x6"


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """a [M, D] times b [D, N] in float32."""
    if PRECISION == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def sq_dist_tile(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
    offs_n, offs_k, N, K, D,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(squared distances, near pairs), each [BLOCK_N, BLOCK_K]; undefined beyond N and K."""
    BLOCK_N: tl.constexpr = offs_n.shape[0]
    BLOCK_K: tl.constexpr = offs_k.shape[0]
    if PRECISION == "ieee":
        sq_dists = _by_differences(
            x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, offs_n, offs_k, N, K, D, ACC, BLOCK_D
        )
        near = sq_dists < 0.0
    else:
        mask_n, mask_k = offs_n < N, offs_k < K
        product = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
        x_norms = tl.zeros([BLOCK_N], tl.float32)
        c_norms = tl.zeros([BLOCK_K], tl.float32)
        for start in range(0, D, BLOCK_D):
            offs_d = start + tl.arange(0, BLOCK_D)
            x = load_shifted_rows(x_ptr, stride_xn, stride_xd, shifted_ptr, offs_n, offs_d, mask_n, K, D)
            c = tl.load(
                shifted_ptr + offs_k[None, :] * D + offs_d[:, None],
                mask=mask_k[None, :] & (offs_d < D)[:, None],
                other=0.0,
            )
            x_norms += tl.sum(x * x, axis=1)
            c_norms += tl.sum(c * c, axis=0)
            product += dot(x, c, PRECISION)
        norms = x_norms[:, None] + c_norms[None, :]
        sq_dists = norms - 2.0 * product
        # not >= rather than <: also where overflow made a NaN
        far = (sq_dists >= NEAR * norms) | (mask_n[:, None] & mask_k[None, :] == 0)
        near = far == 0
        if is_exact(PRECISION):
            sq_dists = _redo_near(
                x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd,
                tl.where(near, -1.0, sq_dists), offs_n, offs_k, mask_n, D, BLOCK_D,
            )  # fmt: skip
        else:
            sq_dists = tl.where(sq_dists < 0.0, 0.0, sq_dists)
    return sq_dists, near


@triton.jit
def _by_differences(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd,
    offs_n, offs_k, N, K, D,
    ACC: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sums of BLOCK_D features are added up apart: with many features that loses fewer digits."""
    mask_n, mask_k = offs_n < N, offs_k < K
    x_ptrs = x_ptr + offs_n * stride_xn
    c_ptrs = c_ptr + offs_k * stride_ck
    total = tl.zeros([offs_n.shape[0], offs_k.shape[0]], ACC)
    for start in range(0, D, BLOCK_D):
        part = tl.zeros([offs_n.shape[0], offs_k.shape[0]], ACC)
        for _ in range(start, tl.minimum(start + BLOCK_D, D)):
            x = tl.load(x_ptrs, mask=mask_n, other=0.0).to(ACC)
            c = tl.load(c_ptrs, mask=mask_k, other=0.0).to(ACC)
            difference = x[:, None] - c[None, :]
            part += difference * difference
            x_ptrs += stride_xd
            c_ptrs += stride_cd
        total += part
    return total


@triton.jit
def load_shifted_rows(x_ptr, stride_xn, stride_xd, shifted_ptr, offs_n, offs_d, mask_n, K, D):
    """Rows minus the mean of the centers, float32 [BLOCK_N, BLOCK_D]; zero outside."""
    mask_d = offs_d < D
    mean = tl.load(shifted_ptr + K.to(tl.int64) * D + offs_d, mask=mask_d, other=0.0)
    mask = mask_n[:, None] & mask_d[None, :]
    x = tl.load(
        x_ptr + offs_n[:, None] * stride_xn + offs_d.to(tl.int64)[None, :] * stride_xd, mask=mask, other=0.0
    ).to(tl.float32)
    return tl.where(mask, x - mean[None, :], 0.0)


@triton.jit
def load_tile(ptr, stride_row, stride_column, rows, columns, mask_rows, mask_columns):
    """float32 [rows, columns] of any matrix; zero where masked."""
    mask = mask_rows[:, None] & mask_columns[None, :]
    pointers = ptr + rows[:, None] * stride_row + columns.to(tl.int64)[None, :] * stride_column
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def add_to(ptr, stride_row, rows, columns, tile, again, mask_rows, mask_columns):
    """Store a tile; add it to what is there in the rows ``again``."""
    pointers = ptr + rows[:, None] * stride_row + columns[None, :]
    before = tl.load(pointers, mask=again[:, None] & mask_columns[None, :], other=0.0)
    tl.store(pointers, before + tile, mask=mask_rows[:, None] & mask_columns[None, :])


@triton.jit
def any_of(mask):
    """Whether any entry of a boolean tile is set."""
    return tl.max(tl.max(mask.to(tl.int32), axis=1), axis=0) > 0


@triton.jit
def _redo_near(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd,
    sq_dists, offs_n, offs_k, mask_n, D, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Negative squared distances anew by differences: in each turn the first one of every row."""
    BLOCK_K: tl.constexpr = offs_k.shape[0]
    columns = tl.arange(0, BLOCK_K)
    first_k = tl.min(offs_k, axis=0)
    while any_of(sq_dists < 0.0):
        column = tl.min(tl.where(sq_dists < 0.0, columns[None, :], BLOCK_K), axis=1)
        some = mask_n & (column < BLOCK_K)
        total = tl.zeros([offs_n.shape[0]], tl.float32)
        for start in range(0, D, BLOCK_D):
            offs_d = start + tl.arange(0, BLOCK_D)
            x = load_tile(x_ptr, stride_xn, stride_xd, offs_n, offs_d, some, offs_d < D)
            c = load_tile(c_ptr, stride_ck, stride_cd, first_k + column, offs_d, some, offs_d < D)
            total += tl.sum((x - c) * (x - c), axis=1)
        sq_dists = tl.where(columns[None, :] == column[:, None], total[:, None], sq_dists)
    return sq_dists


@triton.jit
def add_row_gradient(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
    weights, near, grad_ptr, n_before, offs_n, offs_k, N, K, D,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sum over centers of weights (x - c) into grad (N, D): added to it where n_before > 0, else stored."""
    mask_n, mask_k = offs_n < N, offs_k < K
    again = mask_n & (offs_n * 0 + n_before > 0)
    tl.debug_barrier()  # other threads may have stored what is loaded here
    if PRECISION == "ieee":
        for d in range(0, D):
            offs_d = tl.cast(d, tl.int64)
            x = tl.load(x_ptr + offs_n * stride_xn + offs_d * stride_xd, mask=mask_n, other=0.0).to(ACC)
            c = tl.load(c_ptr + offs_k * stride_ck + offs_d * stride_cd, mask=mask_k, other=0.0).to(ACC)
            part = tl.sum(weights * (x[:, None] - c[None, :]), axis=1)
            pointers = grad_ptr + offs_n * D + d
            before = tl.load(pointers, mask=again, other=0.0)
            tl.store(pointers, before + part, mask=mask_n)
    else:
        far = weights
        if is_exact(PRECISION):
            far = tl.where(near, 0.0, weights)
        total = tl.sum(far, axis=1)
        for start in range(0, D, BLOCK_D):
            offs_d = start + tl.arange(0, BLOCK_D)
            mask_d = offs_d < D
            x = load_shifted_rows(x_ptr, stride_xn, stride_xd, shifted_ptr, offs_n, offs_d, mask_n, K, D)
            c = load_tile(shifted_ptr, D, 1, offs_k, offs_d, mask_k, mask_d)
            part = total[:, None] * x - dot(far, c, PRECISION)
            add_to(grad_ptr, D, offs_n, offs_d, part, again, mask_n, mask_d)
        if is_exact(PRECISION):
            _add_near_rows(
                x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd,
                tl.where(near, weights, 0.0), grad_ptr, offs_n, offs_k, mask_n, D, BLOCK_D,
            )  # fmt: skip


@triton.jit
def _add_near_rows(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd,
    weights, grad_ptr, offs_n, offs_k, mask_n, D, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add weights (x - c), of which few are not zero, to grad (N, D): in each turn the first one of every row."""
    BLOCK_K: tl.constexpr = offs_k.shape[0]
    columns = tl.arange(0, BLOCK_K)
    first_k = tl.min(offs_k, axis=0)
    while any_of(weights != 0.0):
        column = tl.min(tl.where(weights != 0.0, columns[None, :], BLOCK_K), axis=1)
        some = mask_n & (column < BLOCK_K)
        hit = columns[None, :] == column[:, None]
        weight = tl.sum(tl.where(hit, weights, 0.0), axis=1)
        weights = tl.where(hit, 0.0, weights)
        tl.debug_barrier()
        for start in range(0, D, BLOCK_D):
            offs_d = start + tl.arange(0, BLOCK_D)
            mask_d = offs_d < D
            x = load_tile(x_ptr, stride_xn, stride_xd, offs_n, offs_d, some, mask_d)
            c = load_tile(c_ptr, stride_ck, stride_cd, first_k + column, offs_d, some, mask_d)
            add_to(grad_ptr, D, offs_n, offs_d, weight[:, None] * (x - c), some, some, mask_d)


@triton.jit
def add_center_gradient(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
    weights, near, grad_ptr, n_before, offs_n, offs_k, N, K, D,
    ACC: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sum over rows of weights (x - c) into grad (K, D): added to it where n_before > 0, else stored."""
    mask_n, mask_k = offs_n < N, offs_k < K
    again = mask_k & (offs_k * 0 + n_before > 0)
    tl.debug_barrier()  # other threads may have stored what is loaded here
    if PRECISION == "ieee":
        for d in range(0, D):
            offs_d = tl.cast(d, tl.int64)
            x = tl.load(x_ptr + offs_n * stride_xn + offs_d * stride_xd, mask=mask_n, other=0.0).to(ACC)
            c = tl.load(c_ptr + offs_k * stride_ck + offs_d * stride_cd, mask=mask_k, other=0.0).to(ACC)
            part = tl.sum(weights * (x[:, None] - c[None, :]), axis=0)
            pointers = grad_ptr + offs_k * D + d
            before = tl.load(pointers, mask=again, other=0.0)
            tl.store(pointers, before + part, mask=mask_k)
    else:
        far = weights
        if is_exact(PRECISION):
            far = tl.where(near, 0.0, weights)
        total = tl.sum(far, axis=0)
        for start in range(0, D, BLOCK_D):
            offs_d = start + tl.arange(0, BLOCK_D)
            mask_d = offs_d < D
            x = load_shifted_rows(x_ptr, stride_xn, stride_xd, shifted_ptr, offs_n, offs_d, mask_n, K, D)
            c = load_tile(shifted_ptr, D, 1, offs_k, offs_d, mask_k, mask_d)
            part = dot(tl.trans(far), x, PRECISION) - total[:, None] * c
            add_to(grad_ptr, D, offs_k, offs_d, part, again, mask_k, mask_d)
        if is_exact(PRECISION):
            _add_near_centers(
                x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd,
                tl.where(near, weights, 0.0), grad_ptr, offs_n, offs_k, mask_k, D, BLOCK_D,
            )  # fmt: skip


@triton.jit
def _add_near_centers(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd,
    weights, grad_ptr, offs_n, offs_k, mask_k, D, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Add weights (x - c), of which few are not zero, to grad (K, D): in each turn the first one of every center."""
    BLOCK_N: tl.constexpr = offs_n.shape[0]
    rows = tl.arange(0, BLOCK_N)
    first_n = tl.min(offs_n, axis=0)
    while any_of(weights != 0.0):
        row = tl.min(tl.where(weights != 0.0, rows[:, None], BLOCK_N), axis=0)
        some = mask_k & (row < BLOCK_N)
        hit = rows[:, None] == row[None, :]
        weight = tl.sum(tl.where(hit, weights, 0.0), axis=0)
        weights = tl.where(hit, 0.0, weights)
        tl.debug_barrier()
        for start in range(0, D, BLOCK_D):
            offs_d = start + tl.arange(0, BLOCK_D)
            mask_d = offs_d < D
            x = load_tile(x_ptr, stride_xn, stride_xd, first_n + row, offs_d, some, mask_d)
            c = load_tile(c_ptr, stride_ck, stride_cd, offs_k, offs_d, some, mask_d)
            add_to(grad_ptr, D, offs_k, offs_d, weight[:, None] * (x - c), some, some, mask_d)

"""Triton kernels: a block of rows or a part of all rows against one tile of centers after the other.

Never is there an (N, K) matrix. A row keeps two numbers between kernels: its *steepest* slope, where slope =
1 / (1 + d^2 / alpha), and its *mass*, the sum over centers of (slope / steepest)^((alpha + 1) / 2), so that
nothing underflows; q is that power over the mass. Points are described in ``_triton_tile.py``.

Sums over rows are made in parts by programs of their own, and added up in a fixed order by the caller.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdc.kernels._triton_tile import add_center_gradient, add_row_gradient, sq_dist_tile

OWN, FROZEN, GIVEN, COTANGENT = (tl.constexpr(i) for i in range(4))  # what a tile of q is compared with
PLAIN, GAIN, EXPECTED, STATISTICS = (tl.constexpr(i) for i in range(4))  # what a row's mass comes with
RUNTIME = ["N", "K", "rows_a_split"]  # neither a size of 1 nor a multiple of 16 compiles anew


@triton.jit
def slope_of(sq_dists, mask_k, ALPHA: tl.constexpr, ACC: tl.constexpr):
    """1 / (1 + d^2 / alpha), d^2 / alpha capped; zero for masked centers."""
    LARGEST: tl.constexpr = 1e300 if ACC == tl.float64 else 1e36
    ratio = sq_dists if ALPHA == 1.0 else sq_dists / ALPHA
    ratio = tl.where(ratio > LARGEST, LARGEST, ratio)  # leaves NaN
    return tl.where(mask_k[None, :], 1.0 / (1.0 + ratio), 0.0)


@triton.jit
def relative(slope, steepest, ALPHA: tl.constexpr):
    """(slope / steepest)^((alpha + 1) / 2)."""
    ratio = slope / steepest
    if ALPHA == 1.0:
        return ratio
    else:
        return tl.exp2(((ALPHA + 1.0) / 2.0) * tl.log2(ratio))


@triton.jit
def raised(value, EXPONENT: tl.constexpr):
    """value^EXPONENT for value >= 0."""
    if EXPONENT == 1.0:
        return value
    elif EXPONENT == 2.0:
        return value * value
    else:
        return tl.exp2(EXPONENT * tl.log2(value))


@triton.jit
def times_log(factor, value):
    """factor ln value, zero where the factor is zero."""
    return factor * tl.log(tl.where(factor == 0.0, 1.0, value))


@triton.jit
def add_compensated(total, lost, value):
    """(total, lost) of a sum whose rounding error is carried along: an error common to a row's q is seen in p - q."""
    corrected = value - lost
    after = total + corrected
    taken = after - total  # exact whichever of the two is larger: large ones come late too
    return after, ((after - taken) - total) + (taken - corrected)


@triton.jit(do_not_specialize=RUNTIME)
def _student_t_mass_kernel(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
    gain_ptr, g_ptr, stride_gn, stride_gk,
    steepest_ptr, mass_ptr, extra_ptr, labels_ptr,
    N, K, D,
    ALPHA: tl.constexpr, POWER: tl.constexpr, MODE: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Steepest slope and mass (N,) of BLOCK_N rows, and by MODE one number more a row in extra (N,).

    GAIN: sum of power^POWER * gain relative to the steepest. EXPECTED: sum of q * g. STATISTICS: the entropy of
    q; also labels (N,), of equally near centers the first, -1 without a mass.
    """
    ACC: tl.constexpr = mass_ptr.dtype.element_ty
    FLATTEST: tl.constexpr = 1e-301 if ACC == tl.float64 else 1e-37
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    zero = tl.zeros([BLOCK_N], ACC)
    steepest = zero + FLATTEST
    mass, mass_lost, extra, extra_lost = zero, zero, zero, zero
    smallest = zero + float("inf")
    nearest = tl.zeros([BLOCK_N], tl.int32)
    for start in tl.range(0, K, BLOCK_K, disable_licm=MODE == STATISTICS):  # no registers left to hold addresses in
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        mask_k = offs_k < K
        sq_dists, _ = sq_dist_tile(
            x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
            offs_n, offs_k, N, K, D, ACC, PRECISION, BLOCK_D,
        )  # fmt: skip
        if MODE == STATISTICS:  # before the distances become slopes
            candidates = tl.where(mask_k[None, :] & (sq_dists == sq_dists), sq_dists, float("inf"))
            closest = tl.min(candidates, axis=1)
            index = tl.argmin(candidates, axis=1, tie_break_left=True)
            nearest = tl.where(closest < smallest, start + index, nearest)
            smallest = tl.minimum(closest, smallest)
        slope = slope_of(sq_dists, mask_k, ALPHA, ACC)
        larger = tl.maximum(steepest, tl.max(slope, axis=1))
        shrink = relative(steepest, larger, ALPHA)
        weight = tl.where(mask_k[None, :], relative(slope, larger[:, None], ALPHA), 0.0)
        steepest = larger
        if MODE == GAIN:
            gain = tl.load(gain_ptr + offs_k, mask=mask_k, other=0.0)
            factor = raised(shrink, POWER)
            extra, extra_lost = add_compensated(
                extra * factor, extra_lost * factor, tl.sum(raised(weight, POWER) * gain[None, :], axis=1)
            )
        elif MODE == EXPECTED:
            pointers = g_ptr + offs_n[:, None] * stride_gn + offs_k[None, :] * stride_gk
            g = tl.load(pointers, mask=mask_n[:, None] & mask_k[None, :], other=0.0).to(ACC)
            extra, extra_lost = add_compensated(extra * shrink, extra_lost * shrink, tl.sum(weight * g, axis=1))
        elif MODE == STATISTICS:
            extra = shrink * (extra + times_log(mass, shrink)) + tl.sum(times_log(weight, weight), axis=1)
        mass, mass_lost = add_compensated(mass * shrink, mass_lost * shrink, tl.sum(weight, axis=1))
    tl.store(steepest_ptr + offs_n, steepest, mask=mask_n)
    tl.store(mass_ptr + offs_n, mass, mask=mask_n)
    if MODE == GAIN:
        tl.store(extra_ptr + offs_n, extra, mask=mask_n)
    elif MODE == EXPECTED:
        tl.store(extra_ptr + offs_n, extra / mass, mask=mask_n)
    elif MODE == STATISTICS:
        tl.store(extra_ptr + offs_n, tl.log(mass) - extra / mass, mask=mask_n)
        tl.store(labels_ptr + offs_n, tl.where(mass > 0.0, nearest, -1).to(tl.int64), mask=mask_n)


@triton.jit
def _soft_tile(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
    steepest_ptr, mass_ptr, offs_n, offs_k, N, K, D,
    ALPHA: tl.constexpr, PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(kernel relative to the steepest, slope, near pairs) [BLOCK_N, BLOCK_K] and mass [BLOCK_N]."""
    ACC: tl.constexpr = mass_ptr.dtype.element_ty
    mask_n, mask_k = offs_n < N, offs_k < K
    sq_dists, near = sq_dist_tile(
        x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
        offs_n, offs_k, N, K, D, ACC, PRECISION, BLOCK_D,
    )  # fmt: skip
    slope = slope_of(sq_dists, mask_k, ALPHA, ACC)
    steepest = tl.load(steepest_ptr + offs_n, mask=mask_n, other=1.0)
    mass = tl.load(mass_ptr + offs_n, mask=mask_n, other=1.0)
    return relative(slope, steepest[:, None], ALPHA), slope, near, mass


@triton.jit(do_not_specialize=RUNTIME)
def _student_t_assign_kernel(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
    steepest_ptr, mass_ptr, q_ptr, N, K, D,
    ALPHA: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of q (N, K)."""
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    weight, _, _, mass = _soft_tile(
        x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
        steepest_ptr, mass_ptr, offs_n, offs_k, N, K, D, ALPHA, PRECISION, BLOCK_D,
    )  # fmt: skip
    mask = (offs_n < N)[:, None] & (offs_k < K)[None, :]
    tl.store(q_ptr + offs_n[:, None] * K + offs_k[None, :], weight / mass[:, None], mask=mask)


@triton.jit(do_not_specialize=RUNTIME)
def _student_t_frequency_kernel(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
    steepest_ptr, mass_ptr, partial_ptr, rows_a_split, N, K, D,
    ALPHA: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Sum of q over one part of the rows, for one tile of centers, into partial (parts, K); NaN rows add nothing."""
    split = tl.program_id(0).to(tl.int64)
    offs_k = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    first = split * rows_a_split
    total = tl.zeros([BLOCK_K], tl.float64)
    for start in range(first, tl.minimum(first + rows_a_split, N), BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        weight, _, _, mass = _soft_tile(
            x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
            steepest_ptr, mass_ptr, offs_n, offs_k, N, K, D, ALPHA, PRECISION, BLOCK_D,
        )  # fmt: skip
        valid = (mass > 0.0) & (offs_n < N)
        total += tl.sum(tl.where(valid[:, None], weight / mass[:, None], 0.0), axis=0).to(tl.float64)
    tl.store(partial_ptr + split * K + offs_k, total, mask=offs_k < K)


@triton.jit
def _gradient_tile(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr, steepest_ptr, mass_ptr,
    t_ptr, stride_tn, stride_td, tc_ptr, stride_tk, stride_tcd, tshifted_ptr, tsteepest_ptr, tsum_ptr,
    gain_ptr, scale_ptr, offs_n, offs_k, N, K, D, DT,
    ALPHA: tl.constexpr, POWER: tl.constexpr, SOURCE: tl.constexpr,
    PRECISION: tl.constexpr, T_PRECISION: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """(weights of x - c in the gradient, p ln(p / q), near pairs), each [BLOCK_N, BLOCK_K] and zero outside.

    By SOURCE p comes from q itself, from the frozen points t and tc (DT features), or is the matrix t; with
    COTANGENT the matrix t is the gradient of q. tsum (N,): the sum of power^POWER * gain (OWN, FROZEN), of
    p (GIVEN), or of q t (COTANGENT).
    """
    ACC: tl.constexpr = mass_ptr.dtype.element_ty
    mask_n, mask_k = offs_n < N, offs_k < K
    mask = mask_n[:, None] & mask_k[None, :]
    tsum = tl.load(tsum_ptr + offs_n, mask=mask_n, other=1.0)[:, None]
    if SOURCE == OWN or SOURCE == FROZEN:
        gain = tl.load(gain_ptr + offs_k, mask=mask_k, other=0.0)[None, :]
    if SOURCE == FROZEN:  # before q, whose tiles would have to be kept meanwhile
        t_dists, _ = sq_dist_tile(
            t_ptr, stride_tn, stride_td, tc_ptr, stride_tk, stride_tcd, tshifted_ptr,
            offs_n, offs_k, N, K, DT, ACC, T_PRECISION, BLOCK_D,
        )  # fmt: skip
        t_steepest = tl.load(tsteepest_ptr + offs_n, mask=mask_n, other=1.0)
        t_weight = relative(slope_of(t_dists, mask_k, ALPHA, ACC), t_steepest[:, None], ALPHA)
        p = raised(t_weight, POWER) * gain / tsum
    weight, slope, near, mass = _soft_tile(
        x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
        steepest_ptr, mass_ptr, offs_n, offs_k, N, K, D, ALPHA, PRECISION, BLOCK_D,
    )  # fmt: skip
    q = weight / mass[:, None]
    scale = tl.load(scale_ptr)
    if SOURCE == OWN:
        # one logarithm of a ratio near one, so that little cancels
        ratio = raised(weight, POWER - 1.0) * gain * (mass[:, None] / tsum)
        p = tl.where(weight == 0.0, 0.0, ratio * q)
        loss = times_log(p, ratio)
        difference = p - q
    elif SOURCE == FROZEN:
        loss = _p_log_ratio(p, q)
        difference = p - q
    else:
        pointers = t_ptr + offs_n[:, None] * stride_tn + offs_k[None, :] * stride_td
        p = tl.load(pointers, mask=mask, other=0.0).to(ACC)
        if SOURCE == GIVEN:
            loss = _p_log_ratio(p, q)
            difference = p - tsum * q
        else:
            loss = tl.zeros_like(q)
            difference = q * (p - tsum)
    return tl.where(mask, scale * slope * difference, 0.0), tl.where(mask, loss, 0.0), near


@triton.jit
def _p_log_ratio(p, q):
    """p ln(p / q), zero where p is."""
    TINY: tl.constexpr = 1e-300 if q.dtype == tl.float64 else 1e-37
    return times_log(p, p / tl.where(q < TINY, TINY, q))


@triton.jit(do_not_specialize=RUNTIME)
def _student_t_rows_kernel(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr, steepest_ptr, mass_ptr,
    t_ptr, stride_tn, stride_td, tc_ptr, stride_tk, stride_tcd, tshifted_ptr, tsteepest_ptr, tsum_ptr,
    gain_ptr, scale_ptr, loss_ptr, grad_ptr, N, K, D, DT,
    ALPHA: tl.constexpr, POWER: tl.constexpr, SOURCE: tl.constexpr, NEED_X: tl.constexpr,
    PRECISION: tl.constexpr, T_PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Loss of BLOCK_N rows into loss (programs,), float64, and their gradient into grad (N, D)."""
    ACC: tl.constexpr = mass_ptr.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    offs_n = pid * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], ACC)
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        weights, loss, near = _gradient_tile(
            x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr, steepest_ptr, mass_ptr,
            t_ptr, stride_tn, stride_td, tc_ptr, stride_tk, stride_tcd, tshifted_ptr, tsteepest_ptr, tsum_ptr,
            gain_ptr, scale_ptr, offs_n, offs_k, N, K, D, DT,
            ALPHA, POWER, SOURCE, PRECISION, T_PRECISION, BLOCK_D,
        )  # fmt: skip
        total += tl.sum(loss, axis=1)
        if NEED_X:
            add_row_gradient(
                x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
                weights, near, grad_ptr, start, offs_n, offs_k, N, K, D, ACC, PRECISION, BLOCK_D,
            )  # fmt: skip
    tl.store(loss_ptr + pid, tl.sum(total.to(tl.float64), axis=0))


@triton.jit(do_not_specialize=RUNTIME)
def _student_t_centers_kernel(
    x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr, steepest_ptr, mass_ptr,
    t_ptr, stride_tn, stride_td, tc_ptr, stride_tk, stride_tcd, tshifted_ptr, tsteepest_ptr, tsum_ptr,
    gain_ptr, scale_ptr, partial_ptr, rows_a_split, N, K, D, DT,
    ALPHA: tl.constexpr, POWER: tl.constexpr, SOURCE: tl.constexpr,
    PRECISION: tl.constexpr, T_PRECISION: tl.constexpr, FEW_REGISTERS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Minus the gradient of one tile of centers from one part of the rows, into partial (parts, K, D).

    FEW_REGISTERS: addresses that stay the same are made anew for each tile, instead of being held.
    """
    ACC: tl.constexpr = mass_ptr.dtype.element_ty
    split = tl.program_id(0).to(tl.int64)
    offs_k = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    first = split * rows_a_split
    for start in tl.range(first, tl.minimum(first + rows_a_split, N), BLOCK_N, disable_licm=FEW_REGISTERS):
        offs_n = start + tl.arange(0, BLOCK_N)
        weights, _, near = _gradient_tile(
            x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr, steepest_ptr, mass_ptr,
            t_ptr, stride_tn, stride_td, tc_ptr, stride_tk, stride_tcd, tshifted_ptr, tsteepest_ptr, tsum_ptr,
            gain_ptr, scale_ptr, offs_n, offs_k, N, K, D, DT,
            ALPHA, POWER, SOURCE, PRECISION, T_PRECISION, BLOCK_D,
        )  # fmt: skip
        add_center_gradient(
            x_ptr, stride_xn, stride_xd, c_ptr, stride_ck, stride_cd, shifted_ptr,
            weights, near, partial_ptr + split * K * D, start - first,
            offs_n, offs_k, N, K, D, ACC, PRECISION, BLOCK_D,
        )  # fmt: skip


@triton.jit(do_not_specialize=RUNTIME)
def _target_distribution_kernel(
    q_ptr, stride_qn, stride_qk, gain_ptr, p_ptr, N, K,
    POWER: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """p ~ q^POWER * gain of BLOCK_N rows; relative to the row's largest q, so that no power underflows."""
    ACC: tl.constexpr = gain_ptr.dtype.element_ty
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    q_rows = q_ptr + offs_n[:, None] * stride_qn
    tops = tl.zeros([BLOCK_N, BLOCK_K], ACC)  # reduced after the loop: Triton 3.6 fails on a maximum of maxima in it
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        mask = mask_n[:, None] & (offs_k < K)[None, :]
        q = tl.load(q_rows + offs_k[None, :] * stride_qk, mask=mask, other=0.0).to(ACC)
        tops = tl.maximum(tops, q)
    largest = tl.max(tops, axis=1)
    total = tl.zeros([BLOCK_N], ACC)
    lost = tl.zeros([BLOCK_N], ACC)
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        mask = mask_n[:, None] & (offs_k < K)[None, :]
        q = tl.load(q_rows + offs_k[None, :] * stride_qk, mask=mask, other=0.0).to(ACC)
        gain = tl.load(gain_ptr + offs_k, mask=offs_k < K, other=0.0)[None, :]
        weight = tl.where(mask, raised(q / largest[:, None], POWER) * gain, 0.0)
        total, lost = add_compensated(total, lost, tl.sum(weight, axis=1))
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        mask = mask_n[:, None] & (offs_k < K)[None, :]
        q = tl.load(q_rows + offs_k[None, :] * stride_qk, mask=mask, other=0.0).to(ACC)
        gain = tl.load(gain_ptr + offs_k, mask=offs_k < K, other=0.0)[None, :]
        weight = raised(q / largest[:, None], POWER) * gain
        tl.store(p_ptr + offs_n[:, None] * K + offs_k[None, :], weight / total[:, None], mask=mask)

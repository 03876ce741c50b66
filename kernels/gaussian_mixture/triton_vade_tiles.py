"""Triton kernels of VaDE's loss; the formulas stand in ``numba_vade_tiles.py``.

Rows come as (z_ptr, stride_zn, stride_zd, u_ptr, stride_un, stride_ud, v_ptr, stride_vn, stride_vd): the sample, mean
and log variance of the posterior. ``m_ptr`` and ``p_ptr`` (K, D) are the components' means and 1 / variances,
``norm_ptr`` (K,) what their logarithms begin with. A row keeps three numbers between kernels: the *largest*
logarithm A, the *total* of exponentials relative to it, and the *mean* of Q.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdc.kernels.gaussian_mixture.triton_tiles import RUNTIME, finite_or_zero, load_feature


@triton.jit
def load_component(ptr, offs_k, d, mask_k, D):
    return tl.load(ptr + offs_k * D + d, mask=mask_k, other=0.0)


@triton.jit
def joint_tile(
    z_ptr, stride_zn, stride_zd, u_ptr, stride_un, stride_ud, v_ptr, stride_vn, stride_vd, m_ptr, p_ptr, norm_ptr,
    offs_n, offs_k, N, K, D, ACC: tl.constexpr,
):  # fmt: skip
    """(A, Q), each [BLOCK_N, BLOCK_K]; A is minus infinity beyond K."""
    mask_n, mask_k = offs_n < N, offs_k < K
    log_joint = tl.zeros([offs_n.shape[0], offs_k.shape[0]], ACC)
    quotient = tl.zeros([offs_n.shape[0], offs_k.shape[0]], ACC)
    for d in range(0, D):
        z = load_feature(z_ptr, stride_zn, stride_zd, offs_n, d, mask_n, ACC)
        e = load_feature(u_ptr, stride_un, stride_ud, offs_n, d, mask_n, ACC) - z
        w = tl.exp(load_feature(v_ptr, stride_vn, stride_vd, offs_n, d, mask_n, ACC)) + e * e
        p = load_component(p_ptr, offs_k, d, mask_k, D)[None, :]
        t = z[:, None] - load_component(m_ptr, offs_k, d, mask_k, D)[None, :]
        log_joint -= 0.5 * p * t * t
        quotient += p * (0.5 * w[:, None] + e[:, None] * t)
    norm = tl.load(norm_ptr + offs_k, mask=mask_k, other=float("-inf"))
    return log_joint + norm[None, :], quotient


@triton.jit
def slopes(log_joint, quotient, largest, total, mean, DETACHED: tl.constexpr):
    """gamma, and G: how the loss depends on A through gamma."""
    gamma = tl.exp(log_joint - largest[:, None]) / total[:, None]
    if DETACHED:
        return gamma, tl.zeros_like(gamma)
    else:
        return gamma, tl.where(gamma == 0.0, 0.0, gamma * (quotient - mean[:, None]))


@triton.jit(do_not_specialize=RUNTIME)
def _vade_rows_kernel(
    z_ptr, stride_zn, stride_zd, u_ptr, stride_un, stride_ud, v_ptr, stride_vn, stride_vd, m_ptr, p_ptr, norm_ptr,
    largest_ptr, total_ptr, mean_ptr, loss_ptr, N, K, D,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Loss of BLOCK_N rows into loss (programs,), and what the rows keep (N,)."""
    ACC: tl.constexpr = largest_ptr.dtype.element_ty
    pid = tl.program_id(0).to(tl.int64)
    offs_n = pid * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    largest = tl.zeros([BLOCK_N], ACC) - float("inf")
    total = tl.zeros([BLOCK_N], ACC)
    mean = tl.zeros([BLOCK_N], ACC)
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        log_joint, quotient = joint_tile(
            z_ptr, stride_zn, stride_zd, u_ptr, stride_un, stride_ud, v_ptr, stride_vn, stride_vd,
            m_ptr, p_ptr, norm_ptr, offs_n, offs_k, N, K, D, ACC,
        )  # fmt: skip
        larger = tl.maximum(largest, tl.max(log_joint, axis=1))
        shift = finite_or_zero(larger)
        shrink = tl.exp(largest - shift)
        weight = tl.exp(log_joint - shift[:, None])
        total = total * shrink + tl.sum(weight, axis=1)
        mean = mean * shrink + tl.sum(tl.where(weight == 0.0, 0.0, weight * quotient), axis=1)
        largest = larger
    mean = mean / total
    loss = mean - largest - tl.log(total)
    for d in range(0, D):
        loss -= 0.5 * (1.0 + load_feature(v_ptr, stride_vn, stride_vd, offs_n, d, mask_n, ACC))
    tl.store(loss_ptr + pid, tl.sum(tl.where(mask_n, loss, 0.0).to(tl.float64), axis=0))
    tl.store(largest_ptr + offs_n, largest, mask=mask_n)
    tl.store(total_ptr + offs_n, total, mask=mask_n)
    tl.store(mean_ptr + offs_n, mean, mask=mask_n)


@triton.jit(do_not_specialize=RUNTIME)
def _vade_gradients_kernel(
    z_ptr, stride_zn, stride_zd, u_ptr, stride_un, stride_ud, v_ptr, stride_vn, stride_vd, m_ptr, p_ptr, norm_ptr,
    largest_ptr, total_ptr, mean_ptr, grad_z_ptr, grad_u_ptr, grad_v_ptr, N, K, D,
    DETACHED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Gradients of z, mu and log_var (N, D) of BLOCK_N rows."""
    ACC: tl.constexpr = largest_ptr.dtype.element_ty
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask_n = offs_n < N
    largest = tl.load(largest_ptr + offs_n, mask=mask_n, other=0.0)
    total = tl.load(total_ptr + offs_n, mask=mask_n, other=1.0)
    mean = tl.load(mean_ptr + offs_n, mask=mask_n, other=0.0)
    for start in range(0, K, BLOCK_K):
        offs_k = start + tl.arange(0, BLOCK_K).to(tl.int64)
        mask_k = offs_k < K
        log_joint, quotient = joint_tile(
            z_ptr, stride_zn, stride_zd, u_ptr, stride_un, stride_ud, v_ptr, stride_vn, stride_vd,
            m_ptr, p_ptr, norm_ptr, offs_n, offs_k, N, K, D, ACC,
        )  # fmt: skip
        gamma, slope = slopes(log_joint, quotient, largest, total, mean, DETACHED)
        again = mask_n & (offs_n * 0 + start > 0)
        tl.debug_barrier()  # other threads may have stored what is loaded here
        for d in range(0, D):
            z = load_feature(z_ptr, stride_zn, stride_zd, offs_n, d, mask_n, ACC)
            e = load_feature(u_ptr, stride_un, stride_ud, offs_n, d, mask_n, ACC) - z
            variance = tl.exp(load_feature(v_ptr, stride_vn, stride_vd, offs_n, d, mask_n, ACC))
            p = load_component(p_ptr, offs_k, d, mask_k, D)[None, :]
            t = z[:, None] - load_component(m_ptr, offs_k, d, mask_k, D)[None, :]
            place = offs_n * D + d
            before = tl.load(grad_z_ptr + place, mask=again, other=0.0)
            tl.store(grad_z_ptr + place, before - tl.sum(slope * p * t, axis=1), mask=mask_n)
            before = tl.load(grad_u_ptr + place, mask=again, other=0.0)
            tl.store(grad_u_ptr + place, before + tl.sum(gamma * p * (t + e[:, None]), axis=1), mask=mask_n)
            before = tl.load(grad_v_ptr + place, mask=again, other=-0.5)
            tl.store(grad_v_ptr + place, before + 0.5 * variance * tl.sum(gamma * p, axis=1), mask=mask_n)


@triton.jit(do_not_specialize=RUNTIME)
def _vade_components_kernel(
    z_ptr, stride_zn, stride_zd, u_ptr, stride_un, stride_ud, v_ptr, stride_vn, stride_vd, m_ptr, p_ptr, norm_ptr,
    largest_ptr, total_ptr, mean_ptr, mass_ptr, first_ptr, second_ptr, rows_a_split, N, K, D,
    DETACHED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Sums over one part of the rows, for one tile of components, float64: of H into mass (parts, K), of
    H t - gamma e into first and of H t^2 - gamma (w + 2 e t) into second (parts, K, D).
    """
    ACC: tl.constexpr = largest_ptr.dtype.element_ty
    split = tl.program_id(0).to(tl.int64)
    offs_k = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask_k = offs_k < K
    start_of_split = split * rows_a_split
    mass = tl.zeros([BLOCK_K], tl.float64)
    for start in range(start_of_split, tl.minimum(start_of_split + rows_a_split, N), BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        mask_n = offs_n < N
        log_joint, quotient = joint_tile(
            z_ptr, stride_zn, stride_zd, u_ptr, stride_un, stride_ud, v_ptr, stride_vn, stride_vd,
            m_ptr, p_ptr, norm_ptr, offs_n, offs_k, N, K, D, ACC,
        )  # fmt: skip
        largest = tl.load(largest_ptr + offs_n, mask=mask_n, other=0.0)
        total = tl.load(total_ptr + offs_n, mask=mask_n, other=1.0)
        mean = tl.load(mean_ptr + offs_n, mask=mask_n, other=0.0)
        gamma, slope = slopes(log_joint, quotient, largest, total, mean, DETACHED)
        gamma = tl.where(mask_n[:, None], gamma, 0.0)
        weight = tl.where(mask_n[:, None], slope, 0.0) - gamma
        mass += tl.sum(weight, axis=0).to(tl.float64)
        again = mask_k & (offs_k * 0 + start > start_of_split)
        tl.debug_barrier()  # other threads may have stored what is loaded here
        for d in range(0, D):
            z = load_feature(z_ptr, stride_zn, stride_zd, offs_n, d, mask_n, ACC)
            e = load_feature(u_ptr, stride_un, stride_ud, offs_n, d, mask_n, ACC) - z
            w = tl.exp(load_feature(v_ptr, stride_vn, stride_vd, offs_n, d, mask_n, ACC)) + e * e
            t = z[:, None] - load_component(m_ptr, offs_k, d, mask_k, D)[None, :]
            place = (split * K + offs_k) * D + d
            before = tl.load(first_ptr + place, mask=again, other=0.0)
            part = tl.sum(weight * t - gamma * e[:, None], axis=0)
            tl.store(first_ptr + place, before + part.to(tl.float64), mask=mask_k)
            before = tl.load(second_ptr + place, mask=again, other=0.0)
            part = tl.sum(weight * t * t - gamma * (w[:, None] + 2.0 * e[:, None] * t), axis=0)
            tl.store(second_ptr + place, before + part.to(tl.float64), mask=mask_k)
    tl.store(mass_ptr + split * K + offs_k, mass, mask=mask_k)

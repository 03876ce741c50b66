"""The definition in plain torch: any device, float64 too, differentiable. Written to be read, not to be fast.

Byte counts are for n rows, k centers, d features and s bytes a number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdc.kernels._precision import working_dtype

LARGEST_RATIO = {torch.float32: 1e36, torch.float64: 1e300}  # cap on d^2 / alpha: beyond it centers tie


def sq_dists_reference(x: Tensor, centers: Tensor) -> Tensor:
    """|x_i - c_j|^2 of shape (n_samples, n_clusters), by differences: nothing cancels."""
    dtype = working_dtype(x, centers)
    x, centers = x.to(dtype), centers.to(dtype)  # moves 2 n d s where x is half precision
    difference = x[:, None, :] - centers[None, :, :]  # writes n k d s
    return difference.square().sum(dim=2)  # reads n k d s, writes n k s


def log_kernel_reference(sq_dists: Tensor, alpha: float) -> Tensor:
    """log (1 + d^2 / alpha)^(-(alpha + 1) / 2)."""
    ratio = (sq_dists / alpha).clamp(max=LARGEST_RATIO[sq_dists.dtype])  # moves 2 n k s
    return -(alpha + 1.0) / 2.0 * torch.log1p(ratio)  # moves 2 n k s


def student_t_assign_reference(x: Tensor, centers: Tensor, alpha: float) -> Tensor:
    """q of shape (n_samples, n_clusters) in the working dtype: eq. (1) of DEC, as a softmax of log kernels."""
    return torch.softmax(log_kernel_reference(sq_dists_reference(x, centers), alpha), dim=1)  # moves 2 n k s


def target_distribution_reference(q: Tensor, frequency: Tensor | None, power: float, frequency_power: float) -> Tensor:
    """p proportional to q^power / f^frequency_power, rows summing to one; a cluster with f = 0 gets p = 0."""
    frequency = q.sum(dim=0) if frequency is None else frequency.to(q)  # reads n k s
    scale = frequency.sum() / frequency.numel()  # p does not depend on the scale of f
    gain = torch.where(frequency > 0, (frequency / scale) ** -frequency_power, torch.zeros_like(frequency))
    largest = q.amax(dim=1, keepdim=True)  # keeps q^power away from underflow
    weight = (q / largest) ** power * gain  # moves 2 n k s
    return weight / weight.sum(dim=1, keepdim=True)  # moves 2 n k s


def dec_loss_reference(
    x: Tensor,
    centers: Tensor,
    constants: Sequence[Tensor | None],
    alpha: float,
    power: float,
    frequency_power: float,
) -> Tensor:
    """Sum over rows of KL(p_i || q_i), p a constant; constants: target, target_x, target_centers, frequency."""
    target, target_x, target_centers, frequency = constants
    log_kernel = log_kernel_reference(sq_dists_reference(x, centers), alpha)
    log_q = torch.log_softmax(log_kernel, dim=1)  # moves 2 n k s
    with torch.no_grad():
        if target is not None:
            p = target.to(log_q.dtype)
        else:
            if target_x is not None and target_centers is not None:
                q = student_t_assign_reference(target_x, target_centers, alpha).to(log_q.dtype)
            else:
                q = log_q.exp()  # moves 2 n k s
            p = target_distribution_reference(q, frequency, power, frequency_power)
    return (torch.xlogy(p, p) - p * log_q).sum()  # moves 4 n k s


def student_t_statistics_reference(
    x: Tensor, centers: Tensor, alpha: float, previous_labels: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """labels, confidence, frequency, n_changed and entropy; a row with NaN gets label -1 and no frequency."""
    sq_dists = sq_dists_reference(x, centers)
    q = torch.softmax(log_kernel_reference(sq_dists, alpha), dim=1)
    valid = torch.isfinite(q).all(dim=1)
    labels = torch.where(valid, sq_dists.argmin(dim=1), -1)  # of equals the lowest index
    confidence = q.amax(dim=1)
    accumulator = torch.float32 if x.device.type == "mps" else torch.float64
    frequency = torch.where(valid[:, None], q, 0.0).sum(dim=0, dtype=accumulator)
    entropy = -torch.xlogy(q, q).sum(dim=1)
    if previous_labels is None:
        n_changed = torch.full((), x.shape[0], dtype=torch.int64, device=x.device)
    else:
        n_changed = (labels != previous_labels).sum()
    return labels, confidence, frequency, n_changed, entropy

"""What the benchmarks of the Student t ops share: inputs, plain torch providers, the float64 truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from bench._harness import Inputs, Rows

TRUTH_BYTES = 64 << 20  # of one n_rows x n_clusters chunk in float64
CHECKED_ROWS = 10_000


def mixture(n: int, k: int, d: int, dtype: torch.dtype, device: str, seed: int = 0) -> Inputs:
    """Points of k Gaussians and centers near their means, so that q is neither uniform nor one-hot.

    The means lie about sqrt(2 k) apart and the points about 1 from theirs, which gives a point's own cluster
    a q near 1/2 at any k and d.
    """
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(k, d, generator=generator) * (k / d) ** 0.5
    member = torch.randint(k, (n,), generator=generator)
    width = torch.rand(n, 1, generator=generator) + 0.3
    x = torch.randn(n, d, generator=generator).mul_(width / d**0.5).add_(means[member])
    centers = means + 0.3 / d**0.5 * torch.randn(k, d, generator=generator)
    return {"x": x.to(device, dtype), "centers": centers.to(device, dtype)}


def sq_dists_gemm(x: Tensor, centers: Tensor) -> Tensor:
    """The fast plain form, which cancels far from the origin."""
    return (x.square().sum(1, keepdim=True) + centers.square().sum(1) - 2.0 * (x @ centers.T)).clamp(min=0.0)


def sq_dists_broadcast(x: Tensor, centers: Tensor) -> Tensor:
    """The form of most published code: an n x k x d tensor."""
    return (x.unsqueeze(1) - centers).pow(2).sum(2)


def soft_assign(sq_dists: Tensor) -> Tensor:
    q = 1.0 / (1.0 + sq_dists)
    return q / q.sum(1, keepdim=True)


def target(q: Tensor) -> Tensor:
    """P of this batch, a constant."""
    weight = q.detach().square() / q.detach().sum(0)
    return weight / weight.sum(1, keepdim=True)


def divergence(q: Tensor, p: Tensor) -> Tensor:
    """KL(P || Q), the mean over rows."""
    return (torch.xlogy(p, p) - p * q.log()).sum() / q.shape[0]


def assign_gemm(x: Tensor, centers: Tensor) -> Tensor:
    return soft_assign(sq_dists_gemm(x, centers))


def assign_broadcast(x: Tensor, centers: Tensor) -> Tensor:
    return soft_assign(sq_dists_broadcast(x, centers))


def dec_loss_gemm(x: Tensor, centers: Tensor) -> Tensor:
    q = assign_gemm(x, centers)
    return divergence(q, target(q))


def dec_loss_broadcast(x: Tensor, centers: Tensor) -> Tensor:
    q = assign_broadcast(x, centers)
    return divergence(q, target(q))


def statistics_gemm(x: Tensor, centers: Tensor, previous_labels: Tensor) -> tuple[Tensor, ...]:
    """labels, confidence, frequency, n_changed, entropy."""
    q = assign_gemm(x, centers)
    confidence, labels = q.max(1)
    return labels, confidence, q.sum(0), (labels != previous_labels).sum(), -torch.xlogy(q, q).sum(1)


def exact_chunks(inputs: Inputs, requires_grad: bool) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """(rows, x, centers, q) in float64, a chunk of rows at a time; x and centers are leaves of q."""
    rows = max(1, TRUTH_BYTES // (8 * inputs["centers"].shape[0]))
    for start in range(0, inputs["x"].shape[0], rows):
        chunk = slice(start, start + rows)
        x = inputs["x"][chunk].detach().double().requires_grad_(requires_grad)
        centers = inputs["centers"].detach().double().requires_grad_(requires_grad)
        yield chunk, x, centers, assign_gemm(x, centers)


def exact_gradients(inputs: Inputs, scalar_of: Callable[[slice, Tensor], Tensor]) -> dict[str, Tensor | Rows]:
    """Gradients of the sum over chunks of ``scalar_of(rows, q)``."""
    grad_x = torch.empty_like(inputs["x"], dtype=torch.float64)
    grad_centers = torch.zeros_like(inputs["centers"], dtype=torch.float64)
    for rows, x, centers, q in exact_chunks(inputs, requires_grad=True):
        grad_x[rows], part = torch.autograd.grad(scalar_of(rows, q), [x, centers])
        grad_centers += part
    return {"grad_x": grad_x, "grad_centers": grad_centers}


def checked_rows(n: int, device: torch.device) -> Tensor:
    """Rows whose results are compared where all of them would not fit."""
    generator = torch.Generator().manual_seed(1)
    return torch.randperm(n, generator=generator)[:CHECKED_ROWS].to(device)

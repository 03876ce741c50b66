"""The definition in plain torch: any device, float64 too, differentiable. Written to be read, not to be fast.

Byte counts are for h heads of n rows and k clusters, and s bytes a number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._precision import working_dtype


def entropy_rows_reference(x: Tensor, from_logits: bool) -> tuple[Tensor, Tensor]:
    """Entropy of each row (h, n) and sum of the probabilities over rows (h, k), float64, of x (h, n, k)."""
    x = x.to(working_dtype(x))  # moves 2 h n k s where x is half precision
    info = torch.finfo(x.dtype)
    if from_logits:
        log_p = torch.log_softmax(x, dim=-1)  # moves 2 h n k s
        p = log_p.exp()  # moves 2 h n k s
        log_p = log_p.clamp(min=info.min)  # a logit of minus infinity has p = 0 and adds nothing
    else:
        p = x
        log_p = p.clamp(min=info.tiny).log()  # moves 4 h n k s
    entropy = -(p * log_p).sum(dim=-1)  # moves 3 h n k s
    accumulator = torch.float32 if x.device.type == "mps" else torch.float64
    return entropy, p.sum(dim=1, dtype=accumulator)  # reads h n k s


def entropy_of_mass(mass: Tensor, n_rows: int) -> Tensor:
    """Entropy of the mean row, in nats, from the sum of the rows (..., k)."""
    p = mass / n_rows
    return -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(dim=-1)


def vat_kl_reference(logits: Tensor, perturbed: Tensor) -> Tensor:
    """Sum over rows of KL(softmax(logits) || softmax(perturbed)), the first a constant."""
    dtype = working_dtype(logits, perturbed)
    log_p = torch.log_softmax(logits.detach().to(dtype), dim=-1)  # moves 2 h n k s
    log_q = torch.log_softmax(perturbed.to(dtype), dim=-1)  # moves 2 h n k s
    p = log_p.exp()  # moves 2 h n k s
    return torch.where(p == 0, 0.0, p * (log_p - log_q)).sum()  # moves 5 h n k s

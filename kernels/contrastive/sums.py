"""From sums of powers of two to logarithms, and to what the backward pass needs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

STATE = 3  # numbers kept of each sum: shift, sum, and the share of it that is not the positive's


def finish_sums(shifts: Tensor, others: Tensor, exponents: Tensor | None) -> tuple[Tensor, Tensor]:
    """(log-sum-exp less the positive's exponent (n,), state (3, n)), all float64.

    ``others`` are sums of 2^(exponent - shift) without the positives, whose exponents, to base 2, are given; where
    there are none, nothing is subtracted. Where the positive is the larger part the logarithm is log1p of the rest,
    so that a loss near zero keeps its digits.
    """
    if exponents is None:
        return (shifts + others.log2()) * math.log(2.0), torch.stack([shifts, others, torch.ones_like(others)])
    below = exponents - shifts
    own = below.exp2()
    total = own + others
    values = torch.where(others < own, (others / own).log1p(), (total.log2() - below) * math.log(2.0))
    return values, torch.stack([shifts, total, others / total])

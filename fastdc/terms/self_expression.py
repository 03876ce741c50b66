"""Terms of self-expressive layers. They see all rows at each step, in the order of the data."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._checks import check_not_negative, check_positive
from fastdc.kernels.self_expression import self_expression_loss
from fastdc.kernels.self_expression.loss import NORMS
from fastdc.networks import SelfExpression
from fastdc.training import Batch, Term


class ExpressedReconstruction(Term):
    """½ ‖X - decoder(C Z)‖² / n: the rows from what the others make of their embeddings.

    Parameters
    ----------
    head : SelfExpression
    """

    name = "reconstruction"

    def __init__(self, head: SelfExpression) -> None:
        super().__init__()
        self.head = head

    def forward(self, batch: Batch) -> Tensor:
        made = batch.network.decode(batch.through(self.head))  # type: ignore[operator]
        return (batch.x - made).square().sum() / (2 * len(batch.x))


class SelfExpressive(Term):
    """(λ₂/2 ‖Z - C Z‖² + λ₁ ‖C‖) / n of DSC-Net.

    Parameters
    ----------
    head : SelfExpression
    penalty : float
        λ₁.
    weight : float
        λ₂, above 0.
    norm : {"fro", "l1"}
        The norm of the penalty: the sum of squares or of magnitudes.
    """

    name = "self_expression"

    def __init__(self, head: SelfExpression, penalty: float, weight: float, norm: str = "fro") -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {NORMS}, got {norm!r}")
        self.head, self.norm, self.weight = head, norm, check_positive(weight, "weight")
        self.penalty = check_not_negative(penalty, "penalty")

    def forward(self, batch: Batch) -> Tensor:
        ratio = 2 * self.penalty / self.weight
        loss = self_expression_loss(batch.z, self.head.coefficients, ratio, self.norm)
        return self.weight / (2 * len(batch.x)) * loss

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        self.head.coefficients.fill_diagonal_(0.0)  # the decoder's gradient moves it

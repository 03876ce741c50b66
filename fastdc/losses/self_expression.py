"""Losses of self-expressive layers."""

from __future__ import annotations

from torch import Tensor, nn

from fastdc.kernels._checks import check_not_negative
from fastdc.kernels.self_expression import self_expression_loss


class SelfExpressionLoss(nn.Module):
    """Each embedding from the others: :func:`fastdc.self_expression_loss` for a training loop.

    Parameters
    ----------
    regularization : float
        Weight of the penalty on the coefficients.
    norm : {"fro", "l1"}
        The penalty: sum of squares or of magnitudes.

    Examples
    --------
    >>> import torch
    >>> z, c = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0, 0.5], [2.0, 0.0]])
    >>> SelfExpressionLoss(regularization=0.1)(z, c)
    tensor(0.4250)
    """

    def __init__(self, regularization: float = 1.0, norm: str = "fro") -> None:
        super().__init__()
        self.regularization = check_not_negative(regularization, "regularization")
        self.norm = norm

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """The loss of embeddings (n_samples, n_features) and coefficients (n_samples, n_samples)."""
        return self_expression_loss(z, c, self.regularization, self.norm)

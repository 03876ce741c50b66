"""Losses whose targets are balanced by optimal transport."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastdc.kernels.sinkhorn import swapped_prediction_loss


class SwAVLoss(nn.Module):
    """The swapped prediction of SwAV with prototypes as its parameter: :func:`fastdc.swapped_prediction_loss`.

    Parameters
    ----------
    n_features, n_prototypes : int
        Of the embeddings, and how many prototypes there are; they start as random directions.
    temperature, epsilon, n_iters
        As in :func:`fastdc.swapped_prediction_loss`.
    normalize : bool
        Whether embeddings and prototypes are given length one first, as in SwAV.

    Examples
    --------
    >>> import torch
    >>> criterion = SwAVLoss(8, 5)
    >>> loss = criterion(torch.randn(20, 8), torch.randn(20, 8))
    >>> loss.backward()
    >>> criterion.prototypes.grad.shape
    torch.Size([5, 8])
    """

    def __init__(
        self,
        n_features: int,
        n_prototypes: int,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        n_iters: int = 3,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(nn.functional.normalize(torch.randn(n_prototypes, n_features)))
        self.temperature, self.epsilon, self.n_iters = temperature, epsilon, n_iters
        self.normalize = normalize

    def forward(self, z1: Tensor, z2: Tensor) -> Tensor:
        """The loss of the embeddings of two views of the same samples."""
        prototypes: Tensor = self.prototypes
        if self.normalize:
            z1, z2, prototypes = (nn.functional.normalize(t, dim=1) for t in (z1, z2, prototypes))
        return swapped_prediction_loss(z1, z2, prototypes, self.temperature, self.epsilon, self.n_iters)

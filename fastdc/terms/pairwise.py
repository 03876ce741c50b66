"""Terms about pairs of rows: the same cluster, or not."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdc.kernels._checks import check_positive
from fastdc.kernels.pairwise import pairwise_bce
from fastdc.networks import SoftmaxHead
from fastdc.training import Batch, Term


class PairwiseAgreement(Term):
    """Cross-entropy of "the same cluster" over the pairs that a head is sure of (DAC), averaged over views.

    The rows as they are choose the pairs, their views learn from them. Pairs with a cosine of at least u are the same,
    those below l are not; with the progress of the stage from 0 to 1 u = upper - t and l = lower + t / 10 go to where
    they meet, so that in the end all pairs count.

    Parameters
    ----------
    head : SoftmaxHead
    upper, lower : float
    eps : float
        Keeps the logarithms finite.
    """

    name = "pairs"

    def __init__(self, head: SoftmaxHead, upper: float = 0.95, lower: float = 0.455, eps: float = 1e-6) -> None:
        super().__init__()
        if not 0 < lower < upper <= 1:
            raise ValueError(f"upper and lower must be 0 < lower < upper <= 1, got upper={upper}, lower={lower}")
        self.head, self.start = head, (upper, lower)
        self.eps = check_positive(eps, "eps")
        self.start_epoch(0.0)

    def start_epoch(self, progress: float) -> None:
        upper, lower = self.start
        step = progress * (upper - lower) / 1.1
        self.upper, self.lower = upper - step, lower + 0.1 * step

    def forward(self, batch: Batch) -> Tensor:
        if any(view is batch for view in batch.views):
            chosen_by = batch.through(self.head).softmax(1).detach()
        else:
            with torch.no_grad():
                chosen_by = self.head(batch.network.encode(batch.x)).softmax(1)  # type: ignore[operator]
        losses = [
            pairwise_bce(
                view.through(self.head).softmax(1), None, self.upper, self.lower, chosen_by=chosen_by, eps=self.eps
            )
            for view in batch.views
        ]
        return torch.stack(losses).mean()

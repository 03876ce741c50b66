"""Losses that make predictions certain, even over the clusters, and the same under perturbation."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastdc.kernels._checks import check_not_negative
from fastdc.kernels.mutual_information import iic_loss, rim_loss, vat_kl


class IICLoss(nn.Module):
    """Invariant information clustering: :func:`fastdc.iic_loss` for a training loop.

    Parameters
    ----------
    lamb : float
        Weight of the marginals; 1 is the mutual information.
    from_logits : bool
        Whether the two views come as logits, of which the softmax is meant.
    group : torch.distributed.ProcessGroup, optional
        The processes that the rows are spread over, as in :func:`fastdc.iic_loss`.

    Examples
    --------
    >>> import torch
    >>> loss = IICLoss()(torch.eye(2), torch.eye(2))
    >>> round(loss.item(), 4)
    -0.6931
    """

    def __init__(self, lamb: float = 1.0, from_logits: bool = False, group: Any = None) -> None:
        super().__init__()
        self.lamb, self.from_logits, self.group = check_not_negative(lamb, "lamb"), from_logits, group

    def forward(self, p1: Tensor, p2: Tensor) -> Tensor:
        """The loss of two views, each (n_samples, n_clusters) or with heads first, of which it is the mean."""
        if self.from_logits:
            p1, p2 = p1.softmax(-1), p2.softmax(-1)
        return iic_loss(p1, p2, self.lamb, group=self.group)


class IMSATLoss(nn.Module):
    """IMSAT: predictions that perturbations do not change, and that tell much about the rows.

    KL(p || q) + weight (H(Y|X) - marginal_weight H(Y)), p the predictions at the inputs and q those at the
    perturbed ones: :func:`fastdc.vat_kl` and :func:`fastdc.rim_loss`. The defaults are the paper's.

    Parameters
    ----------
    weight : float
        Of the information against the divergence.
    marginal_weight : float
        Of the even use of clusters, within the information.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[9.0, -9.0], [-9.0, 9.0]])
    >>> round(IMSATLoss()(logits, logits).item(), 4)
    -0.2773
    """

    def __init__(self, weight: float = 0.1, marginal_weight: float = 4.0) -> None:
        super().__init__()
        self.weight = check_not_negative(weight, "weight")
        self.marginal_weight = check_not_negative(marginal_weight, "marginal_weight")

    def forward(self, logits: Tensor, perturbed_logits: Tensor | None = None) -> Tensor:
        """The loss; without perturbed logits only its information. The mean over heads where there are several."""
        loss = self.weight * rim_loss(logits, self.marginal_weight).mean()
        if perturbed_logits is None:
            return loss
        return loss + vat_kl(logits, perturbed_logits)

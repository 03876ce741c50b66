"""Variational bounds: how likely the decoder makes the rows, and how far the embedding is from its prior."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from fastdc.kernels._checks import check_positive
from fastdc.kernels.gaussian_mixture import vade_loss
from fastdc.networks import Mixture
from fastdc.terms.watch import Watch
from fastdc.training import Batch, Term

LIKELIHOODS = ("bernoulli", "gaussian")


class Likelihood(Term):
    """Minus the log likelihood of the rows under the decoder's output, summed over features; mean over views.

    Parameters
    ----------
    kind : {"bernoulli", "gaussian"}
        "bernoulli": values from 0 to 1, of which the decoder gives the logits. "gaussian": the decoder gives the
        means; constants are left out.
    variance : float
        Of the Gaussian.
    """

    name = "reconstruction"

    def __init__(self, kind: str = "bernoulli", variance: float = 1.0) -> None:
        super().__init__()
        if kind not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {LIKELIHOODS}, got {kind!r}")
        self.kind, self.variance = kind, check_positive(variance, "variance")

    def of(self, decoded: Tensor, x: Tensor) -> Tensor:
        """The loss of the rows ``x`` for what was decoded of them."""
        if self.kind == "bernoulli":
            return binary_cross_entropy_with_logits(decoded, x, reduction="sum") / len(x)
        return mse_loss(decoded, x, reduction="sum") / (2 * self.variance * len(x))

    def forward(self, batch: Batch) -> Tensor:
        losses = [self.of(view.reconstruction, view.x) for view in batch.views]
        return torch.stack(losses).mean()


class MixtureEvidence(Watch):
    """Minus the evidence bound of VaDE: the likelihood of a row, decoded from a draw, and the divergence of the draw.

    Parameters
    ----------
    head : Mixture
        The prior.
    likelihood : Likelihood
    """

    name = "evidence"
    head: Mixture

    def __init__(self, head: Mixture, likelihood: Likelihood) -> None:
        super().__init__(head)
        self.likelihood = likelihood

    def forward(self, batch: Batch) -> Tensor:
        losses = [self._bound(view) for view in batch.views]
        return torch.stack(losses).mean()

    def _bound(self, batch: Batch) -> Tensor:
        network: Any = batch.network
        mean, log_var = network.posterior(batch.x)
        z = network.sample(mean, log_var)
        prior = self.head.means, self.head.log_vars, self.head.logits
        return self.likelihood.of(network.decode(z), batch.x) + vade_loss(z, mean, log_var, *prior)

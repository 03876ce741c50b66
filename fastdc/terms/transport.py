"""Terms whose targets are balanced by optimal transport."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from fastdc._input import read_count
from fastdc.distributed import Ranks
from fastdc.kernels._checks import check_positive
from fastdc.kernels.sinkhorn import optimal_transport_labels, sinkhorn_assign_features, swapped_prediction_loss
from fastdc.networks import Prototypes, SoftmaxHead
from fastdc.terms.pairs import view_pairs
from fastdc.terms.watch import Watch
from fastdc.training import Batch, Term


class SwappedPrediction(Term):
    """Swapped prediction of SwAV: each view predicts the balanced codes of another one.

    Codes are made of the first two views; further ones (small crops) only predict. The prototypes are brought back to
    length one after each step.

    Parameters
    ----------
    prototypes : Prototypes
        Whose temperature is that of the predictions.
    epsilon, n_iters
        As in :func:`fastdc.sinkhorn_assign`.
    group : None, "world" or torch.distributed.ProcessGroup
        Processes that share each batch: codes are balanced over the rows of all.
    """

    name = "swapped prediction"
    spans_group = True

    def __init__(self, prototypes: Prototypes, epsilon: float = 0.05, n_iters: int = 3, group: Any = None) -> None:
        super().__init__()
        self.prototypes = prototypes
        self.epsilon, self.n_iters = check_positive(epsilon, "epsilon"), read_count(n_iters, "n_iters")
        self.group = Ranks(group).group

    def forward(self, batch: Batch) -> Tensor:
        one, other = view_pairs(batch, self.name)[0]
        z1, z2, weight = (normalize(rows, dim=1) for rows in (one.z, other.z, self.prototypes.weight))
        temperature = self.prototypes.temperature
        loss = swapped_prediction_loss(z1, z2, weight, temperature, self.epsilon, self.n_iters, group=self.group)
        if len(batch.views) == 2:
            return loss
        q1, q2 = (
            sinkhorn_assign_features(z.detach(), weight.detach(), self.epsilon, self.n_iters, group=self.group)
            for z in (z1, z2)
        )
        further = [
            cross_entropy(view.through(self.prototypes) / temperature, (q1 + q2) / 2) for view in batch.views[2:]
        ]
        return (loss + batch.share * torch.stack(further).sum()) / (len(batch.views) - 1)

    def after_step(self, batch: Batch) -> None:
        self.prototypes.normalize()


class TransportLabels(Watch):
    """SeLa's loss: cross-entropy of the views of a batch under labels that optimal transport gives all rows.

    A refresh makes the labels: of all ways to give each cluster as many rows, the one that agrees best with the head's
    probabilities.

    Parameters
    ----------
    head : SoftmaxHead
        Linear.
    epsilon : float
        Entropic regularisation, one over SeLa's lambda.
    """

    name = "labels"
    head: SoftmaxHead

    def __init__(self, head: SoftmaxHead, epsilon: float = 0.04) -> None:
        super().__init__(head)
        self.epsilon = check_positive(epsilon, "epsilon")

    @torch.no_grad()
    def refresh(self, z: Tensor) -> dict[str, Tensor]:
        weight, bias = self.head.layers[0].parameters()
        prototypes = torch.cat([weight, bias[:, None]], dim=1)
        scored = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
        self.memory["targets"] = optimal_transport_labels(scored, prototypes, self.epsilon).labels
        return self.look(z)[1]

    def forward(self, batch: Batch) -> Tensor:
        targets = self.memory["targets"][batch.rows]
        losses = [cross_entropy(view.through(self.head), targets) for view in batch.views]
        return torch.stack(losses).mean()

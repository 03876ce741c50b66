"""Terms that hold the views of a row together and those of others, or of other clusters, apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastdc.distributed import Ranks
from fastdc.kernels._checks import check_not_negative, check_positive
from fastdc.kernels.contrastive import cluster_contrast, nt_xent
from fastdc.kernels.student_t import dec_loss
from fastdc.networks import SoftmaxHead
from fastdc.terms.centroids import StudentT
from fastdc.terms.pairs import view_pairs
from fastdc.training import Batch, Term


class InstanceContrast(Term):
    """NT-Xent of SimCLR: the views of a row against those of all other rows, averaged over pairs of views.

    Parameters
    ----------
    projection : nn.Module
        From embeddings to where cosines are compared; trained with the network.
    temperature : float
    group : None, "world" or torch.distributed.ProcessGroup
        Processes that share each batch: the rows of all are held against each other.
    """

    name = "instance"

    def __init__(self, projection: nn.Module, temperature: float = 0.5, group: Any = None) -> None:
        super().__init__()
        self.projection = projection
        self.temperature = check_positive(temperature, "temperature")
        self.group = Ranks(group).group
        self.spans_group = self.group is not None

    def forward(self, batch: Batch) -> Tensor:
        losses = [
            nt_xent(one.through(self.projection), other.through(self.projection), self.temperature, group=self.group)
            for one, other in view_pairs(batch, self.name)
        ]
        return torch.stack(losses).mean()


class ClusterContrast(Term):
    """The cluster loss of CC: the columns of two views' assignments against each other, clusters kept even.

    Parameters
    ----------
    head : SoftmaxHead
    temperature : float
    balance : float
        Weight of the entropy of the clusters' shares.
    group
        As in :class:`InstanceContrast`.
    """

    name = "cluster"

    def __init__(self, head: SoftmaxHead, temperature: float = 1.0, balance: float = 1.0, group: Any = None) -> None:
        super().__init__()
        self.head = head
        self.temperature = check_positive(temperature, "cluster_temperature")
        self.balance = check_not_negative(balance, "balance")
        self.group = Ranks(group).group
        self.spans_group = self.group is not None

    def forward(self, batch: Batch) -> Tensor:
        losses = []
        for one, other in view_pairs(batch, self.name):
            p1, p2 = one.through(self.head).softmax(1), other.through(self.head).softmax(1)
            losses.append(cluster_contrast(p1, p2, self.temperature, self.balance, group=self.group))
        return torch.stack(losses).mean()


class StudentTOfRows(StudentT):
    """KL(P || Q) of DEC for the rows as they are, while other terms look at views of them (SCCL)."""

    def forward(self, batch: Batch) -> Tensor:
        options: dict[str, Any] = self.powers | self._target_of(batch)
        return dec_loss(*self.head.compared(batch.z), alpha=self.head.alpha, **options)

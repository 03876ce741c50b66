"""Terms about what cluster assignments tell of the rows, and whether they stay when rows are disturbed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastdc._input import read_count
from fastdc.distributed import Ranks
from fastdc.kernels._checks import check_not_negative, check_positive
from fastdc.kernels.mutual_information import iic_loss, rim_loss, vat_kl
from fastdc.kernels.neighbors import knn
from fastdc.networks import MultiHead, SoftmaxHead, frozen_statistics
from fastdc.terms.pairs import view_pairs
from fastdc.training import Batch, Term

PERTURBATIONS = ("adversarial", "random", "views")


class Information(Term):
    """H(Y|X) - marginal_weight H(Y) of a softmax head: clusters that are sure, and evenly used.

    Parameters
    ----------
    head : SoftmaxHead
    marginal_weight : float
    """

    name = "information"

    def __init__(self, head: SoftmaxHead, marginal_weight: float = 4.0) -> None:
        super().__init__()
        self.head = head
        self.marginal_weight = check_not_negative(marginal_weight, "marginal_weight")

    def forward(self, batch: Batch) -> Tensor:
        return rim_loss(batch.through(self.head), self.marginal_weight)


class SelfAugmentation(Term):
    """KL(p(x) || p(T(x))): assignments that stay when rows are disturbed; p(x) is a constant.

    Parameters
    ----------
    head : SoftmaxHead
    perturbation : {"adversarial", "random", "views"}
        T adds a vector of a length that is each row's own: in the direction that changes the assignment most (virtual
        adversarial training), or in a random one; or T gives the views of the batch.
    radius : float
        That length, as a share of the distance from the row to its ``n_neighbors``-th neighbour in the data.
    n_neighbors : int
    xi : float
        Where the power iteration for the worst direction takes its differences, as a share of the length.
    n_iters : int
        Power iterations.
    """

    name = "self-augmentation"

    def __init__(
        self,
        head: SoftmaxHead,
        perturbation: str = "adversarial",
        radius: float = 0.25,
        n_neighbors: int = 10,
        xi: float = 0.1,
        n_iters: int = 1,
    ) -> None:
        super().__init__()
        if perturbation not in PERTURBATIONS:
            raise ValueError(f"perturbation must be one of {PERTURBATIONS}, got {perturbation!r}")
        self.head, self.perturbation = head, perturbation
        self.radius, self.xi = check_positive(radius, "radius"), check_positive(xi, "xi")
        self.n_neighbors, self.n_iters = read_count(n_neighbors, "n_neighbors"), read_count(n_iters, "n_iters")

    def forward(self, batch: Batch) -> Tensor:
        logits = batch.through(self.head).detach()
        if self.perturbation == "views":
            losses = [vat_kl(logits, view.through(self.head)) for view in batch.views if view is not batch]
            return torch.stack(losses).mean()
        with frozen_statistics(batch.network):
            lengths = self._lengths(batch)
            direction = torch.randn_like(batch.x)
            if self.perturbation == "adversarial":
                direction = self._worst(batch, logits, direction, lengths)
            return vat_kl(logits, self._logits(batch, lengths * _unit(direction)))

    def _worst(self, batch: Batch, logits: Tensor, direction: Tensor, lengths: Tensor) -> Tensor:
        """Power iteration towards the direction in which the divergence bends most."""
        for _ in range(self.n_iters):
            direction = _unit(direction).requires_grad_()
            divergence = vat_kl(logits, self._logits(batch, self.xi * lengths * direction))
            (direction,) = torch.autograd.grad(divergence, direction)
        return direction

    def _logits(self, batch: Batch, shift: Tensor) -> Tensor:
        return self.head(batch.network.encode(batch.x + shift))  # type: ignore[operator]

    def _lengths(self, batch: Batch) -> Tensor:
        """(n_rows, 1); the distances of all rows are measured once."""
        if "distance" not in self.memory:
            n_neighbors = min(self.n_neighbors, len(batch.data) - 1)
            x = batch.data[:]  # of a source all are read
            self.memory["distance"] = knn(x, n_neighbors).distances[:, -1] if n_neighbors else x.new_zeros(len(x))
        return self.radius * self.memory["distance"][batch.rows, None].to(batch.x)


class MutualInformation(Term):
    """Minus the information that the clusters of two views of a row share, averaged over heads and pairs of views.

    Parameters
    ----------
    head : MultiHead
    lamb : float
        Weight of the marginals; 1 is the mutual information.
    group : None, "world" or torch.distributed.ProcessGroup
        The processes that share each batch.
    """

    name = "information"

    def __init__(self, head: MultiHead, lamb: float = 1.0, group: Any = None) -> None:
        super().__init__()
        self.head, self.lamb = head, check_not_negative(lamb, "lamb")
        self.group = Ranks(group).group
        self.spans_group = self.group is not None

    def forward(self, batch: Batch) -> Tensor:
        return self.of_heads(batch).mean()

    def of_heads(self, batch: Batch) -> Tensor:
        """The loss of each head."""
        losses = []
        for one, other in view_pairs(batch, self.name):
            p1, p2 = one.through(self.head).softmax(-1), other.through(self.head).softmax(-1)
            losses.append(iic_loss(p1, p2, self.lamb, reduction="none", group=self.group))
        return torch.stack(losses).mean(0)


def _unit(direction: Tensor) -> Tensor:
    """Rows of length one; first brought near one, so that squares of small gradients are not lost."""
    largest = direction.abs().amax(1, keepdim=True).clamp_min(torch.finfo(direction.dtype).tiny)
    return normalize(direction / largest, dim=1)

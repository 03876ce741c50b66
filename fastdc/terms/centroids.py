"""Terms about cluster centers in the embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdc.kernels.kmeans import kmeans_loss
from fastdc.kernels.student_t import dec_loss, target_distribution
from fastdc.networks import Centroids
from fastdc.terms.repairing import RepairingWatch, continue_kmeans
from fastdc.terms.watch import Watch
from fastdc.training import Batch, Schedule

TARGETS = ("refresh", "batch")
FROZEN = {"target": True, "target_x": True, "target_centers": False, "frequency": False}  # whether by row


class StudentT(Watch):
    """KL(P || Q) of DEC: Q is the soft assignment to the head's centers, P its sharpened self.

    The loss is that of the views of a batch, averaged; P belongs to the rows as they are.

    Parameters
    ----------
    head : Centroids
    target : {"refresh", "batch"}
        "refresh" is the paper's: P of all rows, frozen until the next refresh. "batch" computes P from the
        batch itself at every step.
    power, frequency_power : float
        P is proportional to q^power / frequency^frequency_power.
    """

    name = "clustering"
    head: Centroids

    def __init__(
        self, head: Centroids, target: str = "refresh", power: float = 2.0, frequency_power: float = 1.0
    ) -> None:
        super().__init__(head)
        if target not in TARGETS:
            raise ValueError(f"target must be one of {TARGETS}, got {target!r}")
        self.target = target
        self.powers: dict[str, Any] = {"power": power, "frequency_power": frequency_power}

    @torch.no_grad()
    def refresh(self, z: Tensor) -> dict[str, Tensor]:
        seen, measured = self.look(z)
        if self.target == "refresh":
            self._freeze(z, seen.frequency)
        return measured

    def _freeze(self, z: Tensor, frequency: Tensor) -> None:
        """Keep P, or what P is made from, whichever is smaller."""
        if len(self.head.centers) <= z.shape[1]:
            self.memory["target"] = target_distribution(self.head.assign(z), frequency, **self.powers)
        else:
            x, centers = self.head.compared(z)
            self.memory |= {"target_x": x, "target_centers": centers.detach().clone(), "frequency": frequency}

    def forward(self, batch: Batch) -> Tensor:
        target = self._target_of(batch)
        options: dict[str, Any] = {"alpha": self.head.alpha, **self.powers, **target}
        losses = [dec_loss(*self.head.compared(view.z), **options) for view in batch.views]
        return torch.stack(losses).mean()

    def _target_of(self, batch: Batch) -> dict[str, Any]:
        if self.target == "batch":
            if batch.views == (batch,):
                return {}
            q = self.head.assign(batch.z.detach()).detach()
            return {"target": target_distribution(q, **self.powers)}
        kept = {name: self.memory[name] for name in FROZEN if name in self.memory}
        return {name: tensor[batch.rows] if FROZEN[name] else tensor for name, tensor in kept.items()}


class KMeansDistance(RepairingWatch):
    """Squared distance of embeddings to all centers, weighed by a softmax of it (DKM).

    Parameters
    ----------
    head : Centroids
    temperature : Schedule
        Of the softmax, 1 / alpha of DKM.
    refine : bool
        Whether each refresh ends with a few steps of k-means over all rows, which is right for a softmax that is
        nearly hard.
    """

    name = "clustering"

    def __init__(self, head: Centroids, temperature: Schedule, refine: bool = False) -> None:
        super().__init__(head)
        self.schedule, self.refine = temperature, refine
        self.start_epoch(0.0)

    def start_epoch(self, progress: float) -> None:
        self.temperature = self.schedule(progress)

    def forward(self, batch: Batch) -> Tensor:
        return kmeans_loss(batch.z, self.head.centers, None, "soft", self.temperature)

    def refresh(self, z: Tensor) -> dict[str, Tensor]:
        measured = super().refresh(z)
        if self.refine:
            continue_kmeans(z, self.head.centers)
        return measured

"""The parts that methods are put together from: terms, initialisations and stopping rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from fastdc.cluster import KMeans
from fastdc.kernels.student_t import dec_loss, target_distribution
from fastdc.networks import Centroids
from fastdc.training import Batch, Record, Term, Trainer

TARGETS = ("refresh", "batch")


class Reconstruction(Term):
    """Squared error of the decoder's output, averaged over rows and features."""

    name = "reconstruction"

    def forward(self, batch: Batch) -> Tensor:
        return mse_loss(batch.reconstruction, batch.x)


class StudentT(Term):
    """KL(P || Q) of DEC: Q is the soft assignment to the head's centers, P its sharpened self.

    Parameters
    ----------
    head : Centroids
    target : {"refresh", "batch"}
        "refresh" is the paper's: P of all rows, frozen until the next refresh. "batch" computes P from the
        batch itself at every step.
    """

    name = "clustering"
    needs_refresh = True

    def __init__(self, head: Centroids, target: str = "refresh") -> None:
        super().__init__()
        if target not in TARGETS:
            raise ValueError(f"target must be one of {TARGETS}, got {target!r}")
        self.head, self.target = head, target
        self.labels: Tensor | None = None
        self._frozen: dict[str, Tensor] = {}  # by row
        self._shared: dict[str, Tensor] = {}  # by cluster

    @torch.no_grad()
    def refresh(self, z: Tensor) -> dict[str, Tensor]:
        seen = self.head.statistics(z, self.labels)
        self.labels = seen.labels
        if self.target == "refresh":
            self._freeze(z, seen.frequency)
        sizes = torch.bincount(seen.labels + 1, minlength=len(self.head.centers) + 1)[1:]
        return {
            "label_change": seen.n_changed / len(z),
            "n_empty_clusters": (sizes == 0).sum(),
            "smallest_cluster": sizes.min(),
            "confidence": seen.confidence.mean(),
            "entropy": seen.entropy.mean(),
        }

    def _freeze(self, z: Tensor, frequency: Tensor) -> None:
        """Keep P, or what P is made from, whichever is smaller."""
        centers = self.head.centers.detach()
        if len(centers) <= z.shape[1]:
            self._frozen = {"target": target_distribution(self.head.assign(z), frequency)}
        else:
            self._frozen = {"target_x": z}
            self._shared = {"target_centers": centers.clone(), "frequency": frequency}

    def forward(self, batch: Batch) -> Tensor:
        target: dict[str, Any] = {name: kept[batch.rows] for name, kept in self._frozen.items()}
        return dec_loss(batch.z, self.head.centers, alpha=self.head.alpha, **(target | self._shared))


@dataclass
class Initialise:
    """Put the head's centers where k-means finds them in the embedding."""

    head: Centroids
    n_init: int

    def run(self, trainer: Trainer) -> None:
        kmeans = KMeans(len(self.head.centers), n_init=self.n_init, random_state=trainer.seed)
        self.head.place(kmeans.fit(trainer.embed()).cluster_centers_)


@dataclass
class LabelChange:
    """Stop when no more than the share ``tol`` of all labels changed between two refreshes."""

    tol: float

    def __post_init__(self) -> None:
        if not self.tol >= 0:
            raise ValueError(f"tol must be a share of the labels, 0 or above, or None, got {self.tol}")

    def __call__(self, measured: Record) -> bool:
        return measured["label_change"] <= self.tol

"""What methods share that begin with an autoencoder and put centers where k-means finds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fastdc._input import read_count
from fastdc.cluster import KMeans
from fastdc.methods._deep import DeepClusterer
from fastdc.networks import Centroids
from fastdc.terms import Reconstruction
from fastdc.training import Objective, Stage, Term, Train, Trainer


@dataclass(eq=False, repr=False, kw_only=True)
class PretrainedClusterer(DeepClusterer):
    """Base of the methods that refine a pre-trained autoencoder.

    Parameters
    ----------
    pretrain_epochs : int
        Passes over the data to train the network alone; with 0 and ``autoencoder=`` its weights are taken as trained.
    pretrain_learning_rate : float
        Of Adam, then.
    n_init : int
        Restarts of the k-means that places the centers.
    all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes
    """

    pretrain_epochs: int = 50
    pretrain_learning_rate: float = 1e-3
    n_init: int = 20

    def pretraining(self, objective: Term | Objective | None = None, **options: Any) -> Train:
        """A stage that trains the network alone, to reconstruct unless told otherwise."""
        given = {"views": self.views} | options
        objective = Reconstruction() if objective is None else objective
        return Train(objective, "pretrain", self.pretrain_epochs, self.pretrain_learning_rate, **given)

    def initialisation(self, head: Centroids) -> Initialise:
        """A stage that puts the centers where k-means finds them."""
        return Initialise(head, self.n_init)

    def refinement(self, objective: Term | Objective, **options: Any) -> Train:
        """A stage that trains network and head until the labels settle."""
        return self.training(objective, "refine", **options)

    def _check_parameters(self) -> None:
        super()._check_parameters()
        read_count(self.n_init, "n_init")
        read_count(self.pretrain_epochs, "pretrain_epochs", low=0)


@dataclass
class Initialise(Stage):
    """Put the head's centers where k-means finds them in the embedding."""

    head: Centroids
    n_init: int

    def run(self, trainer: Trainer) -> None:
        self.place(self.head(trainer.embed()).detach(), trainer.settings.seed)

    def place(self, z: Tensor, seed: int) -> None:
        """Put them there among these embeddings."""
        kmeans = KMeans(len(self.head.centers), n_init=self.n_init, random_state=seed)
        self.head.place(kmeans.fit(z).cluster_centers_)

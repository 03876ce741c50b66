"""First an embedding, then a clustering of it: the baseline of all methods that do both at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.base import clone
from sklearn.utils.metaestimators import available_if
from torch import Tensor, nn

from fastdc._input import give_back
from fastdc.cluster import KMeans
from fastdc.methods._deep import cluster_means
from fastdc.methods._pretrained import PretrainedClusterer
from fastdc.networks import Autoencoder, Centroids, LinearAutoencoder
from fastdc.persistence import Saveable
from fastdc.training import Stage, Trainer

EMBEDDINGS = ("autoencoder", "pca", "identity")


def _clusterer_has(name: str) -> Any:
    return available_if(lambda self: hasattr(getattr(self, "clusterer_", self.clusterer) or KMeans, name))


@dataclass(eq=False, repr=False, kw_only=True)
class TwoStage(PretrainedClusterer):
    """An embedding that knows nothing of clusters, and any clusterer on it.

    Parameters
    ----------
    embedding : {"autoencoder", "pca", "identity"}
        A trained autoencoder, ``n_latent`` principal components, or the rows as they are, such as features of a
        pre-trained network. A network that is passed goes before.
    clusterer : estimator, optional
        Of scikit-learn's ways, such as ``GaussianMixture()``; a copy is fitted, with ``n_clusters`` of this
        estimator in place of its own ``n_clusters`` or ``n_components``, and a seed drawn from ``random_state`` where
        it has none. None is :class:`fastdc.KMeans` with ``n_init`` restarts.
    n_clusters, n_latent and all others of the network and its pre-training : see :class:`fastdc.methods.DeepClusterer`

    Attributes
    ----------
    clusterer_ : estimator
        The fitted clusterer of embeddings.
    labels_ : array of shape (n_samples,), int32
        Its labels; -1 is noise where it knows such.
    cluster_centers_ : array of shape (n_labels, n_latent)
        The means of the clusters in the embedding.
    all others : see :class:`fastdc.methods.DeepClusterer`

    Notes
    -----
    ``predict`` and ``predict_proba`` are those of the clusterer, if it has any. ``save`` needs one of fastdc.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from fastdc import GaussianMixture, TwoStage
    >>> X = load_digits().data / 16
    >>> two_stage = TwoStage(10, embedding="pca", clusterer=GaussianMixture(), random_state=0).fit(X)
    >>> two_stage.transform(X).shape, two_stage.predict_proba(X).shape
    ((1797, 10), (1797, 10))
    """

    embedding: str = "autoencoder"
    clusterer: Any = None

    def make_network(self, n_features: int, generator: torch.Generator | None = None) -> nn.Module:
        if self.embedding == "pca":
            return LinearAutoencoder(n_features, self.n_latent)
        if self.embedding == "identity":
            return Autoencoder(nn.Identity(), nn.Identity())
        return super().make_network(n_features, generator)

    def stages(self, head: Centroids) -> Iterator[Stage]:
        if self.embedding not in EMBEDDINGS:
            raise ValueError(f"embedding must be one of {EMBEDDINGS}, got {self.embedding!r}")
        if self.embedding == "autoencoder" or self._own_network() is not None:
            yield self.pretraining()
        elif self.embedding == "pca":
            yield PrincipalComponents()

    def _finish(self, trainer: Trainer, X: Any) -> None:
        z = trainer.embed()
        clusterer = self._own_clusterer(trainer.settings.seed)
        labels = torch.as_tensor(clusterer.fit_predict(_for(clusterer, z))).to(z.device, torch.int64)
        numbers = labels + 1  # noise is -1
        centers = cluster_means(z, numbers, numbers.bincount())[1:]
        self.network_, self.head_ = trainer.network.eval(), trainer.head
        self.clusterer_ = clusterer
        self.labels_, self.cluster_centers_ = give_back(labels.to(torch.int32), X), give_back(centers, X)
        self.n_iter_, self.history_ = getattr(clusterer, "n_iter_", 1), trainer.history

    def _own_clusterer(self, seed: int) -> Any:
        if self.clusterer is None:
            return KMeans(self.n_clusters, n_init=self.n_init, random_state=seed)
        clusterer = clone(self.clusterer)
        parameters = clusterer.get_params(deep=False)
        own = {name: self.n_clusters for name in ("n_clusters", "n_components") if name in parameters}
        if parameters.get("random_state", seed) is None:
            own["random_state"] = seed
        return clusterer.set_params(**own)

    @_clusterer_has("predict")
    def predict(self, X: Any) -> Any:
        """Cluster of each row of ``X``, int32, by the clusterer."""
        labels = torch.as_tensor(self.clusterer_.predict(_for(self.clusterer_, self._embed(X))))
        return give_back(labels.to(torch.int32), X)

    @_clusterer_has("predict_proba")
    def predict_proba(self, X: Any) -> Any:
        """Soft assignment of the rows of ``X`` by the clusterer, of shape (n_samples, n_clusters)."""
        return give_back(torch.as_tensor(self.clusterer_.predict_proba(_for(self.clusterer_, self._embed(X)))), X)


class PrincipalComponents(Stage):
    """Set the weights of a linear autoencoder."""

    def run(self, trainer: Trainer) -> None:
        network: Any = trainer.network
        network.place(trainer.x)


def _for(clusterer: Any, z: Tensor) -> Any:
    """The embedding as the clusterer takes it: a tensor if it is one of fastdc."""
    return z if isinstance(clusterer, Saveable) else z.cpu().numpy()

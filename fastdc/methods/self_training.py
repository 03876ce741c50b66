"""Self-training on centroids: the network sharpens its own soft assignments (DEC, IDEC)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from fastdc.methods._pretrained import PretrainedClusterer
from fastdc.networks import Centroids
from fastdc.terms import Reconstruction, StudentT
from fastdc.training import Stage


@dataclass(eq=False, repr=False, kw_only=True)
class DEC(PretrainedClusterer):
    r"""Deep embedded clustering.

    An autoencoder is trained, its decoder dropped, and centers are placed by k-means in the embedding. Then
    encoder and centers minimise

    .. math:: L = KL(P \| Q), \quad q_{ij} \propto (1 + \|z_i - c_j\|^2 / \alpha)^{-(\alpha+1)/2}, \quad
              p_{ij} \propto q_{ij}^2 / \sum_i q_{ij},

    P frozen between refreshes, until the labels settle.

    Parameters
    ----------
    alpha : float
        Degrees of freedom of the Student t kernel.
    target : {"refresh", "batch"}
        "refresh" computes P from all rows every ``update_interval`` steps, as the paper does; "batch" from
        the batch itself at every step.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    References
    ----------
    Xie, Girshick, Farhadi. Unsupervised Deep Embedding for Clustering Analysis. ICML 2016.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import DEC
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> dec = DEC(3, hidden=(16,), n_latent=2, pretrain_epochs=20, epochs=5, random_state=0).fit(X / 10)
    >>> dec.labels_.shape, dec.transform(X / 10).shape, dec.predict_proba(X / 10).shape
    ((90,), (90, 2), (90, 3))
    """

    alpha: float = 1.0
    target: str = "refresh"

    def make_head(self, n_latent: int) -> Centroids:
        return Centroids(self.n_clusters, n_latent, self.alpha)

    def stages(self, head: Centroids) -> Iterator[Stage]:
        yield self.pretraining()
        yield self.initialisation(head)
        yield self.refinement(StudentT(head, self.target))


@dataclass(eq=False, repr=False, kw_only=True)
class IDEC(DEC):
    r"""Improved deep embedded clustering: DEC that keeps its decoder.

    .. math:: L = L_{rec} + \gamma KL(P \| Q)

    Parameters
    ----------
    gamma : float
        Weight of the clustering loss. The reconstruction error is averaged over features, as in the authors'
        code; the paper writes it as a sum, for which the same trade-off is ``gamma * n_features``.
    target, n_clusters and all others : see :class:`DEC` and :class:`fastdc.methods.DeepClusterer`

    References
    ----------
    Guo, Gao, Liu, Yin. Improved Deep Embedded Clustering with Local Structure Preservation. IJCAI 2017.
    """

    gamma: float = 0.1

    def stages(self, head: Centroids) -> Iterator[Stage]:
        yield self.pretraining()
        yield self.initialisation(head)
        yield self.refinement(Reconstruction() + self.gamma * StudentT(head, self.target))

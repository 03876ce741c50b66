"""Self-training of a softmax head under dropout (DEPICT)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastdc.cluster import KMeans
from fastdc.methods._pretrained import PretrainedClusterer
from fastdc.networks import SoftmaxHead
from fastdc.terms import BalancedTarget, LayerReconstruction, NoisyPass
from fastdc.training import Stage, Trainer

SMALLEST = 1e-12  # variance within clusters, where there is none


@dataclass(eq=False, repr=False, kw_only=True)
class DEPICT(PretrainedClusterer):
    r"""Deep embedded regularised clustering: a noisy encoder is to predict what the clean one does, balanced.

    .. math:: L = KL(Q \| \tilde P) + \beta \sum_l \frac{w_l}{|z^l|} \|z^l - \hat{z}^l\|^2, \quad
              q_{ik} \propto \frac{p_{ik}^a}{(\sum_i p_{ik})^b}

    P is the softmax head on the clean embedding, :math:`\tilde P` on the embedding under dropout, from which the
    decoder is to reconstruct each layer :math:`z^l` of the clean encoder. The network is first trained to reconstruct
    alone.

    Parameters
    ----------
    dropout : float
        Share of the units that are set to zero, before each layer of the noisy encoder.
    reconstruction : float
        :math:`\beta`.
    hidden_weight : float
        :math:`w_l` of the hidden layers, where that of the rows is 1, as it is of all in the paper; 0.1 is its authors'
        code. With 1 hidden layers outweigh the rows, and centers lie worse.
    power, frequency_power : float
        a and b. The paper has 1 and 1/2, in closed form what minimises :math:`KL(Q \| P) + KL(f \| u)`, the second term
        keeping the frequencies f of clusters near the uniform u; its authors' code has 2 and 1, the target of DEC,
        which also sharpens. Without that the dropout makes assignments less and less sure.
    learning_rate : float
        Of Adam, as in the paper.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    What differs from the paper: the head starts as the posterior of k-means clusters (Gaussians of the variance
    within them), not trained on their labels; the clean layers get no gradient as targets of the reconstruction. A
    network that is passed needs ``encoder`` and ``decoder``, both ``nn.Sequential``, whose layers mirror each other.

    References
    ----------
    Dizaji, Herandi, Deng, Cai, Huang. Deep Clustering via Joint Convolutional Autoencoder Embedding and Relative
    Entropy Minimization. ICCV 2017.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import DEPICT
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> depict = DEPICT(3, hidden=(16,), n_latent=2, pretrain_epochs=20, epochs=5, random_state=0).fit(X / 10)
    >>> depict.predict_proba(X / 10).shape
    (90, 3)
    """

    dropout: float = 0.1
    reconstruction: float = 1.0
    hidden_weight: float = 0.1
    power: float = 2.0
    frequency_power: float = 1.0
    learning_rate: float = 1e-4

    def make_head(self, n_latent: int) -> SoftmaxHead:
        head = SoftmaxHead(n_latent, self.n_clusters)
        for parameter in head.parameters():
            nn.init.constant_(parameter, float("nan"))  # not placed yet
        return head

    def stages(self, head: SoftmaxHead) -> Iterator[Stage]:
        layers = NoisyPass(self.dropout)
        reconstruction = LayerReconstruction(layers, self.hidden_weight)
        yield self.pretraining(reconstruction)
        yield PlacePosterior(head, self.n_init)
        target = BalancedTarget(head, layers, self.power, self.frequency_power)
        yield self.refinement(target + self.reconstruction * reconstruction)

    def _own_network(self) -> nn.Module | None:
        network = super()._own_network()
        parts = [getattr(network, name, None) for name in ("encoder", "decoder")]
        if network is not None and not all(isinstance(part, nn.Sequential) for part in parts):
            named = " and ".join(type(part).__name__ for part in parts)
            raise TypeError(f"DEPICT looks at layers: encoder and decoder must be nn.Sequential, got {named}")
        return network


@dataclass
class PlacePosterior(Stage):
    """Make the linear softmax head the posterior of clusters of one variance, where k-means finds them."""

    head: SoftmaxHead
    n_init: int

    @torch.no_grad()
    def run(self, trainer: Trainer) -> None:
        linear: Any = self.head.layers[0]
        z = trainer.embed()
        kmeans = KMeans(linear.out_features, n_init=self.n_init, random_state=trainer.settings.seed).fit(z)
        variance = max(kmeans.inertia_ / z.numel(), SMALLEST)
        centers = kmeans.cluster_centers_
        linear.weight.copy_(centers / variance)
        linear.bias.copy_(centers.square().sum(1) / (-2 * variance))

"""Clusters in the latent space of a generator: ClusterGAN."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from fastdc._input import read_count
from fastdc.methods._deep import DeepClusterer
from fastdc.networks import GeneratorTriple, LastColumns
from fastdc.terms import Criticism, Deception, Watch
from fastdc.training import Alternate, Stage, Turn

ADAM = partial(torch.optim.Adam, betas=(0.5, 0.9), fused=True)


@dataclass(eq=False, repr=False, kw_only=True)
class ClusterGAN(DeepClusterer):
    r"""ClusterGAN of Mukherjee et al.: a generator from one-hot and normal latent rows, and its inverse.

    .. math:: \min_{G, E} \max_D \; E_x D(x) - E_z D(G(z)) + \beta_n \|z_n - E(G(z))_n\|^2
              + \beta_c H(z_c, E(G(z))_c), \quad z = (z_n, z_c), \; z_n \sim N(0, \sigma^2 I), \; z_c \text{ one-hot}

    with the gradient penalty of WGAN-GP on D. The critic D takes ``n_critic`` steps for each of generator G and
    encoder E together. The cluster of a row is the largest entry of the one-hot part that E finds in it.

    Parameters
    ----------
    n_normal : int
        Width of :math:`z_n`; the embedding has ``n_clusters`` columns more, the logits of :math:`z_c`.
    sigma : float
    beta_normal, beta_cluster : float
        :math:`\beta_n` and :math:`\beta_c`; the squared error is averaged over columns, as in the authors' code.
    penalty : float
        Weight of the gradient penalty.
    n_critic : int
    autoencoder : nn.Module, optional
        The three players: with ``encode`` and ``decode`` as any, and submodules ``generator``, ``encoder`` and
        ``critic``, such as :class:`fastdc.networks.GeneratorTriple`. ``encoder=`` alone does not do, and ``n_latent``
        and ``image_shape`` have no effect.
    n_clusters and all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes

    Notes
    -----
    Widths of the latent parts, :math:`\sigma = 0.1`, both weights, the penalty, five critic steps, leaky ReLU, batches
    of 64, and Adam at 0.0001 with betas (0.5, 0.9) are the paper's; the fully connected players of two layers are
    those of its data that are no images. An epoch is a pass over the data, a step of the generator ``n_critic``
    batches: few data need many epochs. Losses of adversaries do not fall, and clusters are equally large by
    construction.

    References
    ----------
    Mukherjee, Asnani, Lin, Kannan. ClusterGAN: Latent Space Clustering in Generative Adversarial Networks. AAAI 2019.

    Examples
    --------
    >>> from sklearn.datasets import make_blobs
    >>> from fastdc import ClusterGAN
    >>> X, _ = make_blobs(90, 4, centers=3, cluster_std=0.3, random_state=1)
    >>> ClusterGAN(3, hidden=(16,), n_normal=4, epochs=5, random_state=0).fit(X / 10).transform(X / 10).shape
    (90, 7)
    """

    hidden: Sequence[int] = (256, 256)
    epochs: int = 500
    batch_size: int | None = 64
    learning_rate: float = 1e-4
    tol: float | None = None
    n_normal: int = 30
    sigma: float = 0.1
    beta_normal: float = 10.0
    beta_cluster: float = 10.0
    penalty: float = 10.0
    n_critic: int = 5

    def make_network(self, n_features: int, generator: torch.Generator | None = None) -> nn.Module:
        return GeneratorTriple(n_features, self.n_normal, self.n_clusters, self.hidden, generator)

    def make_head(self, n_latent: int) -> LastColumns:
        return LastColumns(self.n_clusters)

    def stages(self, head: LastColumns) -> Iterator[Stage]:
        latent = self.n_normal, self.n_clusters, self.sigma
        critic = Turn(
            objective=Criticism(*latent, self.penalty),
            learning_rate=self.learning_rate,
            modules=_critic,
            optimizer=ADAM,
        )
        generator = Turn(
            objective=Deception(*latent, self.beta_normal, self.beta_cluster),
            learning_rate=self.learning_rate,
            modules=_generator_and_encoder,
            every=self.n_critic,
            optimizer=ADAM,
        )
        yield Alternate(
            "train", self.epochs, [critic, generator], update_interval=self.update_interval, watch=Watch(head)
        )

    def _check_parameters(self) -> None:
        super()._check_parameters()
        read_count(self.n_normal, "n_normal")
        read_count(self.n_critic, "n_critic")
        if self.encoder is not None:
            raise ValueError(
                "encoder= is one of three players; pass all as autoencoder=, like networks.GeneratorTriple"
            )


def _critic(network: Any) -> list[nn.Module]:
    return [network.critic]


def _generator_and_encoder(network: Any) -> list[nn.Module]:
    return [network.generator, network.encoder]

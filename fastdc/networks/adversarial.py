"""Networks that play against each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastdc.networks._random import drawn_from
from fastdc.networks.heads import Head


class GeneratorTriple(nn.Module):
    """The generator, critic and encoder of ClusterGAN, fully connected, with leaky ReLU between layers.

    A latent row is a normal part and a part for clusters, one-hot where it is drawn, logits where it is encoded.

    Parameters
    ----------
    n_features : int
    n_normal, n_clusters : int
        Widths of the two parts.
    hidden : sequence of int
        Widths of the layers of encoder and critic; the generator has them in reverse.
    generator : torch.Generator, optional
        Draws the weights; without it a fresh seed does. The global random state is left alone.

    Examples
    --------
    >>> import torch
    >>> triple = GeneratorTriple(64, 8, 3)
    >>> z = triple.encode(torch.zeros(5, 64))
    >>> z.shape, triple.decode(z).shape, triple.critic(torch.zeros(5, 64)).shape
    (torch.Size([5, 11]), torch.Size([5, 64]), torch.Size([5, 1]))
    """

    def __init__(
        self,
        n_features: int,
        n_normal: int = 30,
        n_clusters: int = 10,
        hidden: Sequence[int] = (256, 256),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        n_latent = n_normal + n_clusters
        with drawn_from(generator):
            self.generator = _leaky_mlp([n_latent, *hidden[::-1], n_features])
            self.critic = _leaky_mlp([n_features, *hidden, 1])
            self.encoder = _leaky_mlp([n_features, *hidden, n_latent])

    def encode(self, x: Tensor) -> Tensor:
        """Normal parts and logits of clusters, (n_samples, n_normal + n_clusters)."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """What the generator makes of latent rows, (n_samples, n_features)."""
        return self.generator(z)


class LastColumns(Head):
    """Clusters by the softmax of the last ``n_clusters`` columns of the embedding. It has nothing to learn."""

    def __init__(self, n_clusters: int) -> None:
        super().__init__()
        self.n_clusters = n_clusters

    def forward(self, z: Tensor) -> Tensor:
        """Logits of shape (n_samples, n_clusters)."""
        return z[:, -self.n_clusters :]

    def assign(self, z: Tensor) -> Tensor:
        """Softmax of the logits."""
        return self(z).softmax(1)


def _leaky_mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers[:-1])

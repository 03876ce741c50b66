"""Autoencoders whose embedding is a distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from fastdc.networks._random import fresh
from fastdc.networks.autoencoder import Autoencoder, linear, mlp
from fastdc.networks.convolution import ConvAutoencoder


class VariationalAutoencoder(Autoencoder):
    """A fully connected encoder to mean and log variance of a Gaussian, and a decoder from samples of it.

    ``encode`` gives the means, so that it can stand for an autoencoder; ``posterior`` gives both. Layers before a ReLU
    have He's weights: see :class:`MLPAutoencoder`.

    Parameters
    ----------
    n_features, n_latent : int
    hidden : sequence of int
        Widths of the encoder's layers, each with ReLU; the decoder has them in reverse.
    generator : torch.Generator, optional
        Draws the weights; without it a fresh seed does. The global random state is left alone.
    """

    encoder: nn.Sequential

    def __init__(
        self,
        n_features: int,
        n_latent: int = 10,
        hidden: Sequence[int] = (500, 500, 2000),
        generator: torch.Generator | None = None,
    ) -> None:
        generator = fresh(generator)
        widths = [n_features, *hidden, n_latent]
        *trunk, means = mlp(widths, generator, "he")
        decoder = mlp(widths[::-1], generator, "he")
        super().__init__(nn.Sequential(nn.Sequential(*trunk), means), decoder)
        self.log_vars = linear(hidden[-1], n_latent, generator)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the embedding of each row, both (n_samples, n_latent)."""
        seen = self.encoder[0](x)
        return self.encoder[1](seen), self.log_vars(seen)

    @staticmethod
    def sample(mean: Tensor, log_var: Tensor) -> Tensor:
        """A draw from the posterior, differentiable in both."""
        return mean + (0.5 * log_var).exp() * torch.randn_like(mean)


class ConvVariationalAutoencoder(VariationalAutoencoder):
    """The convolutional autoencoder of DCEC with a second linear layer, for the log variance.

    Parameters
    ----------
    image_shape, n_latent, channels, generator
        See :class:`ConvAutoencoder`.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        n_latent: int = 10,
        channels: Sequence[int] = (32, 64, 128),
        generator: torch.Generator | None = None,
    ) -> None:
        generator = fresh(generator)
        network = ConvAutoencoder(image_shape, n_latent, channels, generator)
        layers = list(cast(nn.Sequential, network.encoder))
        Autoencoder.__init__(self, nn.Sequential(nn.Sequential(*layers[:-1]), layers[-1]), network.decoder)
        self.log_vars = linear(cast(nn.Linear, layers[-1]).in_features, n_latent, generator)

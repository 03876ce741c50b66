"""Encoders without a decoder: fully connected ones for vectors, convolutional ones for images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastdc.networks._random import drawn_from
from fastdc.networks.autoencoder import Autoencoder
from fastdc.networks.convolution import check_image_shape


class BatchNorm(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` that takes a batch of one row, too: it has no spread, so the running one serves."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) == 1:
            return nn.functional.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        return super().forward(x)


class MLPBackbone(Autoencoder):
    """Linear layers, each with batch normalisation and ReLU, the embedding included.

    Parameters
    ----------
    n_features, n_latent : int
    hidden : sequence of int
        Widths of the layers between them.
    generator : torch.Generator, optional
        Draws the weights; without it a fresh seed does. The global random state is left alone.

    Examples
    --------
    >>> import torch
    >>> MLPBackbone(64, 128).encode(torch.zeros(5, 64)).shape
    torch.Size([5, 128])
    """

    def __init__(
        self,
        n_features: int,
        n_latent: int = 128,
        hidden: Sequence[int] = (512,),
        generator: torch.Generator | None = None,
    ) -> None:
        layers: list[nn.Module] = []
        with drawn_from(generator):
            for n_in, n_out in pairwise([n_features, *hidden, n_latent]):
                layers += [nn.Linear(n_in, n_out), BatchNorm(n_out), nn.ReLU()]
        super().__init__(nn.Sequential(*layers))


class ConvBackbone(Autoencoder):
    """Convolutions of stride 2 and a linear layer, all with batch normalisation and ReLU; rows are flat images.

    For methods without an autoencoder on a CPU (``autoencoder=ConvBackbone(...)``): on images of 28 x 28 pixels an
    epoch of CC takes about a tenth of the seconds that it takes with a small :class:`fastdc.networks.ResNet`, whose
    first stage keeps the size of the image.

    Parameters
    ----------
    image_shape : (channels, height, width)
    n_latent : int
        Width of the embedding.
    channels : sequence of int
        Of the convolutions.
    generator : torch.Generator, optional
        Draws the weights; without it a fresh seed does. The global random state is left alone.

    Examples
    --------
    >>> import torch
    >>> ConvBackbone((1, 28, 28)).encode(torch.zeros(5, 784)).shape
    torch.Size([5, 128])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        n_latent: int = 128,
        channels: Sequence[int] = (16, 32, 64),
        generator: torch.Generator | None = None,
    ) -> None:
        shape = check_image_shape(image_shape)
        layers: list[nn.Module] = [nn.Unflatten(1, shape)]
        with drawn_from(generator):
            for n_in, n_out in pairwise([shape[0], *channels]):
                layers += [nn.Conv2d(n_in, n_out, 3, 2, 1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]
            size = math.prod(-(-side // 2 ** len(channels)) for side in shape[1:])
            layers += [nn.Flatten(), nn.Linear(size * channels[-1], n_latent), BatchNorm(n_latent), nn.ReLU()]
        super().__init__(nn.Sequential(*layers))


class UnitAutoencoder(Autoencoder):
    """A backbone and a projection whose rows are brought to length one; no decoder.

    Parameters
    ----------
    backbone : nn.Module
    n_latent : int
        Width of what it gives, and of the embedding.
    generator : torch.Generator, optional
        Draws the weights of the projection.
    """

    def __init__(self, backbone: nn.Module, n_latent: int, generator: torch.Generator | None = None) -> None:
        with drawn_from(generator):
            super().__init__(nn.Sequential(backbone, projection(n_latent, n_latent)))

    def encode(self, x: Tensor) -> Tensor:
        """Embeddings of length one."""
        return nn.functional.normalize(self.encoder(x), dim=1)


def projection(n_latent: int, width: int, hidden: int | None = None) -> nn.Sequential:
    """What contrast is computed behind: linear, ReLU, linear; the layer between is ``n_latent`` wide by default."""
    between = n_latent if hidden is None else hidden
    return nn.Sequential(nn.Linear(n_latent, between), nn.ReLU(), nn.Linear(between, width))


@contextmanager
def frozen_statistics(network: nn.Module) -> Iterator[None]:
    """Within the block batch normalisation learns nothing from what passes; it normalises as before."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = not norm.training
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True

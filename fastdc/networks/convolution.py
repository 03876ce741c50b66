"""Convolutional networks for images whose rows are flat: they take and give (n_samples, channels * height * width)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from fastdc.networks._random import drawn_from
from fastdc.networks.autoencoder import Autoencoder


class ConvAutoencoder(Autoencoder):
    """The convolutional autoencoder of DCEC: three convolutions of stride 2, a linear embedding, and the mirror image.

    Parameters
    ----------
    image_shape : (channels, height, width)
        Height and width at least 4; any from there on.
    n_latent : int
    channels : sequence of int
        Of the convolutions; kernels of 5, 5, and 3.
    generator : torch.Generator, optional
        Draws the weights; without it a fresh seed does. The global random state is left alone.

    References
    ----------
    Guo, Liu, Zhu, Yin. Deep Clustering with Convolutional Autoencoders. ICONIP 2017.

    Examples
    --------
    >>> import torch
    >>> network = ConvAutoencoder((1, 28, 28), generator=torch.Generator().manual_seed(0))
    >>> network.encode(torch.zeros(5, 784)).shape, network(torch.zeros(5, 784)).shape
    (torch.Size([5, 10]), torch.Size([5, 784]))
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        n_latent: int = 10,
        channels: Sequence[int] = (32, 64, 128),
        generator: torch.Generator | None = None,
    ) -> None:
        shape = check_image_shape(image_shape)
        widths = [shape[0], *channels]
        kernels = [5] * (len(channels) - 1) + [3]
        sizes: list[tuple[int, ...]] = [shape[1:]]  # of the image before each convolution and after the last
        for _ in channels:
            sizes.append(tuple(-(-side // 2) for side in sizes[-1]))
        flat = channels[-1] * math.prod(sizes[-1])
        with drawn_from(generator):
            down: list[nn.Module] = [nn.Unflatten(1, shape)]
            up: list[nn.Module] = [nn.Linear(n_latent, flat), nn.ReLU(), nn.Unflatten(1, (channels[-1], *sizes[-1]))]
            for i, kernel in enumerate(kernels):
                down += [nn.Conv2d(widths[i], widths[i + 1], kernel, stride=2, padding=kernel // 2), nn.ReLU()]
            for i in reversed(range(len(channels))):
                rest = (sizes[i][0] - 2 * sizes[i + 1][0] + 1, sizes[i][1] - 2 * sizes[i + 1][1] + 1)
                up.append(nn.ConvTranspose2d(widths[i + 1], widths[i], kernels[i], 2, kernels[i] // 2, rest))
                up += [nn.ReLU()] if i else [nn.Flatten()]
            encoder = nn.Sequential(*down, nn.Flatten(), nn.Linear(flat, n_latent))
        super().__init__(encoder, nn.Sequential(*up))


def check_image_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """(channels, height, width), or an error that says so."""
    shape = tuple(image_shape)
    if len(shape) != 3 or not all(isinstance(side, int) and side > 0 for side in shape):
        raise ValueError(f"image_shape must be (channels, height, width), three integers above 0, got {image_shape!r}")
    if min(shape[1:]) < 4:
        raise ValueError(f"image_shape must be at least 4 x 4 pixels, got {shape[1]} x {shape[2]}")
    return shape

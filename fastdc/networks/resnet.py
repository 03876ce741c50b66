"""Residual networks in the form that small images take, for rows that are flat images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastdc.networks._random import drawn_from
from fastdc.networks.autoencoder import Autoencoder
from fastdc.networks.convolution import check_image_shape


class ResNet(Autoencoder):
    """A residual network: a 3 x 3 convolution, stages of basic blocks, the mean over what is left of the image.

    The first stage keeps the size of the image, each further one halves it. ``channels=(64, 128, 256)``,
    ``n_latent=512`` and two blocks a stage are ResNet-18 as it is used for CIFAR.

    Parameters
    ----------
    image_shape : (channels, height, width)
    n_latent : int
        Channels of the last stage, the embedding.
    channels : sequence of int
        Of the stages before it.
    n_blocks : int or sequence of int
        Blocks of each stage.
    generator : torch.Generator, optional
        Draws the weights; without it a fresh seed does. The global random state is left alone.

    References
    ----------
    He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. CVPR 2016.

    Examples
    --------
    >>> import torch
    >>> ResNet((3, 32, 32), 64, (16, 32), generator=torch.Generator().manual_seed(0)).encode(torch.zeros(2, 3072)).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        n_latent: int = 128,
        channels: Sequence[int] = (32, 64),
        n_blocks: int | Sequence[int] = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        shape = check_image_shape(image_shape)
        widths = [*channels, n_latent]
        counts = [n_blocks] * len(widths) if isinstance(n_blocks, int) else list(n_blocks)
        if len(counts) != len(widths):
            raise ValueError(
                f"n_blocks must be a number, or one for each of the {len(widths)} stages (channels and n_latent), "
                f"got {n_blocks!r}"
            )
        with drawn_from(generator):
            layers: list[nn.Module] = [nn.Unflatten(1, shape), *_convolution(shape[0], widths[0], 3), nn.ReLU()]
            n_in = widths[0]
            for stage, (width, count) in enumerate(zip(widths, counts)):
                for block in range(count):
                    layers.append(Block(n_in, width, stride=2 if stage and not block else 1))
                    n_in = width
            encoder = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        super().__init__(encoder)


class Block(nn.Module):
    """Two 3 x 3 convolutions and the input added to them, by a 1 x 1 convolution where shapes differ."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(n_in, n_out, 3, stride), nn.ReLU(), *_convolution(n_out, n_out, 3))
        same = stride == 1 and n_in == n_out
        self.shortcut = nn.Sequential() if same else nn.Sequential(*_convolution(n_in, n_out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Maps of shape (n_samples, n_out, height / stride, width / stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


def _convolution(n_in: int, n_out: int, size: int, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(n_in, n_out, size, stride, size // 2, bias=False), nn.BatchNorm2d(n_out)]

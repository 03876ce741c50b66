"""Views: other forms of the rows of a batch, for terms that compare them.

A view maker is called with a batch and all rows, and returns one matrix for each view, of the shape of ``batch.x``.
A transform is any callable of a batch of flat rows, so that augmentations of other libraries fit in: those here need
torch alone. All draw from torch's global generator, which a fit seeds for itself and puts back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample

from fastdc.kernels._checks import check_not_negative
from fastdc.networks.convolution import check_image_shape
from fastdc.training import Batch

Transform = Callable[[Tensor], Tensor]

__all__ = [
    "Augmented",
    "Chain",
    "CleanAndAugmented",
    "FeatureDropout",
    "GaussianNoise",
    "ImageTransform",
    "NeighborViews",
    "RandomAffine",
    "RandomResizedCrop",
]


@dataclass
class Augmented:
    """Each view is the rows, transformed anew.

    Parameters
    ----------
    transform : callable or sequence of callables
        One for all views, or one for each.
    n_views : int
        Of one transform.

    Examples
    --------
    >>> import torch
    >>> from fastdc.training import Batch
    >>> batch = Batch(torch.nn.Identity(), torch.zeros(3, 2), torch.arange(3))
    >>> [view.shape for view in Augmented(GaussianNoise(0.1))(batch, batch.x)]
    [torch.Size([3, 2]), torch.Size([3, 2])]
    """

    transform: Transform | Sequence[Transform]
    n_views: int = 2

    def __call__(self, batch: Batch, data: Tensor) -> list[Tensor]:
        transforms = [self.transform] * self.n_views if callable(self.transform) else self.transform
        return [transform(batch.x) for transform in transforms]


@dataclass
class CleanAndAugmented:
    """Two views: the rows as they are, and transformed."""

    transform: Transform

    def __call__(self, batch: Batch, data: Tensor) -> list[Tensor]:
        return [batch.x, self.transform(batch.x)]


@dataclass
class NeighborViews:
    """Two views: the rows, and for each one of its neighbours, drawn anew.

    Parameters
    ----------
    indices : Tensor of shape (n_samples, n_neighbors), int64
        Neighbours of every row of the data set, as ``mine_neighbors`` finds them.
    transform : callable, optional
        Applied to both.
    """

    indices: Tensor
    transform: Transform | None = None

    def __call__(self, batch: Batch, data: Tensor) -> list[Tensor]:
        choices = self.indices[batch.rows]
        drawn = torch.randint(choices.shape[1], (len(choices), 1), device=choices.device)
        views = [batch.x, data[choices.gather(1, drawn)[:, 0]]]
        return views if self.transform is None else [self.transform(view) for view in views]


@dataclass
class Chain:
    """One transform after another.

    Parameters
    ----------
    transforms : sequence of callables
        The first is applied first.

    Examples
    --------
    >>> import torch
    >>> Chain([torch.exp, torch.neg])(torch.zeros(1, 2))
    tensor([[-1., -1.]])
    """

    transforms: Sequence[Transform]

    def __call__(self, x: Tensor) -> Tensor:
        for transform in self.transforms:
            x = transform(x)
        return x


@dataclass
class GaussianNoise:
    """Adds normal noise of standard deviation ``std``."""

    std: float

    def __post_init__(self) -> None:
        check_not_negative(self.std, "std")

    def __call__(self, x: Tensor) -> Tensor:
        return x + self.std * torch.randn_like(x)


@dataclass
class FeatureDropout:
    """Sets a share ``p`` of the entries to zero and scales the others up by 1 / (1 - p)."""

    p: float

    def __call__(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.p)


@dataclass
class ImageTransform:
    """A transform of images (n, channels, height, width), such as a module of kornia, on flat rows.

    For instance ``ImageTransform(kornia.augmentation.RandomAffine(20.0), (1, 28, 28))``; kornia comes with
    ``pip install 'fastdc[augment]'``.

    Parameters
    ----------
    transform : callable
    image_shape : (channels, height, width)
    """

    transform: Transform
    image_shape: Sequence[int]

    def __post_init__(self) -> None:
        self.image_shape = check_image_shape(self.image_shape)

    def __call__(self, x: Tensor) -> Tensor:
        return self.transform(x.unflatten(1, tuple(self.image_shape))).flatten(1)


@dataclass
class RandomAffine:
    """Turns, shifts, scales and shears flat images, each by numbers of its own; what comes in from outside is 0.

    Parameters
    ----------
    image_shape : (channels, height, width)
    degrees : float
        Turns from -degrees to degrees.
    translate : float
        Shifts up to this share of the width and height.
    scale : (low, high)
        Sizes, drawn evenly in the logarithm.
    shear : float
        Degrees, horizontally.
    """

    image_shape: Sequence[int]
    degrees: float = 10.0
    translate: float = 0.1
    scale: Sequence[float] = (1.0, 1.0)
    shear: float = 0.0

    def __post_init__(self) -> None:
        self.image_shape = check_image_shape(self.image_shape)
        _check_scale(self.scale)

    def __call__(self, x: Tensor) -> Tensor:
        n = len(x)
        angle = math.radians(self.degrees) * _even(n, x)
        lean = torch.tan(math.radians(self.shear) * _even(n, x))
        low, high = (math.log(side) for side in self.scale)
        zoom = torch.exp(
            -(low + (high - low) * torch.rand(n, device=x.device, dtype=x.dtype))
        )  # inverse: grid to image
        cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
        ratio = self.image_shape[1] / self.image_shape[2]  # coordinates go from -1 to 1 on both sides
        shift = 2 * self.translate * torch.stack([_even(n, x), _even(n, x)], 1)
        rows = [
            torch.stack([cos, (lean * cos - sin) * ratio, shift[:, 0]], 1),
            torch.stack([sin / ratio, lean * sin + cos, shift[:, 1]], 1),
        ]
        return _sample(x, self.image_shape, torch.stack(rows, 1))


@dataclass
class RandomResizedCrop:
    """Cuts a part out of each flat image and brings it back to full size; half of them are mirrored.

    Parameters
    ----------
    image_shape : (channels, height, width)
    scale : (low, high)
        Share of the area.
    flip : bool
        Mirror half of the images, left to right.
    """

    image_shape: Sequence[int]
    scale: Sequence[float] = (0.2, 1.0)
    flip: bool = True

    def __post_init__(self) -> None:
        self.image_shape = check_image_shape(self.image_shape)
        _check_scale(self.scale)

    def __call__(self, x: Tensor) -> Tensor:
        n = len(x)
        low, high = self.scale
        side = (low + (high - low) * torch.rand(n, device=x.device, dtype=x.dtype)).sqrt()
        shift = torch.stack([_even(n, x), _even(n, x)], 1) * (1 - side)[:, None]
        mirrored = torch.where(torch.rand(n, device=x.device) < 0.5, -side, side) if self.flip else side
        zero = torch.zeros_like(side)
        rows = [torch.stack([mirrored, zero, shift[:, 0]], 1), torch.stack([zero, side, shift[:, 1]], 1)]
        return _sample(x, self.image_shape, torch.stack(rows, 1))


def _even(n: int, like: Tensor) -> Tensor:
    """n numbers, even in [-1, 1)."""
    return 2 * torch.rand(n, device=like.device, dtype=like.dtype) - 1


def _sample(x: Tensor, image_shape: Sequence[int], maps: Tensor) -> Tensor:
    """Flat images seen through affine maps (n, 2, 3) from places in the result to places in the image."""
    images = x.unflatten(1, tuple(image_shape))
    grid = affine_grid(maps, list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False).flatten(1)


def _check_scale(scale: Sequence[float]) -> None:
    if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be (low, high) with 0 < low <= high, got {scale!r}")

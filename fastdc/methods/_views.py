"""What methods share that compare views of the same rows: a network without a decoder, and augmentations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from fastdc.methods._deep import DeepClusterer
from fastdc.networks import Head, MLPBackbone, ResNet, projection
from fastdc.views import Chain, FeatureDropout, GaussianNoise, RandomAffine, RandomResizedCrop, Transform


@dataclass(eq=False, repr=False, kw_only=True)
class ViewClusterer(DeepClusterer):
    """Base of the methods that learn from views of the same rows, without an autoencoder.

    Parameters
    ----------
    n_latent : int
        Width of the embedding.
    hidden : sequence of int
        Widths of the layers before it in the default network for vectors, :class:`fastdc.networks.MLPBackbone`.
    image_shape : (channels, height, width), optional
        The rows are flat images: the default network is then a :class:`fastdc.networks.ResNet`. On a CPU
        :class:`fastdc.networks.ConvBackbone`, passed as ``autoencoder``, is several times faster.
    channels : sequence of int
        Widths of its stages before the last one, which is the embedding.
    n_blocks : int or sequence of int
        Residual blocks of each stage.
    views : Views, optional
        None transforms rows as :meth:`augmentation` says.
    noise, dropout : float
        Of the default views of vectors: standard deviation of what is added to each feature, and share of the
        features that are set to 0. They suit features of about unit spread.
    all others : see :class:`fastdc.methods.DeepClusterer`, also for the fitted attributes
    """

    n_latent: int = 128
    hidden: Sequence[int] = (512,)
    channels: Sequence[int] = (32, 64)
    n_blocks: int | Sequence[int] = 1
    tol: float | None = None
    noise: float = 0.1
    dropout: float = 0.2

    def make_network(self, n_features: int, generator: torch.Generator | None = None) -> nn.Module:
        if self.image_shape is not None:
            return ResNet(self.image_shape, self.n_latent, self.channels, self.n_blocks, generator)
        return MLPBackbone(n_features, self.n_latent, self.hidden, generator)

    def augmentation(self, area: Sequence[float] = (0.5, 1.0), harder: bool = False) -> Transform:
        """The default transform.

        Gray images are turned, shifted and scaled, and not mirrored, since characters do not bear it; colour images
        are cut to a share of their area in this range, and half of them mirrored; vectors get noise and dropout,
        which is doubled where it is to be ``harder``.
        """
        if self.image_shape is None:
            return Chain([GaussianNoise(self.noise), FeatureDropout(min((1 + harder) * self.dropout, 1.0))])
        if self.image_shape[0] == 1:
            return RandomAffine(self.image_shape, degrees=15, translate=0.1, scale=(0.8, 1.25), shear=10)
        return RandomResizedCrop(self.image_shape, area)


def projection_beside(head: Head, width: int) -> nn.Module:
    """A projection of what the head sees, in its dtype and on its device."""
    weight = next(head.parameters())
    return projection(weight.shape[1], width).to(weight)

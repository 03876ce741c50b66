"""Encoders, decoders and heads: plain ``nn.Module``s. A user's own take their place anywhere."""

from fastdc.networks.autoencoder import Autoencoder, MLPAutoencoder, as_autoencoder, mlp
from fastdc.networks.backbone import BatchNorm, MLPBackbone, frozen_statistics, projection
from fastdc.networks.convolution import ConvAutoencoder
from fastdc.networks.graph import MappedCentroids
from fastdc.networks.heads import Centroids, Head, Mixture, Prototypes, SoftmaxHead
from fastdc.networks.manifold import ManifoldMixture
from fastdc.networks.multi_head import MultiHead
from fastdc.networks.resnet import ResNet
from fastdc.networks.variational import VariationalAutoencoder

__all__ = [
    "Autoencoder",
    "BatchNorm",
    "Centroids",
    "ConvAutoencoder",
    "Head",
    "MLPAutoencoder",
    "MLPBackbone",
    "ManifoldMixture",
    "MappedCentroids",
    "Mixture",
    "MultiHead",
    "Prototypes",
    "ResNet",
    "SoftmaxHead",
    "VariationalAutoencoder",
    "as_autoencoder",
    "frozen_statistics",
    "mlp",
    "projection",
]

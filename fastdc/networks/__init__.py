"""Encoders, decoders and heads: plain ``nn.Module``s. A user's own take their place anywhere."""

from fastdc.networks.adapter import Adapter
from fastdc.networks.adversarial import GeneratorTriple, LastColumns
from fastdc.networks.autoencoder import Autoencoder, Init, MLPAutoencoder, as_autoencoder, mlp
from fastdc.networks.backbone import (
    BatchNorm,
    ConvBackbone,
    MLPBackbone,
    UnitAutoencoder,
    frozen_statistics,
    projection,
)
from fastdc.networks.convolution import ConvAutoencoder
from fastdc.networks.graph import GraphCentroids, MappedCentroids, check_layers, layer_outputs
from fastdc.networks.heads import Centroids, Head, Mixture, Prototypes, SoftmaxHead
from fastdc.networks.linear import LinearAutoencoder
from fastdc.networks.manifold import ManifoldMixture
from fastdc.networks.multi_head import MultiHead
from fastdc.networks.resnet import ResNet
from fastdc.networks.scaled_centroids import ScaledCentroids
from fastdc.networks.self_expression import SelfExpression
from fastdc.networks.soft_centroids import SoftCentroids
from fastdc.networks.variational import ConvVariationalAutoencoder, VariationalAutoencoder

__all__ = [
    "Adapter",
    "Autoencoder",
    "BatchNorm",
    "Centroids",
    "ConvAutoencoder",
    "ConvBackbone",
    "ConvVariationalAutoencoder",
    "GeneratorTriple",
    "GraphCentroids",
    "Head",
    "Init",
    "LastColumns",
    "LinearAutoencoder",
    "MLPAutoencoder",
    "MLPBackbone",
    "ManifoldMixture",
    "MappedCentroids",
    "Mixture",
    "MultiHead",
    "Prototypes",
    "ResNet",
    "ScaledCentroids",
    "SelfExpression",
    "SoftCentroids",
    "SoftmaxHead",
    "UnitAutoencoder",
    "VariationalAutoencoder",
    "as_autoencoder",
    "check_layers",
    "frozen_statistics",
    "layer_outputs",
    "mlp",
    "projection",
]

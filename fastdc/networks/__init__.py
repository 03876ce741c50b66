"""Encoders, decoders and heads: plain ``nn.Module``s. A user's own take their place anywhere."""

from fastdc.networks.autoencoder import Autoencoder, MLPAutoencoder, as_autoencoder, mlp
from fastdc.networks.convolution import ConvAutoencoder
from fastdc.networks.heads import Centroids, Head, Mixture, Prototypes, SoftmaxHead
from fastdc.networks.variational import VariationalAutoencoder

__all__ = [
    "Autoencoder",
    "Centroids",
    "ConvAutoencoder",
    "Head",
    "MLPAutoencoder",
    "Mixture",
    "Prototypes",
    "SoftmaxHead",
    "VariationalAutoencoder",
    "as_autoencoder",
    "mlp",
]

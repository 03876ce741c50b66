"""Encoders, decoders and heads: plain ``nn.Module``s. A user's own take their place anywhere."""

from fastdc.networks.autoencoder import Autoencoder, MLPAutoencoder, as_autoencoder
from fastdc.networks.heads import Centroids

__all__ = ["Autoencoder", "Centroids", "MLPAutoencoder", "as_autoencoder"]

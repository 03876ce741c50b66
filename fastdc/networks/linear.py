"""An autoencoder that needs no training."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from fastdc.networks.autoencoder import Autoencoder

CHUNK_ROWS = 1 << 13


class LinearAutoencoder(Autoencoder):
    """Principal components: the encoder projects on them, the decoder goes back. :meth:`place` finds them.

    Parameters
    ----------
    n_features, n_latent : int
        n_latent at most n_features.

    Examples
    --------
    >>> import torch
    >>> network = LinearAutoencoder(2, 1)
    >>> network.place(torch.tensor([[0.0, 1.0], [3.0, 5.0]]))
    >>> network.encode(torch.tensor([[3.0, 5.0]])).round(decimals=4)
    tensor([[2.5000]], grad_fn=<RoundBackward1>)
    """

    def __init__(self, n_features: int, n_latent: int) -> None:
        if n_latent > n_features:
            raise ValueError(f"n_latent={n_latent} must be at most n_features={n_features}")
        encoder = nn.utils.skip_init(nn.Linear, n_features, n_latent)  # does not draw from the global state
        super().__init__(encoder, nn.utils.skip_init(nn.Linear, n_latent, n_features))
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    @torch.no_grad()
    def place(self, x: Any) -> None:
        """Take the principal components of the rows, the strongest first, each with its largest entry positive.

        Parameters
        ----------
        x : Tensor or SourceRows of shape (n_samples, n_features)
            Read twice, some rows at a time.
        """
        encoder, decoder = cast(nn.Linear, self.encoder), cast(nn.Linear, self.decoder)
        starts = range(0, len(x), CHUNK_ROWS)
        mean = torch.stack([x[i : i + CHUNK_ROWS].double().sum(0) for i in starts]).sum(0) / len(x)
        scatter = torch.zeros(len(mean), len(mean), dtype=mean.dtype, device=mean.device)
        for i in starts:
            centered = x[i : i + CHUNK_ROWS].double() - mean
            scatter += centered.T @ centered
        components = torch.linalg.eigh(scatter).eigenvectors.flip(1)[:, : encoder.out_features].T
        components = components * components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
        encoder.weight.copy_(components)
        encoder.bias.copy_(-components @ mean)
        decoder.weight.copy_(components.T)
        decoder.bias.copy_(mean)

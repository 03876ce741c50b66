"""A network that begins as the identity, for embeddings that are good already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastdc.networks._random import drawn_from
from fastdc.networks.autoencoder import Autoencoder


class Adapter(Autoencoder):
    """x + f(x) with f fully connected and zero at first: it changes given embeddings no more than training asks for.

    Parameters
    ----------
    n_features : int
        Width of the embeddings that come and go.
    hidden : sequence of int
        Widths of the layers of f, each with ReLU.
    generator : torch.Generator, optional
        Draws the weights; without it a fresh seed does. The global random state is left alone.

    Examples
    --------
    >>> import torch
    >>> Adapter(3).encode(torch.ones(1, 3))
    tensor([[1., 1., 1.]], grad_fn=<AddBackward0>)
    """

    def __init__(
        self, n_features: int, hidden: Sequence[int] = (512,), generator: torch.Generator | None = None
    ) -> None:
        layers: list[nn.Module] = []
        widths = [n_features, *hidden]
        with drawn_from(generator):
            for n_in, n_out in zip(widths, hidden):
                layers += [nn.Linear(n_in, n_out), nn.ReLU()]
            last = nn.Linear(widths[-1], n_features)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        super().__init__(Residual(nn.Sequential(*layers, last)))


class Residual(nn.Module):
    """The input and what ``body`` makes of it, added up."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        """Of the shape of ``x``."""
        return x + self.body(x)

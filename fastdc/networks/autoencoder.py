"""Autoencoders: the MLP of DEC, and the wrapping of a user's own modules."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastdc.networks._random import fresh

Init = Literal["torch", "he", "glorot"]


class Autoencoder(nn.Module):
    """Two modules, one that embeds and one that reconstructs. The decoder may be missing.

    Parameters
    ----------
    encoder : nn.Module
        Tensor of shape (n_samples, n_features) to embeddings of shape (n_samples, n_latent).
    decoder : nn.Module or None
        Embeddings to reconstructions of shape (n_samples, n_features).

    Examples
    --------
    >>> import torch
    >>> Autoencoder(torch.nn.Linear(4, 2), torch.nn.Linear(2, 4)).encode(torch.zeros(3, 4)).shape
    torch.Size([3, 2])
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def encode(self, x: Tensor) -> Tensor:
        """Embeddings of the rows of ``x``."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Reconstructions from embeddings."""
        if self.decoder is None:
            raise ValueError("the network has no decoder, and a reconstruction is asked for; pass decoder=")
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions of the rows of ``x``."""
        return self.decode(self.encode(x))


class MLPAutoencoder(Autoencoder):
    """The fully connected autoencoder of DEC: n_features-500-500-2000-n_latent and its mirror image.

    ReLU between layers, none on the embedding and on the output.

    Parameters
    ----------
    n_features, n_latent : int
        Width of the data and of the embedding.
    hidden : sequence of int
        Widths of the layers between them; the decoder has them in reverse.
    generator : torch.Generator, optional
        Draws the weights; without it a fresh seed does. The global random state is left alone.
    init : "torch", "he" or "glorot"
        Of the weights, see the notes.

    Raises
    ------
    ValueError
        If ``init`` is none of these.

    Notes
    -----
    - ``"torch"``: weights and biases are uniform in ±1/sqrt(fan_in), as ``nn.Linear`` draws them.
    - ``"he"``: weights before a ReLU are uniform in ±sqrt(6/fan_in), with which signals keep their size from layer to
      layer, and a deep autoencoder needs about half the epochs. Its embeddings are then two to three times smaller,
      which matters to a loss of a fixed scale, such as DEC's.
    - ``"glorot"``: the encoder's weights are uniform in ±sqrt(6/(fan_in + fan_out)), so that those of wide data and of
      the embedding begin larger. The rest is as in ``"torch"``: from the embedding to a wide layer Glorot's weights
      would be tiny.

    References
    ----------
    Xie, Girshick, Farhadi. Unsupervised Deep Embedding for Clustering Analysis. ICML 2016.
    He, Zhang, Ren, Sun. Delving Deep into Rectifiers. ICCV 2015.
    Glorot, Bengio. Understanding the difficulty of training deep feedforward neural networks. AISTATS 2010.

    Examples
    --------
    >>> import torch
    >>> network = MLPAutoencoder(64, generator=torch.Generator().manual_seed(0))
    >>> network.encode(torch.zeros(5, 64)).shape, network(torch.zeros(5, 64)).shape
    (torch.Size([5, 10]), torch.Size([5, 64]))
    """

    def __init__(
        self,
        n_features: int,
        n_latent: int = 10,
        hidden: Sequence[int] = (500, 500, 2000),
        generator: torch.Generator | None = None,
        init: Init = "torch",
    ) -> None:
        generator = fresh(generator)
        widths = [n_features, *hidden, n_latent]
        super().__init__(
            mlp(widths, generator, init), mlp(widths[::-1], generator, "torch" if init == "glorot" else init)
        )


def as_autoencoder(
    autoencoder: nn.Module | None = None, encoder: nn.Module | None = None, decoder: nn.Module | None = None
) -> nn.Module:
    """The user's modules as one that has ``encode`` and ``decode``.

    Parameters
    ----------
    autoencoder : nn.Module, optional
        With methods ``encode`` and ``decode``, or with submodules ``encoder`` and ``decoder``.
    encoder, decoder : nn.Module, optional
        Or the two by themselves.

    Raises
    ------
    TypeError
        If something passed is no module or has neither of the two pairs.
    ValueError
        If both forms are passed, or a decoder without an encoder.
    """
    for name, module in (("autoencoder", autoencoder), ("encoder", encoder), ("decoder", decoder)):
        if module is not None and not isinstance(module, nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module, got {type(module).__name__}")
    if autoencoder is None:
        if encoder is None:
            raise ValueError("decoder= needs encoder= beside it")
        return Autoencoder(encoder, decoder)
    if encoder is not None or decoder is not None:
        raise ValueError("pass either autoencoder= or encoder= (with decoder=), not both")
    if callable(getattr(autoencoder, "encode", None)) and callable(getattr(autoencoder, "decode", None)):
        return autoencoder
    inner = getattr(autoencoder, "encoder", None), getattr(autoencoder, "decoder", None)
    if isinstance(inner[0], nn.Module) and isinstance(inner[1], nn.Module):
        return Autoencoder(inner[0], inner[1])
    raise TypeError(
        f"autoencoder ({type(autoencoder).__name__}) must have methods encode and decode, or submodules "
        "encoder and decoder"
    )


def mlp(widths: Sequence[int], generator: torch.Generator, init: Init = "torch") -> nn.Sequential:
    """Linear layers of these widths with ReLU between them, drawn from ``generator``."""
    if init not in get_args(Init):
        raise ValueError(f"init must be one of {', '.join(get_args(Init))}, got {init!r}")
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(widths[:-1]):
        layers += [linear(n_in, n_out, generator, init), nn.ReLU()]
    last: Init = "torch" if init == "he" else init  # no ReLU comes after it
    return nn.Sequential(*layers, linear(widths[-2], widths[-1], generator, last))


def linear(n_in: int, n_out: int, generator: torch.Generator, init: Init = "torch") -> nn.Linear:
    """A linear layer, as :class:`MLPAutoencoder` describes them."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)  # its own initialisation draws from the global state
    bound = n_in**-0.5
    of_weights = {"torch": bound, "he": 6**0.5 * bound, "glorot": (6 / (n_in + n_out)) ** 0.5}[init]
    with torch.no_grad():
        layer.weight.uniform_(-of_weights, of_weights, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer

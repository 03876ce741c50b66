"""Networks of graph methods: embeddings through a linear map, and convolutions over a graph."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from fastdc.kernels.graph import Adjacency, propagate
from fastdc.kernels.student_t import StudentTStatistics
from fastdc.networks._shapes import TakesShapes
from fastdc.networks.heads import Centroids

DEPENDENT = 1e-12  # of the largest entry: what a column's own part may not be below


class MappedCentroids(Centroids):
    """Centers among embeddings that are shifted and multiplied by a matrix, which no gradient changes.

    Parameters
    ----------
    n_clusters, n_latent : int
    unit : bool
        Whether the mapped embeddings are scaled to length one.

    Attributes
    ----------
    offset, map : buffers of shape (n_latent,) and (n_latent, n_latent)
        ``head(z)`` is (z - offset) @ map.
    """

    offset: Tensor
    map: Tensor

    def __init__(self, n_clusters: int, n_latent: int, unit: bool = False) -> None:
        super().__init__(n_clusters, n_latent)
        self.unit = unit
        self.register_buffer("offset", torch.zeros(n_latent))
        self.register_buffer("map", torch.eye(n_latent))

    def forward(self, z: Tensor) -> Tensor:
        """The mapped embeddings, where the centers are."""
        mapped = (z - self.offset) @ self.map
        return normalize(mapped, dim=1) if self.unit else mapped

    def assign(self, z: Tensor) -> Tensor:
        return super().assign(self(z))

    def statistics(self, z: Tensor, previous_labels: Tensor | None = None) -> StudentTStatistics:
        return super().statistics(self(z), previous_labels)

    @torch.no_grad()
    def whiten(self, z: Tensor, center: bool = True) -> None:
        """Set the map such that the columns of these embeddings become orthonormal, times the root of their number.

        With ``center`` their means become 0, as of principal components. By a triangular factor of the rows in
        float64. Columns that depend on the ones before become 0.
        """
        rows = z.double()
        offset = rows.mean(0) if center else torch.zeros_like(rows[0])
        width = rows.shape[1]
        padded = torch.cat([rows - offset, rows.new_zeros(max(0, width - len(rows)), width)])
        factor = torch.linalg.qr(padded, mode="r").R / len(rows) ** 0.5
        diagonal = factor.diagonal()
        dependent = diagonal.abs() <= DEPENDENT * factor.abs().max()
        diagonal.copy_(torch.where(dependent, torch.inf, diagonal))
        inverse = torch.linalg.solve_triangular(factor, torch.eye(width).to(factor), upper=True)
        self.offset.copy_(offset)
        self.map.copy_(inverse)


def layer_outputs(encoder: nn.Module, x: Tensor) -> list[Tensor]:
    """What each layer of an encoder gives: the inputs of its linear layers but the first, and its output.

    Raises
    ------
    TypeError
        If the encoder is no ``nn.Sequential`` with linear layers among its own.
    """
    check_layers(encoder)
    outputs: list[Tensor] = []
    for layer in encoder:  # type: ignore[attr-defined]
        if isinstance(layer, nn.Linear):
            outputs.append(x)
        x = layer(x)
    return [*outputs[1:], x]


def check_layers(encoder: nn.Module) -> list[int]:
    """Widths of the inputs of the linear layers and of the last one's output, or an error."""
    layers = [layer for layer in encoder if isinstance(layer, nn.Linear)] if isinstance(encoder, nn.Sequential) else []
    if not layers:
        raise TypeError(
            "the encoder must be an nn.Sequential of linear layers and activations, whose outputs a graph network "
            f"mixes with its own, got {type(encoder).__name__}"
        )
    return [*(layer.in_features for layer in layers), layers[-1].out_features]


class GraphCentroids(TakesShapes, Centroids):
    """Centers in the embedding, and a graph network of SDCN that classifies all rows beside an encoder.

    Parameters
    ----------
    n_clusters : int
    widths : sequence of int
        Of the rows, of what each layer of the encoder gives, and so of the embedding.
    alpha : float
        Degrees of freedom of the Student t kernel.
    mix : float
        Share of the encoder's output in what a layer of the graph network takes, 0 to 1.

    Attributes
    ----------
    indptr, columns, values, column_indptr, rows, column_values : buffers
        The graph, normalised, as ``Adjacency`` has it; empty until :meth:`link` sets it.
    """

    def __init__(self, n_clusters: int, widths: Sequence[int], alpha: float = 1.0, mix: float = 0.5) -> None:
        super().__init__(n_clusters, widths[-1], alpha)
        if not 0 <= mix <= 1:
            raise ValueError(f"mix must be a share from 0 to 1, got {mix}")
        self.mix = mix
        layers = [nn.Linear(n_in, n_out, bias=False) for n_in, n_out in pairwise([*widths, n_clusters])]
        for layer in layers:
            nn.init.xavier_uniform_(layer.weight)
        self.layers = nn.ModuleList(layers)
        for name in Adjacency._fields:
            self.register_buffer(name, torch.zeros(0))

    def link(self, adjacency: Tensor) -> None:
        """Take this graph, a sparse CSR tensor of weights: D^-1/2 (A + I) D^-1/2 of it."""
        prepared = Adjacency.prepare(adjacency, "symmetric", self_loops=True)
        for name, tensor in prepared._asdict().items():
            setattr(self, name, tensor)

    def classify(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Logits (n_samples, n_clusters) of all rows, from what the layers of the encoder give of them."""
        graph = Adjacency(*(self.get_buffer(name) for name in Adjacency._fields))
        seen = self.layers[0](x)
        for layer, own in zip(list(self.layers)[1:], outputs):
            seen = propagate(graph, seen).relu()
            seen = layer((1 - self.mix) * seen + self.mix * own)
        return propagate(graph, seen)

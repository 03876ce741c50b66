"""Points, and neighbours by the definition in float64, for the tests of the neighbors room."""

import torch

METRICS = ["euclidean", "cosine", "inner_product"]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def make_points(n, d, dtype=torch.float32, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def all_pairs(x, queries=None, metric="euclidean"):
    """What is sorted, (m, n) in float64: distances, or products negated; a point itself is at infinity."""
    points = x.double()
    rows = points if queries is None else queries.double()
    if metric == "euclidean":
        pairs = torch.stack([(points - row).square().sum(1).sqrt() for row in rows])
    else:
        if metric == "cosine":
            points, rows = (torch.nn.functional.normalize(t, dim=1) for t in (points, rows))
        pairs = float(metric == "cosine") - rows @ points.T
    if queries is None:
        pairs.fill_diagonal_(torch.inf)
    return pairs


def exact_knn(x, n_neighbors, queries=None, metric="euclidean"):
    pairs, indices = all_pairs(x, queries, metric).sort(dim=1, stable=True)
    pairs = -pairs if metric == "inner_product" else pairs
    return pairs[:, :n_neighbors], indices[:, :n_neighbors]


def assert_finds(found, x, n_neighbors, queries=None, metric="euclidean"):
    """The distances are those of float64, and each index has its distance: where ties are broken by rounding
    of the rows, either may come."""
    distances, _ = exact_knn(x, n_neighbors, queries, metric)
    unit = torch.finfo(found.distances.dtype).eps
    pairs = all_pairs(x, queries, metric)
    scale = 1.0 if metric == "cosine" else float(distances.abs().max())
    assert found.indices.dtype == torch.int64
    assert (found.distances.double() - distances).abs().max() <= 8 * unit * scale
    there = pairs.gather(1, found.indices) * (-1 if metric == "inner_product" else 1)
    assert (there - distances).abs().max() <= 8 * unit * scale
    ordered = found.indices.sort(dim=1).values
    assert bool((ordered[:, 1:] != ordered[:, :-1]).all())
    assert bool(((ordered >= 0) & (ordered < len(x))).all())

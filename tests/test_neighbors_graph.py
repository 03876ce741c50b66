"""Graphs of neighbours, their weights, and neighbours mined for SCAN."""

import inspect
import math
import re

import numpy as np
import pytest
import torch

import fastdc
from fastdc.kernels.neighbors import graph as graph_module
from fastdc.kernels.neighbors.weights import umap_weights
from fastdc.neighbors import knn, knn_graph, mine_neighbors
from tests.neighbors_cases import METRICS, exact_knn, make_points

MODES = ["directed", "mutual", "symmetric"]
WEIGHTS = [None, "distance", "heat", "self_tuning", "umap"]


def weights_by_loops(distances, indices, weights, sigma=None, local_neighbor=7):
    """The formulas of the papers, an edge at a time; distances and indices (n, k) in float64."""
    n, k = distances.shape
    out = np.empty((n, k))
    mean = distances.mean() if sigma is None else sigma
    scales = [distances[i, min(local_neighbor, k) - 1] for i in range(n)]
    sigmas, rhos = zip(*(umap_scales(row, distances) for row in distances))
    for i in range(n):
        for place in range(k):
            d, j = distances[i, place], indices[i, place]
            if weights is None:
                out[i, place] = 1.0
            elif weights == "distance":
                out[i, place] = d
            elif weights == "heat":
                out[i, place] = math.exp(-d * d / (2 * mean * mean))
            elif weights == "self_tuning":
                out[i, place] = math.exp(-d * d / (scales[i] * scales[j]))
            else:
                out[i, place] = 1.0 if d <= rhos[i] else math.exp(-(d - rhos[i]) / sigmas[i])
    return out


def umap_scales(row, distances):
    """umap-learn's smooth_knn_dist of one row, at local connectivity 1: its arrays hold the point itself too."""
    row = [0.0, *row]
    target = math.log2(len(row))
    positive = [d for d in row if d > 0]
    rho = min(positive) if positive else 0.0
    low, high, middle = 0.0, math.inf, 1.0
    for _ in range(64):
        total = sum(math.exp(-(d - rho) / middle) if d > rho else 1.0 for d in row[1:])
        if abs(total - target) < 1e-5:
            break
        if total > target:
            high = middle
            middle = (low + high) / 2
        else:
            low = middle
            middle = middle * 2 if high == math.inf else (low + high) / 2
    mean_of_all = distances.sum() / (distances.size + len(distances))
    return max(middle, 1e-3 * (sum(row) / len(row) if rho > 0 else mean_of_all)), rho


def dense_graph(x, k, metric, mode, weights):
    """(weights, whether there is an edge), each (n, n)."""
    distances, indices = (part.numpy() for part in exact_knn(x.double(), k, None, metric))
    n = len(x)
    w, edge = np.zeros((n, n)), np.zeros((n, n), bool)
    rows = np.arange(n)[:, None]
    w[rows, indices], edge[rows, indices] = weights_by_loops(distances, indices, weights), True
    if mode == "mutual":
        return np.where(edge & edge.T, w * w.T if weights == "umap" else w, 0), edge & edge.T
    if mode == "symmetric":
        return w + w.T - w * w.T if weights == "umap" else np.maximum(w, w.T), edge | edge.T
    return w, edge


def edges_of(graph):
    return np.repeat(np.arange(graph.shape[0]), np.diff(graph.indptr)), graph.indices


# --- values


def test_by_hand():
    x = torch.tensor([[0.0], [1.0], [3.0], [3.5]])
    directed = knn_graph(x, 1, weights="distance")
    assert directed.toarray().tolist() == [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0.5], [0, 0, 0.5, 0]]
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    expected = [[0, 1, 0, 0], [1, 0, 2, 0], [0, 2, 0, 4], [0, 0, 4, 0]]
    assert knn_graph(x, 1, mode="symmetric", weights="distance").toarray().tolist() == expected
    mutual = knn_graph(x, 1, mode="mutual", weights="heat", sigma=0.5**0.5)
    np.testing.assert_allclose(mutual.toarray()[0], [0, math.exp(-1), 0, 0], rtol=1e-7)
    assert mutual.nnz == 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("mode", MODES)
def test_matches_the_dense_formulas(mode, weights, dtype):
    x = make_points(60, 4, dtype)
    for metric in METRICS[:2]:
        graph = knn_graph(x, 9, metric, mode=mode, weights=weights)
        expected, edge = dense_graph(x, 9, metric, mode, weights)
        assert graph.dtype == (np.float64 if dtype == torch.float64 else np.float32)
        assert np.array_equal(np.stack(edges_of(graph)), np.stack(edge.nonzero()))
        np.testing.assert_allclose(graph.toarray(), expected, rtol=2e-5 if weights == "umap" else 2e-6, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_inner_products_have_a_graph_without_weights(mode):
    x = make_points(60, 4)
    graph = knn_graph(x, 5, "inner_product", mode=mode)
    expected, _ = dense_graph(x, 5, "inner_product", mode, None)
    assert np.array_equal(graph.toarray(), expected)


@pytest.mark.filterwarnings("ignore:Graph is not fully connected")
def test_is_scikit_learn_and_clusters_with_it():
    from sklearn.cluster import SpectralClustering
    from sklearn.neighbors import kneighbors_graph

    x = torch.cat([make_points(60, 3, torch.float64), make_points(60, 3, torch.float64, seed=1) + 30.0])
    for mode, weights in (("connectivity", None), ("distance", "distance")):
        theirs = kneighbors_graph(x.numpy(), 8, mode=mode)
        np.testing.assert_allclose(knn_graph(x, 8, weights=weights).toarray(), theirs.toarray(), rtol=1e-7)
    graph = knn_graph(x, 20, mode="symmetric", weights="self_tuning")
    labels = SpectralClustering(2, affinity="precomputed", random_state=0).fit_predict(graph)
    assert len(set(labels[:60])) == len(set(labels[60:])) == 1
    assert labels[0] != labels[60]


@pytest.mark.parametrize("k", [1, 2, 14])
def test_umap_memberships_sum_to_the_logarithm(k):
    distances = exact_knn(make_points(200, 5, torch.float64), k)[0]
    sums = umap_weights(distances).sum(1)
    assert torch.allclose(sums, torch.full((200,), math.log2(k + 1), dtype=torch.float64), atol=2e-5)


def test_umap_by_rows_at_any_chunk(monkeypatch):
    distances = exact_knn(make_points(90, 5, torch.float64), 6)[0]
    whole = umap_weights(distances)
    monkeypatch.setattr("fastdc.kernels.neighbors.weights.CHUNK_NUMBERS", 60)
    assert torch.equal(umap_weights(distances), whole)


# --- inputs that are hard


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("mode", MODES)
def test_copies_of_a_point_are_edges(mode, weights):
    base = make_points(20, 3)
    x = torch.cat([base] * 4)
    graph = knn_graph(x, 3, mode=mode, weights=weights)  # the three copies, at distance 0
    row, column = edges_of(graph)
    assert graph.nnz == 240
    assert ((row - column) % 20 == 0).all()
    assert np.array_equal(graph.data, np.full(240, 0.0 if weights == "distance" else 1.0, np.float32))
    mixed = knn_graph(x, 8, mode=mode, weights=weights)  # and points beyond, where local scales are not 0
    assert np.isfinite(mixed.data).all()


def test_self_tuning_at_a_scale_of_zero_has_the_weight_zero():
    x = torch.tensor([[0.0], [0.0], [0.0], [5.0], [9.0]])
    graph = knn_graph(x, 2, weights="self_tuning", local_neighbor=2)
    assert graph.toarray()[3].tolist() == [0, 0, 0, 0, pytest.approx(math.exp(-16 / (5.0 * 9.0)))]
    assert graph.nnz == 10
    assert graph.toarray()[0].tolist() == [0, 1, 1, 0, 0]


@pytest.mark.parametrize("weights", WEIGHTS)
def test_T06_all_rows_equal(weights):
    graph = knn_graph(torch.full((30, 4), 0.1), 3, mode="symmetric", weights=weights)
    assert np.array_equal(graph.data, np.full(graph.nnz, 0.0 if weights == "distance" else 1.0, np.float32))
    assert (graph != graph.T).nnz == 0


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("mode", MODES)
def test_T03_rows_that_are_not_finite_have_no_edges(mode, weights):
    x = make_points(50, 3)
    x[7, 1], x[30] = torch.nan, torch.inf
    clean = [i for i in range(50) if i not in (7, 30)]
    graph = knn_graph(x, 6, mode=mode, weights=weights).toarray()
    assert not graph[[7, 30]].any()
    assert not graph[:, [7, 30]].any()
    alone = knn_graph(x[clean], 6, mode=mode, weights=weights).toarray()
    np.testing.assert_allclose(graph[np.ix_(clean, clean)], alone, rtol=1e-5, atol=1e-6)
    few = knn_graph(x[[0, 7, 30, 1]], 3, mode=mode, weights=weights)  # fewer neighbours than wanted
    assert few.nnz == 2
    nothing = knn_graph(torch.full((3, 2), torch.nan), 1, mode=mode, weights=weights)
    assert nothing.nnz == 0


def test_T15_large_offset():
    x = (make_points(80, 4) * 64).round() / 64
    for weights in WEIGHTS:
        near, far = (knn_graph(x + offset, 5, mode="symmetric", weights=weights) for offset in (0.0, 2.0**16))
        assert (near != far).nnz == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_T16_half_precision(dtype):
    x = make_points(60, 4, dtype) * 300
    for weights in WEIGHTS:
        assert (knn_graph(x, 5, weights=weights) != knn_graph(x.float(), 5, weights=weights)).nnz == 0


def test_T18_rows_of_zeros_under_cosine():
    x = torch.cat([torch.zeros(2, 3), make_points(20, 3).abs()])
    graph = knn_graph(x, 3, "cosine", weights="distance")
    assert graph.toarray()[0].tolist() == [0.0, 1.0, 1.0, 1.0] + [0.0] * 18
    assert np.isfinite(knn_graph(x, 3, "cosine", mode="symmetric", weights="umap").data).all()


def test_T20_any_strides():
    wide = make_points(120, 24)
    for x in (wide[::2, ::3], wide[:, :8].flip(0), wide.T.contiguous().T):
        expected = knn_graph(x.contiguous(), 4, weights="heat")
        assert (knn_graph(x, 4, weights="heat") != expected).nnz == 0


def test_T35_every_other_point_is_a_neighbour():
    graph = knn_graph(make_points(12, 3), 11, mode="mutual")
    assert np.array_equal(graph.toarray(), 1 - np.eye(12))


def test_T44_threads_do_not_change_a_bit(set_threads):
    x = make_points(2000, 8)
    graphs = []
    for threads in (1, 2):
        set_threads(threads)
        graphs.append(knn_graph(x, 10, mode="symmetric", weights="umap"))
    assert all(np.array_equal(getattr(graphs[0], part), getattr(graphs[1], part)) for part in ("data", "indices"))


def test_the_larger_of_two_weights_that_differ_by_rounding():
    """An approximate search may measure a pair twice; a symmetric matrix is symmetric all the same."""
    weights = graph_module._combine(np.array([1.0, 0.0]), np.array([1.5, 2.0]), "symmetric", "distance")
    assert weights.tolist() == [1.5, 2.0]


# --- neighbours for SCAN


def test_mined_neighbors_by_hand():
    x = torch.tensor([[1.0, 0.0], [2.0, 0.2], [0.0, 1.0], [0.1, 3.0]])
    mined = mine_neighbors(x, 1, labels=torch.tensor([0, 0, 1, 0]))
    assert (mined.indices.tolist(), mined.purity) == ([[1], [0], [3], [2]], 0.5)
    assert mined.indices.dtype == torch.int64
    assert mine_neighbors(x, 1).purity is None


@pytest.mark.parametrize("chunk", [7, 1 << 16])
def test_purity_is_the_mean_share(chunk, monkeypatch):
    monkeypatch.setattr("fastdc.kernels.neighbors.mining.ROWS_A_CHUNK", chunk)
    labels = torch.arange(120) % 3
    x = torch.nn.functional.one_hot(labels, 3) * 1.5 + make_points(120, 3) * 0.5
    mined = mine_neighbors(x, labels=labels)
    expected = knn(x, 20, metric="cosine").indices
    assert torch.equal(mined.indices, expected)
    assert mined.purity == pytest.approx(float((labels[expected] == labels[:, None]).double().mean()), abs=1e-12)
    assert 0.5 < mined.purity < 1


def test_mined_neighbors_hold_copies_and_never_the_row_itself():
    x = torch.cat([make_points(20, 4)] * 2)
    mined = mine_neighbors(x, 1, labels=torch.arange(40) % 20)
    assert torch.equal(mined.indices[:, 0], (torch.arange(40) + 20) % 40)
    assert mined.purity == 1.0


# --- bad input

X = torch.arange(12.0).view(4, 3)
BAD_GRAPH = [
    (dict(mode="both"), ValueError, "mode must be one of ('directed', 'mutual', 'symmetric'), got 'both'"),
    (dict(weights="rbf"), ValueError, "weights must be None or one of ('distance', 'heat', 'self_tuning', 'umap'), g"),
    (dict(metric="l1"), ValueError, "metric must be one of ('euclidean', 'cosine', 'inner_product'), got 'l1'"),
    (dict(metric="inner_product", weights="heat"), ValueError, "weights='heat' needs distances, and metric 'inner_pr"),
    (dict(sigma=0.0), ValueError, "sigma must be a finite number above 0, got 0.0"),
    (dict(local_neighbor=0), ValueError, "local_neighbor must be at least 1, got 0"),
    (dict(local_neighbor=1.5), TypeError, "local_neighbor must be an int, got 1.5"),
    (dict(n_neighbors=4), ValueError, "n_neighbors must be from 1 to 3, the number of the other rows of x, got 4"),
    (dict(x=X[:1]), ValueError, "n_neighbors must be from 1 to 0, the number of the other rows of x, got 2"),
    (dict(x=X / 0, check_finite=True), ValueError, "Input x contains"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD_GRAPH, ids=lambda value: str(value)[:50])
def test_bad_graph_input_is_named(given, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        knn_graph(**{"x": X, "n_neighbors": 2, **given})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (dict(x=X / 0), ValueError, "Input x contains"),
        (dict(labels=torch.zeros(3).long()), ValueError, "labels must"),
        (dict(labels=torch.zeros(4)), TypeError, "labels must be int64"),
        (dict(n_neighbors=4), ValueError, "n_neighbors must be from 1 to 3, the number of the other rows of x, got 4"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_bad_mining_input_is_named(given, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        mine_neighbors(**{"x": X, "n_neighbors": 2, **given})


def test_the_arguments_people_know():
    assert list(inspect.signature(mine_neighbors).parameters)[:3] == ["x", "n_neighbors", "labels"]
    assert list(inspect.signature(knn_graph).parameters)[:3] == ["x", "n_neighbors", "metric"]
    assert fastdc.knn_graph is knn_graph
    assert fastdc.mine_neighbors is mine_neighbors

"""The pairwise room's functions for clusterings: silhouettes, hardest pairs, distances to centers, dispersion."""

import math

import numpy as np
import pytest
import torch

from fastdc.kernels._accuracy import assert_not_worse_than_torch, relative_error
from fastdc.kernels.pairwise import (
    center_distances,
    cluster_dispersion,
    custom_ops,
    hardest_pairs,
    silhouette_coefficients,
)
from tests.pairwise_cases import DTYPES, make_clusters, plain_silhouette, working

SHAPES = [(5, 1, 2), (70, 3, 4), (200, 16, 7), (300, 17, 3), (257, 40, 20), (130, 70, 2)]  # rows, features, clusters
BACKENDS = ["reference", "numba"]


def name_shape(shape):
    return "N{}-D{}-K{}".format(*shape)


def strided(x):
    wide = torch.zeros(2 * x.shape[0], 2 * x.shape[1], dtype=x.dtype)
    wide[::2, ::2] = x
    return wide[::2, ::2]


# --- silhouette


@pytest.mark.parametrize("backend", BACKENDS)
def test_silhouette_by_hand(backend):
    x = torch.tensor([[0.0], [1.0], [4.0], [6.0]])
    s = silhouette_coefficients(x, torch.tensor([0, 0, 1, 1]), 2, backend=backend)
    expected = [1 - 1 / 5, 1 - 1 / 4, 1 - 2 / 3.5, 1 - 2 / 5.5]
    assert s.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
def test_silhouette_matches(shape, dtype):
    cases = []
    for seed in range(3):
        x, labels = make_clusters(*shape, dtype, seed)
        truth = plain_silhouette(x.double(), labels, shape[2])
        got = silhouette_coefficients(x, labels, shape[2], backend="numba")
        assert got.dtype == working(dtype)
        cases.append((got, plain_silhouette(x.to(working(dtype)), labels, shape[2]), truth))
        assert relative_error(silhouette_coefficients(x, labels, shape[2], backend="reference"), truth) < 2e-6
    assert_not_worse_than_torch(cases, factor=2, dtype=working(dtype))


@pytest.mark.parametrize("d", [8, 40])
def test_T15_silhouette_far_from_the_origin(d):
    """Clusters far from the origin and from each other, tight ones: nothing cancels."""
    x, labels = make_clusters(300, d, 4, offset=1e6, spread=1.0)
    exact = plain_silhouette(x.double(), labels, 4)
    assert relative_error(silhouette_coefficients(x, labels, 4), exact) < 1e-6
    far = x - 1e6 + 1e4 * labels[:, None]
    exact = plain_silhouette(far.double(), labels, 4)
    assert relative_error(silhouette_coefficients(far, labels, 4), exact) < 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
def test_T42_singletons_and_equal_rows(backend):
    x, labels = make_clusters(60, 20, 3)
    labels[10] = 3
    assert silhouette_coefficients(x, labels, 4, backend=backend)[10] == 0
    x[:] = 1.5
    assert (silhouette_coefficients(x, labels, 4, backend=backend) == 0).all()
    x[30:], labels[:] = 2.5, torch.arange(60) // 30
    assert (silhouette_coefficients(x, labels, 2, backend=backend) == 1).all()


def test_silhouette_passes_over_empty_clusters():
    x, labels = make_clusters(90, 20, 3)
    expected = silhouette_coefficients(x, labels, 3)
    for backend in BACKENDS:
        got = silhouette_coefficients(x, 2 * labels + 1, 7, backend=backend)
        assert torch.allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("d", [8, 40])
def test_T44_threads_do_not_change_a_bit(d, set_threads):
    x, labels = make_clusters(700, d, 5)
    centers = x[:5].clone()
    results = []
    for threads in (1, 2, 5):
        set_threads(threads)
        found = [silhouette_coefficients(x, labels, 5), *hardest_pairs(x, labels)]
        results.append([*found, *center_distances(x, centers, labels), *cluster_dispersion(x, labels, 5)])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(other, results[0]))


@pytest.mark.parametrize("d", [8, 40])
def test_T20_strides_and_the_order_of_rows(d):
    x, labels = make_clusters(200, d, 4)
    order = torch.randperm(200)
    s = silhouette_coefficients(x, labels, 4)
    assert torch.equal(silhouette_coefficients(strided(x), labels, 4), s)
    assert torch.allclose(silhouette_coefficients(x[order], labels[order], 4), s[order], atol=1e-6)
    pairs = hardest_pairs(x, labels)
    assert all(torch.equal(a, b) for a, b in zip(hardest_pairs(strided(x), labels), pairs))
    permuted = hardest_pairs(x[order], labels[order])
    assert torch.equal(order[permuted.positive], pairs.positive[order])
    assert torch.equal(order[permuted.negative], pairs.negative[order])
    for a, b in zip(cluster_dispersion(strided(x), labels, 4), cluster_dispersion(x, labels, 4)):
        assert torch.equal(a, b)


def test_results_are_written_whole(monkeypatch):
    original = np.empty

    def poisoned(shape, dtype=float, **options):
        array = original(shape, dtype, **options)
        array.fill(np.nan if array.dtype.kind == "f" else 127)
        return array

    x, labels = make_clusters(131, 20, 3)
    expected = [silhouette_coefficients(x, labels, 3), *hardest_pairs(x, labels), *center_distances(x, x[:3], labels)]
    monkeypatch.setattr(np, "empty", poisoned)
    found = [silhouette_coefficients(x, labels, 3), *hardest_pairs(x, labels), *center_distances(x, x[:3], labels)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


@pytest.mark.parametrize("d", [8, 40])
def test_nan_is_not_hidden(d):
    x, labels = make_clusters(100, d, 3)
    x[50, 2] = math.nan
    assert silhouette_coefficients(x, labels, 3).isnan().all()
    assert center_distances(x, x[:3].clone(), labels).own[50].isnan()
    assert cluster_dispersion(x, labels, 3).distances[labels[50]].isnan()


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_not_hidden_by_rows_that_coincide(backend):
    x, labels = torch.zeros(4, 3), torch.tensor([0, 0, 1, 1])
    x[3] = math.nan
    assert silhouette_coefficients(x, labels, 2, backend=backend).isnan().all()


@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_is_farther_and_nearer_than_any_number(backend, d):
    x, labels = make_clusters(100, d, 3)
    x[50, 2] = math.nan
    pairs = hardest_pairs(x, labels, backend=backend)
    same = labels == labels[50]
    assert torch.equal(pairs.positive == 50, same & (torch.arange(100) != 50))
    assert torch.equal(pairs.negative == 50, ~same)
    assert torch.equal(pairs.positive_dist.isnan(), same)
    assert pairs.negative_dist[50].isnan()


# --- hardest pairs


@pytest.mark.parametrize("backend", BACKENDS)
def test_hardest_pairs_by_hand(backend):
    x = torch.tensor([[0.0], [1.0], [-2.0], [5.0], [3.0]])
    pairs = hardest_pairs(x, torch.tensor([7, 7, 7, -1, 9]), backend=backend)
    assert pairs.positive.tolist() == [2, 2, 1, -1, -1]
    assert pairs.negative.tolist() == [4, 4, 4, 4, 1]
    assert pairs.positive_dist.tolist() == [2, 3, 3, 0, 0]
    assert pairs.negative_dist.tolist() == [3, 2, 5, 2, 2]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
def test_hardest_pairs_match(shape, dtype):
    x, labels = make_clusters(*shape, dtype)
    dists = (x.double()[:, None] - x.double()).square().sum(2).sqrt()
    same = labels == labels[:, None]
    far = dists.masked_fill(~same, -1).fill_diagonal_(-1).amax(1).clamp(min=0)
    near = dists.masked_fill(same, math.inf).amin(1)
    for backend in BACKENDS:
        pairs = hardest_pairs(x, labels, backend=backend)
        assert pairs.positive_dist.dtype == working(dtype)
        assert relative_error(pairs.positive_dist, far) < 1e-6
        assert relative_error(pairs.negative_dist, near) < 1e-6
        some = pairs.positive >= 0
        chosen = dists.gather(1, pairs.positive.clamp(min=0)[:, None])[:, 0]
        assert torch.allclose(chosen[some], far[some], rtol=1e-6)
        assert torch.allclose(dists.gather(1, pairs.negative[:, None])[:, 0], near, rtol=1e-6)


@pytest.mark.parametrize("d", [4, 40])
@pytest.mark.parametrize("backend", BACKENDS)
def test_T19_of_equally_far_rows_the_first(backend, d):
    x = torch.zeros(300, d)
    x[150:] = 1.0
    pairs = hardest_pairs(x, torch.arange(300) // 150, backend=backend)
    assert pairs.positive[:3].tolist() == [1, 0, 0]
    assert (pairs.negative[:150] == 150).all()
    assert (pairs.negative[150:] == 0).all()


def test_one_label_has_no_negatives():
    for backend in BACKENDS:
        pairs = hardest_pairs(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64), backend=backend)
        assert (pairs.negative == -1).all()
        assert (pairs.negative_dist == math.inf).all()


# --- centers


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
def test_center_distances_match(shape, dtype):
    x, labels = make_clusters(*shape, dtype)
    centers = make_clusters(shape[2], shape[1], shape[2], dtype, seed=5)[0]
    dists = (x.double()[:, None] - centers.double()).square().sum(2).sqrt()
    other = dists.scatter(1, labels[:, None], math.inf).amin(1)
    for backend in BACKENDS:
        found = center_distances(x, centers, labels, backend=backend)
        assert found.own.dtype == working(dtype)
        assert relative_error(found.own, dists.gather(1, labels[:, None])[:, 0]) < 1e-6
        assert relative_error(found.other, other) < 1e-6


def test_one_center_has_no_other():
    for backend in BACKENDS:
        found = center_distances(
            torch.ones(3, 2), torch.zeros(1, 2), torch.zeros(3, dtype=torch.int64), backend=backend
        )
        assert (found.other == math.inf).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=name_shape)
def test_cluster_dispersion_matches(shape, dtype):
    x, labels = make_clusters(*shape, dtype)
    labels = labels + 1  # the first cluster is empty
    truth = x.double()
    means = torch.stack([truth[labels == c].mean(0) if c else torch.zeros(shape[1]) for c in range(shape[2] + 1)])
    norms = (truth - means[labels]).norm(dim=1)
    for backend in BACKENDS:
        found = cluster_dispersion(x, labels, shape[2] + 1, backend=backend)
        assert torch.equal(found.counts, torch.bincount(labels))
        assert torch.allclose(found.centers, means.double(), rtol=1e-13, atol=1e-13)
        assert torch.allclose(found.distances, torch.bincount(labels, norms), rtol=1e-12)
        assert torch.allclose(found.sq_distances, torch.bincount(labels, norms.square()), rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
def test_T15_T16_dispersion_loses_nothing(backend):
    x, labels = make_clusters(500, 6, 3, offset=1e6)
    truth = x.double()
    norms = torch.cat([(truth[labels == c] - truth[labels == c].mean(0)).norm(dim=1) for c in range(3)])
    assert float(cluster_dispersion(x, labels, 3, backend=backend).distances.sum()) == pytest.approx(float(norms.sum()))
    half = torch.full((10, 600), 200.0, dtype=torch.float16)  # |x|^2 is beyond float16
    half[5:] = -200.0
    found = center_distances(half, half[[0, 5]], torch.arange(10) // 5, backend=backend)
    assert (found.own == 0).all()
    assert found.other.tolist() == pytest.approx([400 * math.sqrt(600)] * 10)


# --- torch


def test_opcheck():
    x, labels = make_clusters(60, 20, 3)
    for op, arguments in {
        "silhouette_coefficients": (x, labels, 3),
        "hardest_pairs": (x, labels),
        "center_distances": (x, x[:3].clone(), labels),
        "cluster_dispersion": (x, labels, 3),
    }.items():
        torch.library.opcheck(custom_ops.CLUSTERS[op, "numba"], arguments)


def test_compiles_into_one_graph():
    x, labels = make_clusters(60, 20, 3)

    def all_of_them(x, labels):
        x = x * 1.0
        distances = center_distances(x, x[:3], labels)
        dispersion = cluster_dispersion(x, labels, 3)
        return silhouette_coefficients(x, labels, 3), hardest_pairs(x, labels).negative, *distances, *dispersion

    compiled = torch.compile(all_of_them, fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(x, labels), all_of_them(x, labels)):
        assert torch.equal(a, b)


def test_T25_requires_grad_and_inference_mode():
    x, labels = make_clusters(40, 5, 3)
    expected = silhouette_coefficients(x, labels, 3)
    assert torch.equal(silhouette_coefficients(x.clone().requires_grad_(), labels, 3), expected)
    with torch.inference_mode():
        assert torch.equal(silhouette_coefficients(x * 1, labels, 3), expected)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (torch.tensor([0, 1, 2]), ValueError, r"labels must lie in 0 ... 1 for 2 clusters, got 0 ... 2; number them"),
        (torch.tensor([0, -1, 1]), ValueError, r"labels must lie in 0 ... 1 for 2 clusters, got -1 ... 1"),
        (
            torch.tensor([0, 1]),
            ValueError,
            r"labels must have shape \(3,\), one entry for each of the rows, got",
        ),
        (torch.tensor([0.0, 1.0, 1.0]), TypeError, r"labels must be int64, got torch.float32; convert it with"),
        ([0, 1, 1], TypeError, r"labels must be a torch.Tensor, got list"),
    ],
)
def test_bad_labels(labels, error, message):
    x = torch.zeros(3, 2)
    for call in (silhouette_coefficients, cluster_dispersion):
        with pytest.raises(error, match=message):
            call(x, labels, 2)
    with pytest.raises(error, match=message):
        center_distances(x, torch.zeros(2, 2), labels)


def test_bad_points():
    labels = torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"x is empty, shape \(0, 3\)"):
        silhouette_coefficients(torch.zeros(0, 3), labels, 2)
    with pytest.raises(ValueError, match=r"x must be 2-D, of shape \(n_samples, n_features\)"):
        hardest_pairs(torch.zeros(3), labels)
    with pytest.raises(ValueError, match="n_clusters must be 1 or above, got 0"):
        cluster_dispersion(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), 0)

"""Scores without known classes: equal to scikit-learn, exact, defined at every edge."""

import math

import numpy as np
import pytest
import sklearn.metrics as peer
import torch
from sklearn.neighbors import NearestNeighbors

from fastdc import metrics
from tests.pairwise_cases import make_clusters

SHARED = ["silhouette_score", "davies_bouldin_score", "calinski_harabasz_score"]
SHAPES = [(60, 2, 3), (400, 16, 5), (300, 30, 2), (250, 50, 40)]


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-10), (np.float32, 1e-6)])
def test_equal_to_scikit_learn(name, shape, dtype, tolerance):
    x, labels = (t.numpy() for t in make_clusters(*shape, torch.float64))
    x = x.astype(dtype)
    assert getattr(metrics, name)(x, labels) == pytest.approx(getattr(peer, name)(x, labels), rel=tolerance, abs=1e-7)


def test_silhouette_samples_are_those_of_scikit_learn():
    x, labels = make_clusters(300, 20, 4, torch.float64)
    expected = peer.silhouette_samples(x.numpy(), labels.numpy())
    found = metrics.silhouette_samples(x.numpy(), 5 - 3 * labels.numpy())
    assert isinstance(found, np.ndarray)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert torch.equal(metrics.silhouette_samples(x, labels), torch.from_numpy(found))


def test_the_same_sample_as_scikit_learn():
    x, labels = (t.numpy() for t in make_clusters(300, 20, 4, torch.float64))
    options = {"sample_size": 80, "random_state": 3}
    assert metrics.silhouette_score(x, labels, **options) == pytest.approx(
        peer.silhouette_score(x, labels, **options), abs=1e-12
    )


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_T15_large_offset(name, offset):
    x = (make_clusters(300, 24, 3)[0] + offset).numpy()
    labels = make_clusters(300, 24, 3)[1].numpy()
    expected = getattr(peer, name)(x.astype(np.float64) - offset, labels)
    assert getattr(metrics, name)(x, labels) == pytest.approx(expected, rel=1e-6, abs=1e-7)


@pytest.mark.parametrize("name", [*SHARED, "silhouette_samples", "simplified_silhouette"])
@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3]])
def test_T42_number_of_labels(name, labels):
    x = np.arange(8.0).reshape(4, 2)
    message = rf"Number of labels is {len(set(labels))}. Valid values are 2 to 3, one less than the number of samples"
    with pytest.raises(ValueError, match=message):
        getattr(metrics, name)(x, labels)


def test_T42_singletons():
    x = np.array([[0.0], [1.0], [5.0], [9.0]])
    np.testing.assert_allclose(
        metrics.silhouette_samples(x, [0, 0, 1, 2]), peer.silhouette_samples(x, [0, 0, 1, 2]), atol=1e-15
    )


@pytest.mark.parametrize("name", SHARED)
def test_T05_T06_equal_rows(name):
    x = np.ones((6, 3))
    labels = [0, 0, 0, 1, 1, 1]
    assert getattr(metrics, name)(x, labels) == getattr(peer, name)(x, labels)
    x[3:] = 2.0
    assert getattr(metrics, name)(x, labels) == getattr(peer, name)(x, labels)


def test_dunn_index():
    x, labels = make_clusters(200, 20, 3, torch.float64)
    dists, same = torch.cdist(x, x), labels == labels[:, None]
    assert metrics.dunn_index(x, labels) == pytest.approx(float(dists[~same].min() / dists[same].max()), rel=1e-12)
    assert metrics.dunn_index([[0.0], [0.0], [1.0]], [0, 0, 1]) == math.inf
    with pytest.raises(ValueError, match=r"Number of labels is 1. Valid values are 2 to 3, the number of samples"):
        metrics.dunn_index([[0.0], [0.0], [1.0]], [0, 0, 0])


def test_rmse_to_center():
    x, labels = (t.numpy() for t in make_clusters(200, 7, 3))
    means = np.stack([x[labels == c].mean(0, dtype=np.float64) for c in range(3)])
    expected = math.sqrt(((x - means[labels]) ** 2).sum() / 200)
    assert metrics.rmse_to_center(x, labels) == pytest.approx(expected, rel=1e-12)
    assert metrics.rmse_to_center([[3.0]], [4]) == 0.0


def test_simplified_silhouette():
    x, labels = make_clusters(300, 20, 4, torch.float64)
    means = torch.stack([x[labels == c].mean(0) for c in range(4)])
    dists = torch.cdist(x, means)
    own, other = dists.gather(1, labels[:, None])[:, 0], dists.scatter(1, labels[:, None], math.inf).amin(1)
    expected = float(((other - own) / torch.maximum(own, other)).mean())
    assert metrics.simplified_silhouette(x, labels) == pytest.approx(expected, rel=1e-12)
    assert metrics.simplified_silhouette(x.numpy(), labels, means) == pytest.approx(expected, rel=1e-12)


def test_T21_simplified_silhouette_of_a_memory_map(tmp_path):
    x, labels = (t.numpy() for t in make_clusters(300, 6, 4))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for name in ("simplified_silhouette", *SHARED):
        assert getattr(metrics, name)(mapped, labels) == getattr(metrics, name)(x, labels)


@pytest.mark.parametrize("labelled", [True, False])
def test_silhouette_of_chunks(labelled):
    x, labels = make_clusters(300, 20, 4)
    centers = torch.stack([x[labels == c].mean(0) for c in range(4)])
    labels = labels if labelled else torch.cdist(x, centers).argmin(1)
    scores = [metrics.StreamingSilhouette(centers.numpy()) for _ in range(3)]
    for score, part in zip(scores, torch.arange(300).split([100, 199, 1])):
        score.update(x[part].numpy(), labels[part] if labelled else None)
    scores[0].merge(*scores[1:])
    assert scores[0].n_samples == 300
    assert scores[0].compute() == pytest.approx(metrics.simplified_silhouette(x, labels, centers), rel=1e-14)


def test_long_data_are_scored_in_parts(monkeypatch):
    x, labels = make_clusters(300, 20, 4, torch.float64)
    expected = metrics.simplified_silhouette(x, labels)
    monkeypatch.setattr("fastdc.metrics.streaming.ROWS", 70)
    assert metrics.simplified_silhouette(x, labels) == pytest.approx(expected, rel=1e-14)


def test_T42_streaming_silhouette_where_it_is_not_defined():
    with pytest.raises(ValueError, match="centers must have at least two rows, got 1; one cluster has no other"):
        metrics.StreamingSilhouette([[1.0]])
    score = metrics.StreamingSilhouette([[0.0], [1.0]])
    with pytest.raises(ValueError, match=r"needs at least one chunk of samples; call update\(x\) first"):
        score.compute()
    with pytest.raises(ValueError, match="x has 2 rows but labels has 1; give each sample one label"):
        score.update([[0.0], [1.0]], [0])
    with pytest.raises(ValueError, match=r"labels must lie in 0 ... 1 for 2 clusters, got 2 ... 2"):
        score.update([[0.0]], [2])
    score.update([[0.0], [1.0], [0.25]])
    assert score.compute() == pytest.approx((1 + 1 + 2 / 3) / 3)


def test_neighbor_consistency():
    x, labels = (t.numpy() for t in make_clusters(200, 5, 3))
    neighbors = NearestNeighbors(n_neighbors=7).fit(x).kneighbors(return_distance=False)
    expected = (labels[neighbors] == labels[:, None]).mean()
    assert metrics.neighbor_consistency(labels, neighbors) == pytest.approx(expected, abs=1e-15)
    assert metrics.neighbor_consistency(torch.from_numpy(labels), torch.from_numpy(neighbors)) == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    ("neighbors", "message"),
    [
        (np.zeros((2, 1), int), "neighbors has 2 rows but labels has 3; give each sample one row"),
        (np.zeros((3, 0), int), r"neighbors is empty, shape \(3, 0\)"),
        ([[0], [1], [3]], r"neighbors must lie in 0 ... 2, the rows of labels, got 0 ... 3"),
        ([[0], [-1], [2]], r"neighbors must lie in 0 ... 2, the rows of labels, got -1 ... 2"),
    ],
)
def test_bad_neighbors(neighbors, message):
    with pytest.raises(ValueError, match=message):
        metrics.neighbor_consistency([0, 0, 1], neighbors)


@pytest.mark.parametrize("name", [*SHARED, "silhouette_samples", "dunn_index", "rmse_to_center"])
def test_bad_input(name):
    score = getattr(metrics, name)
    with pytest.raises(ValueError, match="x has 3 rows but labels has 2; give each sample one label"):
        score(np.zeros((3, 2)), [0, 1])
    with pytest.raises(ValueError, match=r"labels must hold integers, got the fraction 0.5"):
        score(np.zeros((3, 2)), [0, 0.5, 1])
    x = np.zeros((3, 2))
    x[1, 1] = np.nan
    with pytest.raises(ValueError, match=r"Input X contains NaN. 1 entry, the first in row 1, column 1"):
        score(x, [0, 0, 1])


def test_other_metrics_are_refused():
    with pytest.raises(ValueError, match="metric must be 'euclidean', got 'cosine'; for cosine give rows length one"):
        metrics.silhouette_score(np.zeros((3, 2)), [0, 0, 1], metric="cosine")


@pytest.mark.slow
def test_200k_rows_in_little_memory(run_python):
    """Of 200,000 rows with 32 features all distances would be 160 GB."""
    code = """
import resource, torch
from fastdc.metrics import silhouette_samples
torch.set_num_threads(2)
def run(n):
    return silhouette_samples(torch.randn(n, 32), torch.arange(n) % 20)
run(300)
x, labels = torch.randn(200_000, 32), torch.arange(200_000) % 20
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert silhouette_samples(x, labels).isfinite().all()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    assert int(run_python(code)) < 200 << 20

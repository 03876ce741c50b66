"""Density peaks: the definition in NumPy beside it, ties, shapes of the data, faults."""

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import estimator_checks_generator

from fastdc import DensityPeaks, adjusted_rand_index
from fastdc.cluster import _denser
from fastdc.cluster._denser import nearest_denser
from fastdc.data import as_row_source
from fastdc.kernels.neighbors import knn


def make_blobs(n=600, k=4, d=3, spread=6.0, seed=0, dtype=np.float64):
    random = np.random.default_rng(seed)
    classes = random.integers(k, size=n)
    return ((random.normal(size=(k, d)) * spread)[classes] + random.normal(size=(n, d))).astype(dtype), classes


def by_definition(x, density, n_clusters, metric="euclidean"):
    """labels, delta and centers from all pairs."""
    if metric == "cosine":
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        pairs = ((unit[:, None] - unit) ** 2).sum(2) / 2
    else:
        pairs = np.sqrt(((x[:, None] - x) ** 2).sum(2))
    order = np.argsort(-density, kind="stable")
    delta, parent = np.zeros(len(x)), np.zeros(len(x), int)
    for place in range(1, len(x)):
        denser = order[:place]
        parent[order[place]] = denser[pairs[order[place], denser].argmin()]
        delta[order[place]] = pairs[order[place], denser].min()
    delta[order[0]] = max(pairs[order[0]].max(), delta.max())
    products = (density * delta)[order]
    centers = order[np.argsort(-products, kind="stable")[:n_clusters]]
    labels = np.full(len(x), -1)
    labels[centers] = np.arange(n_clusters)
    for i in order:
        labels[i] = labels[i] if labels[i] >= 0 else labels[parent[i]]
    return labels, delta, centers


@pytest.mark.parametrize(
    ("estimator", "check"),
    [pytest.param(e, c, id=c.func.__name__) for e, c in estimator_checks_generator(DensityPeaks(2))],
)
def test_check_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("density", ["knn", "cutoff"])
@pytest.mark.parametrize("n_neighbors", [1, 5, 40])
def test_same_as_the_definition(density, metric, n_neighbors):
    x, _ = make_blobs(400)
    cutoff = 1.0 if metric == "euclidean" else 0.05
    options = {"density": density, "metric": metric, "cutoff": cutoff, "n_neighbors": n_neighbors}
    model = DensityPeaks(4, **options).fit(x)
    labels, delta, centers = by_definition(x, model.density_, 4, metric)
    np.testing.assert_allclose(model.delta_, delta, atol=1e-12)
    np.testing.assert_array_equal(model.center_indices_, centers)
    np.testing.assert_array_equal(model.labels_, labels)
    if density == "cutoff" and metric == "euclidean":
        within = (((x[:, None] - x) ** 2).sum(2) <= cutoff**2).sum(1) - 1
        np.testing.assert_array_equal(model.density_, within)


@pytest.mark.parametrize("few", [2, 7, 256])
def test_points_without_a_denser_neighbour(few, monkeypatch):
    monkeypatch.setattr(_denser, "FEW", few)
    random = np.random.default_rng(0)
    x, density = random.normal(size=(500, 2)), random.random(500)  # random: a third finds none
    found = nearest_denser(*map(torch.from_numpy, (x, density)), knn(torch.from_numpy(x), 1), "euclidean")
    _, delta, _ = by_definition(x, density, 1)
    np.testing.assert_allclose(found.distances, delta, atol=1e-12)
    parents = found.indices.numpy()
    densest = density.argmax()
    assert parents[densest] == densest
    others = np.arange(500) != densest
    assert (density[parents[others]] > density[others]).all()
    np.testing.assert_allclose(np.linalg.norm(x - x[parents], axis=1)[others], delta[others])


def test_finds_blobs():
    x, classes = make_blobs(2000, 5, 2, spread=12.0, dtype=np.float32)
    for density in ("knn", "cutoff"):
        model = DensityPeaks(5, density=density, random_state=0).fit(x)
        assert model.labels_.dtype == np.int32
        assert adjusted_rand_index(classes, model.labels_) > 0.99
        assert (model.cutoff_ > 0) == (density == "cutoff")
        assert set(classes[model.center_indices_]) == set(range(5))


def test_tensors_row_sources_and_threads(set_threads):
    x, results = make_blobs(3000, dtype=np.float32)[0], []
    for threads in (1, 3):
        set_threads(threads)
        results.append(DensityPeaks(4).fit(x))
    for name in ("labels_", "density_", "delta_", "nearest_denser_"):
        np.testing.assert_array_equal(getattr(results[0], name), getattr(results[1], name))
    tensors = DensityPeaks(4).fit(torch.from_numpy(x))
    assert tensors.labels_.dtype == torch.int32
    np.testing.assert_array_equal(tensors.labels_, results[0].labels_)
    np.testing.assert_array_equal(DensityPeaks(4).fit(as_row_source(x)).labels_, results[0].labels_)


@pytest.mark.parametrize("density", ["knn", "cutoff"])
def test_T06_T08_T13_few_points_and_equal_points(density):
    assert DensityPeaks(1, density=density).fit(np.zeros((1, 2))).labels_.tolist() == [0]
    assert sorted(DensityPeaks(2, density=density).fit(np.zeros((2, 2))).labels_) == [0, 1]
    same = DensityPeaks(3, density=density).fit(np.ones((60, 2)))
    assert set(same.labels_) == {0, 1, 2}
    assert np.isfinite(same.density_).all()
    assert not same.delta_.any()
    two = np.repeat([[0.0], [1.0]], 40, axis=0)
    labels = DensityPeaks(2, density=density, cutoff=0.5).fit(two).labels_
    assert adjusted_rand_index(np.repeat([0, 1], 40), labels) == 1.0
    each = DensityPeaks(12, density=density).fit(make_blobs(12)[0]).labels_
    assert len(np.unique(each)) == 12


def test_T03_rows_that_are_not_finite():
    x, _ = make_blobs(300)
    whole = DensityPeaks(4).fit(np.delete(x, 7, axis=0))
    x[7, 1] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        DensityPeaks(4).fit(x)
    model = DensityPeaks(4, check_finite=False).fit(x)
    assert (model.labels_[7], model.nearest_denser_[7]) == (-1, -1)
    np.testing.assert_array_equal(np.delete(model.labels_, 7), whole.labels_)
    np.testing.assert_array_equal(x[model.center_indices_], np.delete(x, 7, axis=0)[whole.center_indices_])
    parents = np.delete(model.nearest_denser_, 7)
    np.testing.assert_array_equal(x[parents], np.delete(x, 7, axis=0)[whole.nearest_denser_])


def test_save_and_load(tmp_path):
    model = DensityPeaks(4).fit(make_blobs()[0])
    model.save(tmp_path / "peaks")
    again = DensityPeaks.load(tmp_path / "peaks")
    for name in ("labels_", "density_", "delta_", "center_indices_"):
        np.testing.assert_array_equal(getattr(again, name), getattr(model, name))


BAD = [
    ({"n_clusters": 0}, ValueError, "n_clusters must be at least 1, got 0"),
    ({"n_clusters": 700}, ValueError, "n_clusters=700 must be at most n_samples=600"),
    ({"n_neighbors": 2.0}, TypeError, "n_neighbors must be an integer, got 2.0"),
    ({"density": "gauss"}, ValueError, "density must be 'knn' or 'cutoff', got 'gauss'"),
    ({"cutoff": 0.0}, ValueError, "cutoff must be None or a finite number above 0, got 0.0"),
    ({"metric": "inner_product", "density": "cutoff"}, ValueError, "metric must be one of"),
    ({"metric": "inner_product"}, ValueError, "metric must be one of"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[str(options) for options, *_ in BAD])
def test_bad_parameters(options, error, message):
    with pytest.raises(error, match=message):
        DensityPeaks(**{"n_clusters": 4, **options}).fit(make_blobs()[0])

"""BisectingKMeans: trees, splits, and the quality of scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.cluster import BisectingKMeans as SklearnBisectingKMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import estimator_checks_generator

from fastdc import BisectingKMeans
from fastdc.data import as_row_source

REPEATED_ROWS = {"check_sample_weight_equivalence_on_dense_data"}  # are drawn in another order than weighted ones


def make_blobs(n=1500, k=12, d=6, dtype=np.float32):
    random = np.random.default_rng(0)
    centers = 6 * random.normal(size=(k, d))
    return (centers[random.integers(k, size=n)] + random.normal(size=(n, d))).astype(dtype)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("estimator", "check"),
    [
        pytest.param(
            e,
            c,
            id=c.func.__name__,
            marks=[pytest.mark.xfail(strict=True)] if c.func.__name__ in REPEATED_ROWS else [],
        )
        for e, c in estimator_checks_generator(BisectingKMeans(3))
    ],
)
def test_check_estimator(estimator, check):
    check(estimator)


def test_by_hand():
    x = np.array([[0.0], [1.0], [10.0], [11.0], [40.0], [41.0]])
    model = BisectingKMeans(3, random_state=0).fit(x)
    groups = [set(np.flatnonzero(model.labels_ == label).tolist()) for label in range(3)]
    assert sorted(groups, key=min) == [{0, 1}, {2, 3}, {4, 5}]
    assert model.inertia_ == pytest.approx(1.5)
    assert model.node_centers_[0, 0] == pytest.approx(x.mean())
    assert model.children_.shape == (5, 2)
    assert abs(model.labels_[0] - model.labels_[2]) == 1  # a branch has numbers that follow each other


@pytest.mark.parametrize("strategy", ["biggest_inertia", "largest_cluster"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_fits_together(strategy, dtype):
    x = make_blobs(dtype=dtype)
    model = BisectingKMeans(20, bisecting_strategy=strategy, random_state=0).fit(x)
    assert np.unique(model.labels_).tolist() == list(range(20))
    assert np.array_equal(model.predict(x), model.labels_)
    means = np.stack([x[model.labels_ == label].mean(0) for label in range(20)])
    np.testing.assert_allclose(model.cluster_centers_, means, atol=0.05)  # a run may end by tol
    own = ((x.astype(np.float64) - model.cluster_centers_[model.labels_]) ** 2).sum()
    assert model.inertia_ == pytest.approx(own, rel=1e-5)
    assert model.cluster_centers_.dtype == dtype
    leaves = model.children_[model.children_[:, 0] < 0]
    assert sorted(leaves[:, 1].tolist()) == list(range(20))
    parents = model.children_[model.children_[:, 0] >= 0]
    assert sorted(parents.ravel().tolist()) == list(range(1, 39))


@pytest.mark.parametrize("strategy", ["biggest_inertia", "largest_cluster"])
def test_quality_is_that_of_scikit_learn(strategy):
    x = make_blobs(3000, 30, 8)
    ours, peers = [], []
    for seed in range(5):
        options = {"n_clusters": 25, "init": "k-means++", "bisecting_strategy": strategy, "random_state": seed}
        ours.append(BisectingKMeans(**options).fit(x).inertia_)
        peers.append(SklearnBisectingKMeans(**options).fit(x).inertia_)
    assert np.median(ours) <= 1.05 * np.median(peers)


def test_largest_cluster_is_split():
    x = np.concatenate([np.zeros((50, 1)) + np.linspace(0, 0.1, 50)[:, None], [[100.0], [130.0]]])
    assert np.bincount(BisectingKMeans(3, random_state=0).fit(x).labels_).max() == 50
    by_size = BisectingKMeans(3, bisecting_strategy="largest_cluster", random_state=0).fit(x)
    assert sorted(np.bincount(by_size.labels_).tolist())[0] == 2


def test_weights_count():
    x = np.array([[0.0], [1.0], [10.0], [12.0]])
    model = BisectingKMeans(2, random_state=0).fit(x, sample_weight=[1, 3, 1, 1])
    assert sorted(model.cluster_centers_[:, 0].tolist()) == [0.75, 11.0]
    assert model.inertia_ == pytest.approx(0.75 + 2)
    none = BisectingKMeans(2, random_state=0).fit(x, sample_weight=[1, 1, 0, 0])
    assert sorted(none.cluster_centers_[:, 0].tolist()) == [0.0, 1.0]


def test_same_bits_for_any_number_of_threads(set_threads):
    x = make_blobs(5000)
    found = []
    for threads in (1, 3):
        set_threads(threads)
        found.append(BisectingKMeans(9, random_state=1).fit(x))
    assert np.array_equal(found[0].labels_, found[1].labels_)
    assert np.array_equal(found[0].node_centers_, found[1].node_centers_)


def test_repeated_rows_warn():
    x = np.repeat([[0.0, 1.0], [2.0, 3.0], [9.0, 9.0]], 10, axis=0)
    with pytest.warns(ConvergenceWarning, match=r"clusters \(3\) found smaller than n_clusters \(7\)"):
        model = BisectingKMeans(7, random_state=0).fit(x)
    assert model.cluster_centers_.shape == (3, 2)
    assert model.inertia_ == 0


def test_tensors_sources_and_rows_that_are_not_finite(tmp_path):
    x = make_blobs(300)
    expected = BisectingKMeans(5, random_state=0).fit(x)
    of_tensor = BisectingKMeans(5, random_state=0).fit(torch.from_numpy(x))
    assert isinstance(of_tensor.children_, torch.Tensor)
    assert np.array_equal(of_tensor.labels_.numpy(), expected.labels_)
    of_source = BisectingKMeans(5, random_state=0).fit(as_row_source(x))
    assert np.array_equal(of_source.labels_, expected.labels_)
    assert np.array_equal(of_source.predict(as_row_source(x)), expected.labels_)
    expected.save(tmp_path / "tree.safetensors")
    assert np.array_equal(BisectingKMeans.load(tmp_path / "tree.safetensors").predict(x), expected.labels_)
    holed = np.concatenate([x, np.full((1, 6), np.nan, np.float32)])
    model = BisectingKMeans(5, check_finite=False, random_state=0).fit(holed)
    assert np.array_equal(model.labels_, [*expected.labels_, -1])
    assert model.predict(holed)[-1] == -1
    with pytest.raises(ValueError, match="NaN"):
        BisectingKMeans(5).fit(holed)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"n_clusters": 31}, "n_clusters=31 must be at most n_samples=30"),
        ({"init": np.zeros((2, 6))}, "init must be 'k-means"),
        ({"init": "best"}, "init must be 'k-means"),
        ({"bisecting_strategy": "smallest"}, "bisecting_strategy must be one of"),
        ({"tol": -1.0}, "tol must be 0 or above"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
    ],
)
def test_refuses(options, fragment):
    with pytest.raises(ValueError, match=fragment):
        BisectingKMeans(**options).fit(make_blobs(30))

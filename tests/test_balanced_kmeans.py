"""Balanced k-means: sizes within the capacity, cost beside plain k-means and the best assignment, faults."""

import warnings

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import estimator_checks_generator

from fastdc import BalancedKMeans, KMeans
from fastdc.data import as_row_source


def make_blobs(sizes=(200, 60, 40), d=3, spread=5.0, seed=0, dtype=np.float64):
    random = np.random.default_rng(seed)
    classes = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    return ((random.normal(size=(len(sizes), d)) * spread)[classes] + random.normal(size=(len(classes), d))).astype(
        dtype
    )


@pytest.mark.parametrize(
    ("estimator", "check"),
    [pytest.param(e, c, id=c.func.__name__) for e, c in estimator_checks_generator(BalancedKMeans(2))],
)
def test_check_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("capacity", [None, 100, 130, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sizes_and_what_fits_together(capacity, dtype):
    x = make_blobs(dtype=dtype)
    model = BalancedKMeans(3, capacity=capacity, random_state=0).fit(x)
    sizes = np.bincount(model.labels_, minlength=3)
    assert sizes.max() <= (capacity or 100)
    assert model.labels_.dtype == np.int32
    assert model.cluster_centers_.dtype == dtype
    means = np.stack([x[model.labels_ == j].mean(0) for j in range(3)])
    np.testing.assert_allclose(model.cluster_centers_, means, atol=1e-5)
    own = ((x - means[model.labels_]) ** 2).sum()
    assert model.inertia_ == pytest.approx(own, rel=1e-5)
    inertias = [record["inertia"] for record in model.history_]
    assert inertias == sorted(inertias, reverse=True)
    assert model.n_iter_ == len(inertias)
    plain = KMeans(3, random_state=0).fit(x)
    assert model.inertia_ >= plain.inertia_ * 0.999
    if capacity == 300:  # no bound at all
        assert model.inertia_ == pytest.approx(plain.inertia_, rel=1e-2)


def test_labels_cost_no_more_than_the_best_ones():
    x = make_blobs((70, 30, 20))
    model = BalancedKMeans(3, gap=1e-4, tol=0, random_state=0).fit(x)
    costs = ((x[:, None] - model.cluster_centers_) ** 2).sum(2)
    rows, places = linear_sum_assignment(np.repeat(costs, 40, axis=1))
    best = np.repeat(costs, 40, axis=1)[rows, places].sum()
    assert model.inertia_ <= best * 1.001


def test_threads_tensors_row_sources_and_saving(set_threads, tmp_path):
    x, results = make_blobs((900, 500, 100), dtype=np.float32), []
    for threads in (1, 3):
        set_threads(threads)
        results.append(BalancedKMeans(3, random_state=0).fit(x))
    np.testing.assert_array_equal(results[0].cluster_centers_, results[1].cluster_centers_)
    tensors = BalancedKMeans(3, random_state=0).fit(torch.from_numpy(x))
    assert isinstance(tensors.labels_, torch.Tensor)
    source = BalancedKMeans(3, random_state=0).fit(as_row_source(x))
    for other in (tensors, source):
        np.testing.assert_array_equal(other.labels_, results[0].labels_)
    results[0].save(tmp_path / "balanced")
    again = BalancedKMeans.load(tmp_path / "balanced")
    np.testing.assert_array_equal(again.predict(x), results[0].predict(x))
    np.testing.assert_array_equal(again.labels_, results[0].labels_)


def test_T06_T08_T13_few_points_and_equal_points():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        assert BalancedKMeans(1).fit(np.ones((1, 2))).labels_.tolist() == [0]
        assert sorted(BalancedKMeans(4).fit(np.eye(4)).labels_) == [0, 1, 2, 3]
        same = BalancedKMeans(4, random_state=0).fit(np.ones((40, 3)))
    assert np.bincount(same.labels_).tolist() == [10] * 4
    assert same.inertia_ == 0
    assert np.isfinite(same.cluster_centers_).all()


def test_T03_rows_that_are_not_finite():
    x = make_blobs()
    x[7, 1] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        BalancedKMeans(3).fit(x)
    model = BalancedKMeans(3, check_finite=False, random_state=0).fit(x)
    assert model.labels_[7] == -1
    assert (np.bincount(np.delete(model.labels_, 7)) <= 100).all()


BAD = [
    ({"n_clusters": 0}, ValueError, "n_clusters must be at least 1, got 0"),
    ({"n_clusters": 301}, ValueError, "n_clusters=301 must be at most n_samples=300"),
    ({"capacity": 99}, ValueError, "capacity=99 leaves room for 297 rows of 300; it must be at least 100, or None"),
    ({"capacity": 100.0}, TypeError, "capacity must be an integer, got 100.0"),
    ({"gap": 0.0}, ValueError, "gap must be between 0 and 1, got 0.0"),
    ({"tol": -1.0}, ValueError, "tol must be 0 or above, got -1.0"),
    ({"max_iter": 0}, ValueError, "max_iter must be at least 1, got 0"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_parameters(options, error, message):
    with pytest.raises(error, match=message):
        BalancedKMeans(**{"n_clusters": 3, **options}).fit(make_blobs())


def test_warns_where_it_did_not_converge():
    with pytest.warns(ConvergenceWarning, match="still fell after max_iter=1 iterations"):
        BalancedKMeans(3, max_iter=1, random_state=0).fit(make_blobs())

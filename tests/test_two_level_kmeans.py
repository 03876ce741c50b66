"""TwoLevelKMeans: shares, groups, passes over sources, and what is lost against plain k-means."""

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import estimator_checks_generator

from fastdc import KMeans, TwoLevelKMeans, nearest_center
from fastdc.cluster import two_level
from fastdc.cluster.two_level import allot
from fastdc.data import RowSource, as_row_source


def make_points(n=4000, k=50, d=6, dtype=np.float32):
    random = np.random.default_rng(0)
    centers = 4 * random.normal(size=(k, d))
    return (centers[random.integers(k, size=n)] + random.normal(size=(n, d))).astype(dtype)


class Counted(RowSource):
    """Rows that must be read; how often all were."""

    def __init__(self, x):
        self.x, self.shape, self.dtype, self.rows_read = x, x.shape, x.dtype, 0

    def read(self, start, stop, out):
        self.rows_read += stop - start
        out[:] = self.x[start:stop]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("estimator", "check"),
    [pytest.param(e, c, id=c.func.__name__) for e, c in estimator_checks_generator(TwoLevelKMeans(4))],
)
def test_check_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_in_proportion(seed):
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 50, size=random.integers(1, 30)) ** random.integers(1, 3)
    total = int(random.integers(len(sizes), sizes.sum() + 1))
    shares = allot(sizes, total)
    assert shares.sum() == total
    assert (shares >= 1).all()
    assert (shares <= sizes).all()
    exact = sizes * total / sizes.sum()
    free = (shares > 1) & (shares < sizes)
    assert (shares[free] <= np.maximum(np.ceil(exact[free]), 1)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_what_fits_together(dtype):
    x = make_points(dtype=dtype)
    model = TwoLevelKMeans(64, random_state=0).fit(x)
    assert model.coarse_centers_.shape == (8, 6)
    assert model.cluster_centers_.dtype == dtype
    assert model.offsets_[[0, -1]].tolist() == [0, 64]
    coarse = nearest_center(torch.from_numpy(x), torch.from_numpy(model.coarse_centers_)).labels.numpy()
    assert np.array_equal(np.searchsorted(model.offsets_, model.labels_, side="right") - 1, coarse)
    for i in range(8):
        first, last = model.offsets_[i : i + 2]
        own = torch.from_numpy(x[coarse == i])
        found = nearest_center(own, torch.from_numpy(model.cluster_centers_[first:last])).labels
        assert np.array_equal(model.labels_[coarse == i], found.numpy() + first)
    sq = ((x.astype(np.float64) - model.cluster_centers_[model.labels_]) ** 2).sum()
    assert model.inertia_ == pytest.approx(sq, rel=1e-5)
    assert np.array_equal(model.predict(x), model.labels_)
    assert model.n_refined_ == 0


def test_refined_is_lloyd_from_there():
    x = make_points()
    start = TwoLevelKMeans(64, random_state=0).fit(x)
    model = TwoLevelKMeans(64, n_refine=3, random_state=0).fit(x)
    expected = KMeans(64, init=start.cluster_centers_, max_iter=3, tol=0).fit(as_row_source(x))
    assert model.n_refined_ == 3
    assert np.array_equal(model.labels_, expected.labels_)
    assert np.array_equal(model.cluster_centers_, expected.cluster_centers_)
    assert np.array_equal(model.predict(x), model.labels_)
    assert model.inertia_ < start.inertia_


def test_quality_beside_plain_kmeans():
    x = make_points(8000, 300, 8)
    plain, half = (KMeans(k, random_state=0, max_iter=20).fit(x).inertia_ for k in (256, 128))
    coarse = TwoLevelKMeans(256, random_state=0).fit(x).inertia_
    assert coarse < half
    refined = TwoLevelKMeans(256, n_refine=5, random_state=0).fit(x).inertia_
    assert refined - plain < 0.25 * (coarse - plain)


@pytest.mark.parametrize("memory", [1 << 30, 20_000, 1])
def test_same_bits_for_any_memory_and_source(monkeypatch, memory):
    x = make_points()
    expected = TwoLevelKMeans(40, random_state=3).fit(x)
    source = Counted(x)
    model = TwoLevelKMeans(40, memory=memory, random_state=3).fit(source)
    assert np.array_equal(model.labels_, expected.labels_)
    assert np.array_equal(model.cluster_centers_, expected.cluster_centers_)
    passes = source.rows_read / len(x)
    row_bytes = 6 * 4 + 8
    assert passes <= 2 + {1 << 30: 1, 20_000: 4 * len(x) * row_bytes / 20_000 + 1, 1: 6}[memory]
    assert np.array_equal(model.predict(source), expected.labels_)


def test_rows_are_gathered_from_many_blocks(monkeypatch):
    x = make_points(1000)
    expected = TwoLevelKMeans(20, random_state=0).fit(x)
    monkeypatch.setattr("fastdc.cluster.streaming.MOST_ROWS", 64)
    model = TwoLevelKMeans(20, random_state=0).fit(x)
    assert np.array_equal(model.labels_, expected.labels_)


def test_same_bits_for_any_number_of_threads(set_threads):
    x = make_points()
    found = []
    for threads in (1, 3):
        set_threads(threads)
        found.append(TwoLevelKMeans(40, n_refine=1, random_state=1).fit(x).labels_)
    assert np.array_equal(*found)


def test_coarse_centers_are_learnt_from_some_rows(monkeypatch):
    monkeypatch.setattr(two_level, "LEAST_COARSE_ROWS", 1)
    monkeypatch.setattr(two_level, "COARSE_ROWS", 20)
    x = make_points()
    model = TwoLevelKMeans(49, random_state=0).fit(x)
    assert np.unique(model.labels_).tolist() == list(range(49))
    assert np.array_equal(model.predict(x), model.labels_)


def test_as_many_clusters_as_rows_and_repeated_rows():
    x = make_points(60)
    assert TwoLevelKMeans(60, random_state=0).fit(x).inertia_ == pytest.approx(0, abs=1e-6)
    repeated = np.repeat(make_points(5), 20, axis=0)
    with pytest.warns(ConvergenceWarning, match="found smaller than n_clusters"):
        assert TwoLevelKMeans(16, random_state=0).fit(repeated).inertia_ == pytest.approx(0, abs=1e-6)


def test_tensors_saving_and_rows_that_are_not_finite(tmp_path):
    x = make_points(500)
    expected = TwoLevelKMeans(16, random_state=0).fit(x)
    of_tensor = TwoLevelKMeans(16, random_state=0).fit(torch.from_numpy(x))
    assert isinstance(of_tensor.offsets_, torch.Tensor)
    assert np.array_equal(of_tensor.labels_.numpy(), expected.labels_)
    assert np.array_equal(of_tensor.predict(torch.from_numpy(x)).numpy(), expected.labels_)
    expected.save(tmp_path / "two.safetensors")
    assert np.array_equal(TwoLevelKMeans.load(tmp_path / "two.safetensors").predict(x), expected.labels_)
    holed = np.concatenate([x, np.full((1, 6), np.nan, np.float32)])
    model = TwoLevelKMeans(16, check_finite=False, random_state=0).fit(holed)
    assert model.labels_[-1] == -1
    assert (model.labels_[:-1] >= 0).all()
    assert model.predict(holed)[-1] == -1
    with pytest.raises(ValueError, match="NaN"):
        TwoLevelKMeans(16).fit(as_row_source(holed))


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"n_clusters": 31}, "n_clusters=31 must be at most n_samples=30"),
        ({"n_coarse": 9}, "n_coarse=9 must be at most n_clusters=8"),
        ({"n_refine": -1}, "n_refine must be at least 0"),
        ({"init": np.zeros((2, 6))}, "init must be 'k-means"),
        ({"memory": 0}, "memory must be at least 1"),
        ({"tol": -1.0}, "tol must be 0 or above"),
    ],
)
def test_refuses(options, fragment):
    with pytest.raises(ValueError, match=fragment):
        TwoLevelKMeans(**options).fit(make_points(30))

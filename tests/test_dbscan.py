"""DBSCAN and the operators beneath it: scikit-learn's labels, every backend, faults."""

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN as SklearnDBSCAN
from sklearn.datasets import make_moons
from sklearn.utils.estimator_checks import estimator_checks_generator

from fastdc import DBSCAN, density_clusters, radius_counts
from fastdc.data import as_row_source
from fastdc.kernels import BackendError
from fastdc.kernels.density.pairs import PairSearch

BACKENDS = ["reference", "numba"]


def make_blobs(n=2000, d=3, k=8, noise=0.1, seed=0, dtype=np.float32):
    random = np.random.default_rng(seed)
    centers = random.uniform(-10, 10, (k, d))
    x = centers[random.integers(k, size=n)] + random.normal(size=(n, d))
    x[: int(noise * n)] = random.uniform(-12, 12, (int(noise * n), d))
    return random.permutation(x).astype(dtype)


def sklearn_dbscan(x, eps, min_samples, weight=None):
    """By trees, which measure in float64; its "brute" rounds as products do."""
    return SklearnDBSCAN(eps=eps, min_samples=min_samples, algorithm="kd_tree").fit(x, sample_weight=weight)


def assert_same(ours, theirs):
    np.testing.assert_array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_array_equal(ours.core_sample_indices_, theirs.core_sample_indices_)
    np.testing.assert_array_equal(ours.components_, theirs.components_)


# --- the operators


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    x = torch.tensor([[0.0], [1.0], [2.0], [4.0], [5.0], [6.0], [3.0], [9.0]])
    assert radius_counts(x, 1.0, backend=backend).tolist() == [2, 3, 3, 3, 3, 2, 3, 1]
    found = density_clusters(x, 1.0, 3, backend=backend)
    assert found.is_core.tolist() == [False, True, True, True, True, False, True, False]
    assert found.labels.tolist() == [0, 0, 0, 0, 0, 0, 0, -1]
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 3.0])
    assert radius_counts(x, 1.0, weight, backend=backend).tolist() == [2, 3, 1, 1, 3, 2, 1, 3]
    apart = density_clusters(x, 1.0, 3, weight, backend=backend)
    assert apart.labels.tolist() == [0, 0, 0, 1, 1, 1, -1, 2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_border_joins_the_cluster_of_the_lowest_first_core(backend):
    left, right = [0.0, 0.1, 0.2], [2.0, 2.1, 2.2]
    for rows in (left + right, right + left):
        x = torch.tensor([1.1, *rows])[:, None]
        found = density_clusters(x, 0.95, 4, backend=backend)
        near_left = found.labels[1 + rows.index(0.2)]
        assert not found.is_core[0]
        assert found.labels[0] == min(found.labels[1:]) == 0
        assert (rows == left + right) == (near_left == 0)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_backends_agree(metric, dtype):
    x = torch.from_numpy(make_blobs(700, 5)).to(dtype)
    x[3:7] = 0
    for radius in (0.05, 0.4, 1.0, 1.9):
        expected = density_clusters(x, radius, 4, metric=metric, backend="reference")
        found = density_clusters(x, radius, 4, metric=metric, backend="numba")
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.is_core, expected.is_core)
        counts = radius_counts(x, radius, metric=metric, backend="numba")
        assert torch.equal(counts, radius_counts(x, radius, metric=metric, backend="reference"))


def test_blocks_of_pairs_find_the_same(monkeypatch):
    """What GPUs do, with the pairs of ``radius_neighbors`` on the CPU."""
    monkeypatch.setattr("fastdc.kernels.density.pairs.MOST_PAIRS", 50_000)
    x, weight = torch.from_numpy(make_blobs(900)), torch.arange(900) % 3
    for w in (None, weight):
        search = PairSearch(x, 0.9, "euclidean")
        expected = density_clusters(x, 0.9, 5, w, backend="numba")
        assert torch.equal(search.counts(w), radius_counts(x, 0.9, w, backend="numba"))
        assert torch.equal(search.clusters(expected.is_core), expected.labels)


@pytest.mark.parametrize("scale", [1e-25, 1.0, 1e25])
@pytest.mark.parametrize("backend", BACKENDS)
def test_T15_offsets_and_scales(scale, backend):
    x = torch.from_numpy(make_blobs(500, 2))
    expected = density_clusters(x * 8.0, 4.0, 5, backend=backend)
    found = density_clusters(x * 8.0 * scale, 4.0 * scale, 5, backend=backend)
    assert (found.labels != expected.labels).sum() <= (0 if scale == 1.0 else 2)  # scaled numbers are rounded
    whole = (x * 64).round()
    near, far = (density_clusters(whole + offset, 30.0, 5, backend=backend) for offset in (0.0, 1e6))
    assert torch.equal(near.labels, far.labels)


@pytest.mark.parametrize("backend", BACKENDS)
def test_T18_rows_of_zeros_under_cosine(backend):
    x = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    assert radius_counts(x, 0.9, metric="cosine", backend=backend).tolist() == [1] * 5
    assert radius_counts(x, 1.0, metric="cosine", backend=backend).tolist() == [4, 5, 5, 4, 5]
    assert radius_counts(x, 2.0, metric="cosine", backend=backend).tolist() == [5] * 5


def test_T03_rows_that_are_not_finite():
    x = torch.from_numpy(make_blobs(300, 2))
    expected = density_clusters(torch.cat([x[:5], x[6:]]), 1.0, 5)
    x[5] = torch.tensor([float("nan"), 0.0])
    for backend in BACKENDS:
        found = density_clusters(x, 1.0, 5, backend=backend)
        assert found.labels[5] == -1
        assert torch.equal(torch.cat([found.labels[:5], found.labels[6:]]), expected.labels)
        assert radius_counts(x, 1.0, backend=backend)[5] == 0
    nothing = density_clusters(torch.full((3, 2), float("nan")), 1.0, 1)
    assert nothing.labels.tolist() == [-1] * 3


def test_T20_strides(n_threads):
    x = torch.from_numpy(make_blobs(3000, 4))
    wide = torch.empty(6000, 8)
    wide[::2, ::2] = x
    expected = density_clusters(x, 1.0, 5)
    assert torch.equal(density_clusters(wide[::2, ::2], 1.0, 5).labels, expected.labels)
    assert torch.equal(density_clusters(x.T.contiguous().T, 1.0, 5).labels, expected.labels)
    assert torch.equal(density_clusters(x.clone().requires_grad_(), 1.0, 5).labels, expected.labels)


@pytest.mark.parametrize("d", [1, 3, 20, 600])
def test_T14_features(d):
    x = torch.from_numpy(make_blobs(400, d, k=3))
    radius = float(torch.pdist(x).quantile(0.1))
    expected = density_clusters(x, radius, 5, backend="reference")
    assert torch.equal(density_clusters(x, radius, 5, backend="numba").labels, expected.labels)


BAD = [
    ({"x": [[0.0]]}, TypeError, "x must be a torch.Tensor, got list"),
    ({"x": torch.zeros(3)}, ValueError, "x must be 2-D"),
    ({"radius": 0.0}, ValueError, "radius must be a finite number above 0, got 0.0"),
    ({"metric": "inner_product"}, ValueError, r"metric must be one of \('euclidean', 'cosine'\), got 'inner_product'"),
    ({"sample_weight": torch.ones(3)}, ValueError, r"sample_weight must have shape \(4,\)"),
    ({"backend": "triton"}, BackendError, "triton kernels need GPU tensors, x is on cpu"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_input_of_the_operators(options, error, message):
    given = {"x": torch.zeros(4, 2), "radius": 1.0, **options}
    with pytest.raises(error, match=message):
        radius_counts(**given)
    with pytest.raises(error, match=message):
        density_clusters(**given, min_samples=2)


# --- the estimator


@pytest.mark.parametrize(
    ("estimator", "check"), [pytest.param(e, c, id=c.func.__name__) for e, c in estimator_checks_generator(DBSCAN())]
)
def test_check_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d", "eps"), [(6000, 2, 0.4), (6000, 3, 0.9), (3000, 8, 2.5)])
def test_same_as_scikit_learn(n, d, eps, dtype, weighted):
    x = make_blobs(n, d, dtype=dtype)
    weight = np.random.default_rng(1).uniform(-0.2, 2, n) if weighted else None
    theirs = sklearn_dbscan(x, eps, 6, weight)
    assert len(np.unique(theirs.labels_)) > 3
    assert_same(DBSCAN(eps, 6).fit(x, sample_weight=weight), theirs)


@pytest.mark.parametrize("decimals", [0, 1])
def test_T19_pairs_at_the_boundary(decimals):
    """Grids on which many pairs are at the distance eps, or so near it that float64 decides."""
    for seed in range(20):
        random = np.random.default_rng(seed)
        d = int(random.integers(1, 5))
        x = np.round(random.normal(size=(300, d)), decimals).astype(random.choice([np.float32, np.float64]))
        eps, min_samples = float(random.choice([0.1, 0.3, 0.5, 1.0, 2.0])), int(random.integers(1, 8))
        weight = random.integers(0, 4, size=300).astype(float) if seed % 2 else None
        assert_same(DBSCAN(eps, min_samples).fit(x, sample_weight=weight), sklearn_dbscan(x, eps, min_samples, weight))


def test_moons_and_cosine():
    x, classes = make_moons(3000, noise=0.05, random_state=0)
    labels = DBSCAN(0.12, min_samples=10).fit_predict(x)
    assert (np.unique(labels[classes == 0]), np.unique(labels[classes == 1])) in (([0], [1]), ([1], [0]))
    directions = np.repeat([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]], 50, axis=0)
    random = np.random.default_rng(0)
    directions = directions + 0.02 * random.normal(size=(150, 2))
    lengths = random.uniform(0.5, 5, (150, 1))
    labels = DBSCAN(0.05, min_samples=5, metric="cosine").fit_predict(directions * lengths)
    np.testing.assert_array_equal(labels, np.repeat([0, 1, 2], 50))


def test_T06_T13_few_points_and_equal_points():
    assert DBSCAN(1.0, 1).fit(np.zeros((1, 3))).labels_.tolist() == [0]
    assert DBSCAN(1.0, 2).fit(np.zeros((1, 3))).labels_.tolist() == [-1]
    same = np.full((500, 3), 1e6, np.float32)
    assert set(DBSCAN(1e-3, 500).fit(same).labels_) == {0}
    assert set(DBSCAN(1e-3, 501).fit(same).labels_) == {-1}
    two = np.repeat([[0.0], [1.0]], 300, axis=0)
    np.testing.assert_array_equal(DBSCAN(0.5, 10).fit(two).labels_, np.repeat([0, 1], 300))
    one = DBSCAN(1.0, 10).fit(two)
    assert set(one.labels_) == {0}
    none = DBSCAN(0.5, 301).fit(two)
    assert set(none.labels_) == {-1}
    assert none.components_.shape == (0, 1)


def test_tensors_row_sources_and_threads(set_threads):
    x, results = make_blobs(5000), []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(DBSCAN(0.8, 6).fit(x).labels_)
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
    model = DBSCAN(0.8, 6).fit(torch.from_numpy(x))
    assert isinstance(model.labels_, torch.Tensor)
    assert model.labels_.dtype == torch.int32
    np.testing.assert_array_equal(model.labels_, results[0])
    np.testing.assert_array_equal(DBSCAN(0.8, 6).fit(as_row_source(x)).labels_, results[0])


def test_save_and_load(tmp_path):
    model = DBSCAN(0.8, 6).fit(make_blobs())
    model.save(tmp_path / "dbscan")
    again = DBSCAN.load(tmp_path / "dbscan")
    assert_same(again, model)
    assert again.get_params() == model.get_params()


def test_T01_bad_parameters_and_data():
    x = make_blobs(100)
    for options, error, message in (
        ({"eps": 0.0}, ValueError, "eps must be a finite number above 0, got 0.0"),
        ({"eps": float("nan")}, ValueError, "eps must be a finite number above 0, got nan"),
        ({"min_samples": 0}, ValueError, "min_samples must be at least 1, got 0"),
        ({"min_samples": 2.5}, TypeError, "min_samples must be an integer, got 2.5"),
        ({"metric": "manhattan"}, ValueError, "metric must be one of .*, got 'manhattan'"),
    ):
        with pytest.raises(error, match=message):
            DBSCAN(**options).fit(x)
    x[7, 1] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        DBSCAN().fit(x)
    assert DBSCAN(2.0, check_finite=False).fit(x).labels_[7] == -1


@pytest.mark.slow
def test_200_000_points_as_scikit_learn():
    x = make_blobs(200_000, 8, k=50)
    assert_same(DBSCAN(2.0, 10).fit(x), sklearn_dbscan(x, 2.0, 10))

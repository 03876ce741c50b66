"""Subspace clustering: random subspaces by every method, scikit-learn's conventions, faults."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import estimator_checks_generator

from fastdc import SubspaceClustering, adjusted_rand_index, ridge_self_expression
from fastdc.cluster import subspace
from fastdc.data import as_row_source

EXPECTED_FAILURES = {"check_clustering": "it clusters blobs in the plane, which are no subspaces"}
METHODS = {"omp": {"n_nonzero": 4}, "ridge": {"n_nonzero": 8}, "low_rank": {"n_nonzero": 8, "regularization": 0.0}}


def make_subspaces(n_each=80, k=5, dimension=4, d=30, noise=0.0, seed=0, dtype=np.float32):
    """Points of unequal lengths on random subspaces through the origin."""
    random = np.random.default_rng(seed)
    bases = [np.linalg.qr(random.normal(size=(d, dimension)))[0] for _ in range(k)]
    x = np.concatenate([random.normal(size=(n_each, dimension)) @ basis.T for basis in bases])
    x = x + noise * random.normal(size=x.shape)
    order = random.permutation(len(x))
    return x[order].astype(dtype), np.repeat(np.arange(k), n_each)[order]


@pytest.mark.parametrize(
    ("estimator", "check"),
    [
        pytest.param(
            estimator,
            check,
            id=check.func.__name__,
            marks=[pytest.mark.xfail(reason=EXPECTED_FAILURES[check.func.__name__], strict=True)]
            if check.func.__name__ in EXPECTED_FAILURES
            else [],
        )
        for estimator, check in estimator_checks_generator(SubspaceClustering(2))
    ],
)
def test_check_estimator(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # blobs are no subspaces: their graphs fall apart
        check(estimator)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("noise", [0.0, 0.02])
@pytest.mark.parametrize("method", METHODS)
def test_random_subspaces(method, noise, dtype):
    x, classes = make_subspaces(noise=noise, dtype=dtype)
    options = METHODS[method] | ({"regularization": 1.0} if method == "low_rank" and noise else {})
    model = SubspaceClustering(5, method=method, random_state=0, **options).fit(x)
    assert model.labels_.dtype == np.int32
    assert adjusted_rand_index(classes, model.labels_) > (0.999 if noise == 0 else 0.97)


def test_the_largest_coefficients(monkeypatch):
    x = torch.from_numpy(make_subspaces(20, 3, dtype=np.float64)[0])
    dense = ridge_self_expression(x, 0.1).to_dense()
    monkeypatch.setattr(subspace, "BLOCK_NUMBERS", 7 * len(x))
    kept = subspace._largest(ridge_self_expression(x, 0.1), 5).toarray()
    least = dense.abs().sort(dim=1, descending=True).values[:, 4:5]
    np.testing.assert_allclose(kept, torch.where(dense.abs() >= least, dense, 0.0), atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_tensors_row_sources_threads_and_seeds(method, set_threads):
    x, _ = make_subspaces(noise=0.05)
    make = lambda: SubspaceClustering(5, method=method, random_state=1)  # noqa: E731
    results = []
    for threads in (1, 3):
        set_threads(threads)
        results.append(make().fit(x).labels_)
    np.testing.assert_array_equal(*results)
    tensor = make().fit(torch.from_numpy(x)).labels_
    assert tensor.dtype == torch.int32
    np.testing.assert_array_equal(tensor, results[0])
    np.testing.assert_array_equal(make().fit(as_row_source(x)).labels_, results[0])


@pytest.mark.filterwarnings("ignore:the graph has")
@pytest.mark.parametrize("method", METHODS)
def test_T05_T06_T13_few_points_zeros_and_equal_points(method):
    assert SubspaceClustering(1, method=method).fit(np.ones((1, 2))).labels_.tolist() == [0]
    assert sorted(SubspaceClustering(2, method=method).fit(np.eye(2)).labels_) == [0, 1]
    for x in (np.zeros((20, 3)), np.ones((20, 3))):
        labels = SubspaceClustering(3, method=method, random_state=0).fit(x).labels_
        assert set(labels) <= {0, 1, 2}
    lines = np.repeat(np.eye(3), 30, axis=0) * np.random.default_rng(0).uniform(0.5, 3, (90, 1))
    labels = SubspaceClustering(3, method=method, n_nonzero=5, random_state=0).fit(lines).labels_
    assert adjusted_rand_index(np.repeat([0, 1, 2], 30), labels) == 1.0


def test_components():
    x, classes = make_subspaces(60, 4, dimension=3)
    model = SubspaceClustering(4, n_nonzero=4, random_state=0).fit(x)
    assert adjusted_rand_index(classes, model.labels_) == 1.0
    with pytest.warns(UserWarning, match=r"the graph has \d+ components, more than n_clusters=2"):
        joined = SubspaceClustering(2, n_nonzero=3, random_state=0).fit(x)
    assert len(np.unique(joined.labels_)) == 2


def test_T03_rows_that_are_not_finite():
    x, classes = make_subspaces()
    x[7, 1] = np.inf
    with pytest.raises(ValueError, match="Input X contains infinity"):
        SubspaceClustering(5).fit(x)
    labels = SubspaceClustering(5, n_nonzero=4, check_finite=False, random_state=0).fit_predict(x)
    assert labels[7] == -1
    assert adjusted_rand_index(np.delete(classes, 7), np.delete(labels, 7)) > 0.999


def test_save_and_load(tmp_path):
    model = SubspaceClustering(5, n_nonzero=4, random_state=0).fit(make_subspaces()[0])
    model.save(tmp_path / "subspace")
    np.testing.assert_array_equal(SubspaceClustering.load(tmp_path / "subspace").labels_, model.labels_)


BAD = [
    ({"n_clusters": 0}, ValueError, "n_clusters must be at least 1, got 0"),
    ({"n_clusters": 500}, ValueError, "n_clusters=500 must be at most n_samples=400"),
    ({"method": "lasso"}, ValueError, "method must be one of .*, got 'lasso'"),
    ({"n_nonzero": 0}, ValueError, "n_nonzero must be at least 1, got 0"),
    ({"method": "ridge", "regularization": 0.0}, ValueError, "regularization must be a finite number above 0"),
    ({"tol": -1.0}, ValueError, "tol must be a finite number, 0 or above"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_parameters(options, error, message):
    with pytest.raises(error, match=message):
        SubspaceClustering(**{"n_clusters": 5, **options}).fit(make_subspaces()[0])

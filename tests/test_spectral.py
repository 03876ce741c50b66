"""Spectral clustering: shapes that k-means cannot find, components, solvers, scikit-learn beside it, faults."""

import warnings

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.datasets import load_digits, make_circles, make_moons
from sklearn.utils.estimator_checks import estimator_checks_generator

from fastdc import SpectralClustering, adjusted_rand_index, normalized_mutual_info
from fastdc.cluster._spectral import laplacian_embedding, link_nearest, number_by_first
from fastdc.data import as_row_source
from fastdc.neighbors import knn_graph


def make_blobs(n=300, k=3, d=4, spread=8.0, seed=0):
    random = np.random.default_rng(seed)
    classes = random.integers(k, size=n)
    return (random.normal(size=(k, d)) * spread)[classes] + random.normal(size=(n, d)), classes


def dense_embedding(graph, n_vectors):
    weights = graph.toarray()
    scale = 1 / np.sqrt(weights.sum(1))
    values, vectors = np.linalg.eigh(np.eye(len(weights)) - scale[:, None] * weights * scale)
    rows = vectors[:, :n_vectors]
    return values[:n_vectors], rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("estimator", "check"),
    [pytest.param(e, c, id=c.func.__name__) for e, c in estimator_checks_generator(SpectralClustering(3))],
)
def test_check_estimator(estimator, check):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(estimator)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("make", [make_moons, make_circles], ids=["moons", "rings"])
def test_moons_and_rings(make, dtype):
    options = {"factor": 0.5} if make is make_circles else {}
    x, classes = make(2000, noise=0.05, random_state=0, **options)
    for affinity in ("nearest_neighbors", "self_tuning", "heat", "umap"):
        labels = SpectralClustering(2, affinity=affinity, random_state=0).fit_predict(x.astype(dtype))
        assert labels.dtype == np.int32
        assert adjusted_rand_index(classes, labels) == 1.0


@pytest.mark.parametrize("solver", ["lanczos", "shift_invert"])
def test_solvers_find_the_lowest_eigenvectors(solver):
    x, _ = make_circles(1200, noise=0.15, factor=0.5, random_state=0)
    graph = knn_graph(torch.from_numpy(x), 8, mode="symmetric").astype(np.float64)
    values, expected = dense_embedding(graph, 5)
    assert np.diff(values).min() > 1e-4  # each vector is determined up to its sign
    found = laplacian_embedding(graph, np.zeros(1200, int), 5, eigen_solver=solver, seed=0)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-5)


def test_components_are_decomposed_alone():
    parts = [make_circles(600, noise=0.1, factor=0.5, random_state=0)[0], make_blobs(30, 1, 2)[0] + 50]
    graph = knn_graph(torch.from_numpy(np.concatenate(parts)), 8, mode="symmetric").astype(np.float64)
    components = np.repeat([0, 1], [600, 30])
    found = laplacian_embedding(graph, components, 4, eigen_solver="auto", seed=0)
    _, expected = dense_embedding(graph, 4)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-8)


def test_as_many_components_as_clusters():
    x, classes = make_blobs(spread=40.0)
    model = SpectralClustering(3).fit(x)
    assert model.n_components_ == 3
    np.testing.assert_array_equal(model.labels_, number_by_first(classes))


def test_more_components_than_clusters_join_the_nearest():
    x, classes = make_blobs(300, 3, 2, spread=60.0)
    outliers = x[:12] * 1e-3 + x[classes == 1].mean(0) + 30.0  # a component of its own, nearest to class 1
    x, classes = np.concatenate([x, outliers]), np.concatenate([classes, np.ones(12, int)])
    model = SpectralClustering(3, n_neighbors=8).fit(x)
    assert model.n_components_ == 4
    assert adjusted_rand_index(classes, model.labels_) == 1.0
    line = torch.tensor([0.0, 1.0, 1.5, 2.5, 9.0, 9.1])[:, None]
    joined = link_nearest(line, "euclidean")(np.array([0, 1, 1, 2, 3, 3]), 2)
    np.testing.assert_array_equal(number_by_first(joined), [0, 0, 0, 0, 1, 1])


def test_digits_beside_scikit_learn():
    """scikit-learn 1.9 with the same ten neighbours reaches an ARI of 0.757 and an NMI of 0.854."""
    x, classes = load_digits(return_X_y=True)
    labels = SpectralClustering(10, random_state=0).fit_predict(x)
    assert adjusted_rand_index(classes, labels) > 0.8
    assert normalized_mutual_info(classes, labels) > 0.865


@pytest.mark.parametrize("kind", ["dense", "sparse", "tensor"])
def test_precomputed(kind):
    x, _ = make_moons(500, noise=0.1, random_state=0)
    graph = knn_graph(torch.from_numpy(x), 10).astype(np.float64)
    graph = (graph + graph.T) / 2
    expected = SpectralClustering(2, eigen_solver="lanczos", random_state=0).fit(x)
    dense = graph.toarray() + 5 * np.eye(500)  # loops do not count
    given = {"dense": dense, "sparse": scipy.sparse.csr_matrix(dense), "tensor": torch.from_numpy(dense)}[kind]
    labels = SpectralClustering(2, affinity="precomputed", random_state=0).fit_predict(given)
    assert isinstance(labels, torch.Tensor) == (kind == "tensor")
    np.testing.assert_array_equal(labels, expected.labels_)


def test_precomputed_with_more_components_than_clusters():
    graph = scipy.sparse.block_diag([np.ones((size, size)) for size in (5, 2, 9, 1)])
    with pytest.warns(UserWarning, match="the graph has 4 components, more than n_clusters=3"):
        labels = SpectralClustering(3, affinity="precomputed").fit_predict(graph)
    np.testing.assert_array_equal(labels, np.repeat([0, 1, 2, 1], [5, 2, 9, 1]))


def test_same_result_for_the_same_seed_and_any_threads(set_threads):
    x, _ = make_blobs(1500, 6, 5, spread=1.5)
    results = []
    for threads in (1, 3):
        set_threads(threads)
        results.append(SpectralClustering(6, random_state=3).fit(x).labels_)
    np.testing.assert_array_equal(*results)
    tensor = SpectralClustering(6, random_state=3).fit(torch.from_numpy(x)).labels_
    assert tensor.dtype == torch.int32
    np.testing.assert_array_equal(tensor, results[0])
    np.testing.assert_array_equal(SpectralClustering(6, random_state=3).fit(as_row_source(x)).labels_, results[0])


def test_T06_T08_T13_few_points_and_equal_points():
    assert SpectralClustering(1).fit(np.zeros((1, 2))).labels_.tolist() == [0]
    assert SpectralClustering(2).fit(np.zeros((2, 2))).labels_.tolist() in ([0, 1], [1, 0])
    assert set(SpectralClustering(3, random_state=0).fit(np.ones((50, 2))).labels_) <= {0, 1, 2}
    two = np.repeat([[0.0], [1.0]], 40, axis=0)
    np.testing.assert_array_equal(SpectralClustering(2).fit(two).labels_, np.repeat([0, 1], 40))
    assert set(SpectralClustering(1).fit(two).labels_) == {0}
    each = SpectralClustering(12, random_state=0).fit(make_blobs(12)[0]).labels_
    assert len(np.unique(each)) == 12


def test_T03_rows_that_are_not_finite():
    x, classes = make_blobs(spread=40.0)
    x[7, 1] = np.nan
    with pytest.raises(ValueError, match="Input X contains NaN"):
        SpectralClustering(3).fit(x)
    labels = SpectralClustering(3, check_finite=False).fit_predict(x)
    assert labels[7] == -1
    assert adjusted_rand_index(np.delete(classes, 7), np.delete(labels, 7)) == 1.0
    with pytest.raises(ValueError, match="none of the 2 rows of X is finite"):
        SpectralClustering(1, check_finite=False).fit(np.full((2, 2), np.nan))


def test_save_and_load(tmp_path):
    model = SpectralClustering(3, random_state=0).fit(make_blobs()[0])
    model.save(tmp_path / "spectral")
    again = SpectralClustering.load(tmp_path / "spectral")
    np.testing.assert_array_equal(again.labels_, model.labels_)
    assert again.n_components_ == model.n_components_


BAD = [
    ({"n_clusters": 0}, ValueError, "n_clusters must be at least 1, got 0"),
    ({"n_clusters": 400}, ValueError, "n_clusters=400 must be at most n_samples=300"),
    ({"n_clusters": True}, TypeError, "n_clusters must be an integer, got True"),
    ({"n_neighbors": 0}, ValueError, "n_neighbors must be at least 1, got 0"),
    ({"affinity": "rbf"}, ValueError, "affinity must be one of .*, got 'rbf'"),
    ({"metric": "inner_product"}, ValueError, "metric must be one of .*, got 'inner_product'"),
    ({"eigen_solver": "amg"}, ValueError, "eigen_solver must be one of .*, got 'amg'"),
    ({"affinity": "precomputed"}, ValueError, "a precomputed affinity must be square"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD, ids=[message for *_, message in BAD])
def test_bad_parameters(options, error, message):
    with pytest.raises(error, match=message):
        SpectralClustering(**{"n_clusters": 3, **options}).fit(make_blobs()[0])


def test_bad_affinities():
    model = SpectralClustering(2, affinity="precomputed")
    with pytest.raises(ValueError, match="must be symmetric"):
        model.fit(np.array([[0.0, 1.0], [0.5, 0.0]]))
    with pytest.raises(ValueError, match=r"must not be negative, the least is -1\.0"):
        model.fit(-np.ones((3, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_moons, make_circles], ids=["moons", "rings"])
def test_100_000_points(make):
    options = {"factor": 0.5} if make is make_circles else {}
    x, classes = make(100_000, noise=0.05, random_state=0, **options)
    labels = SpectralClustering(2, random_state=0).fit_predict(x)
    assert adjusted_rand_index(classes, labels) == 1.0

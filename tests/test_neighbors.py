"""Exact search on CPUs; FAISS, graphs and Triton's kernels have files of their own."""

import inspect
import re

import numpy as np
import pytest
import torch

from fastdc.kernels._calls import Size
from fastdc.kernels.neighbors import custom_ops, knn, numba_kernel, radius_neighbors
from tests.gpu_cases import check
from tests.neighbors_cases import DTYPES, METRICS, all_pairs, assert_finds, exact_knn, make_points

BACKENDS = ["reference", "numba"]
SHAPES = [(2, 1, 1), (5, 3, 4), (64, 60, 2), (65, 61, 17), (700, 130, 33), (130, 700, 5)]  # points, queries, features

# --- cases by hand and by independent formulas


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend):
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [6.0, 8.0]])
    found = knn(x, 2, backend=backend)
    assert found.indices.tolist() == [[2, 1], [2, 0], [0, 1], [1, 2]]
    expected = torch.tensor([[1.0, 5.0], [18.0**0.5, 5.0], [1.0, 18.0**0.5], [5.0, 85.0**0.5]])
    assert torch.equal(found.distances, expected)
    products = knn(x, 2, x[1:2], "inner_product", backend=backend)
    assert (products.indices.tolist(), products.distances.tolist()) == ([[3, 1]], [[50.0, 25.0]])
    angles = knn(x, 4, torch.tensor([[0.0, 2.0]]), "cosine", backend=backend)
    assert angles.indices.tolist() == [[2, 1, 3, 0]]
    assert torch.allclose(angles.distances, torch.tensor([[0.0, 0.2, 0.2, 1.0]]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_matches_float64(backend, dtype, metric, shape):
    n, m, d = shape
    x, queries = make_points(n, d, dtype), make_points(m, d, dtype, seed=1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for given in (None, queries):
        k = min(7, n - (given is None))
        found = knn(x, k, given, metric, backend=backend)
        assert found.distances.dtype == wide
        assert_finds(found, x, k, given, metric)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_T35_every_other_point_in_order(backend, metric):
    x = make_points(150, 6)
    for k, queries in ((149, None), (150, x[:9].clone())):
        assert_finds(knn(x, k, queries, metric, backend=backend), x, k, queries, metric)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_is_scikit_learn(backend, metric):
    from sklearn.neighbors import NearestNeighbors

    x, queries = make_points(400, 8, torch.float64), make_points(50, 8, torch.float64, seed=1)
    model = NearestNeighbors(n_neighbors=10, metric=metric, algorithm="brute").fit(x.numpy())
    for given in (None, queries):
        distances, indices = model.kneighbors(None if given is None else given.numpy())
        found = knn(x, 10, given, metric, backend=backend)
        assert np.array_equal(found.indices.numpy(), indices)
        np.testing.assert_allclose(found.distances.numpy(), distances, rtol=1e-6)
    if metric == "euclidean":
        graph = model.radius_neighbors_graph(queries.numpy(), 2.5, mode="distance")
        near = radius_neighbors(x, 2.5, queries, backend=backend).to_scipy(400)
        np.testing.assert_allclose(near.toarray(), graph.toarray(), rtol=1e-6)


@pytest.mark.parametrize("name", ["knn", "knn: queries", "knn: inner product"])
def test_other_rows_than_those_of_float64_are_as_near(name):
    """Of float32 rows made of length one some pairs are equally near, whose order in float64 is another."""
    check(name, Size(1000, 129, 64), torch.float32, "cpu", "numba", seeds=6)


@pytest.mark.parametrize("n", [300, 1300])
def test_numba_is_the_reference_to_the_last_index(n):
    x, queries = make_points(n, 12), make_points(200, 12, seed=1)
    for metric in METRICS:
        for given in (None, queries):
            expected = knn(x, 15, given, metric, backend="reference")
            found = knn(x, 15, given, metric, backend="numba")
            assert torch.equal(found.indices, expected.indices)
            assert torch.allclose(found.distances, expected.distances, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_T20_any_strides(backend):
    wide = make_points(260, 24)
    views = (wide[::2, ::3], wide[:, :8].flip(0), wide.T.contiguous().T[:, 5:])
    for x in views:
        expected = knn(x.contiguous(), 5, x[:70].contiguous(), backend=backend)
        found = knn(x, 5, x[:70], backend=backend)
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.distances, expected.distances)


@pytest.mark.parametrize("backend", BACKENDS)
def test_T35_more_neighbours_than_faiss_finds_on_gpus(backend):
    x, queries = make_points(2300, 3), make_points(5, 3, seed=1)
    assert torch.equal(knn(x, 2200, queries, backend=backend).indices, exact_knn(x, 2200, queries)[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_T14_many_features(backend):
    x = make_points(20, 100_003)
    for metric in METRICS:
        assert_finds(knn(x, 5, None, metric, backend=backend), x, 5, None, metric)


# --- ties, duplicates, and the point itself


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_T19_ties_go_to_the_lowest_index(backend, metric):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (900, 2), generator=generator).float() * 2 - 2
    x = x[x.abs().sum(1) > 0]  # squares and products are exact, directions few
    if metric == "cosine":
        x = torch.nn.functional.one_hot(x.long()[:, 0] + 2, 5).float()
    for queries in (None, x[:80].clone()):
        _, expected = exact_knn(x, 40, queries, metric)
        assert torch.equal(knn(x, 40, queries, metric, backend=backend).indices, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_T35_a_point_is_no_neighbour_of_itself_but_its_copies_are(backend):
    base = make_points(40, 7)
    x = torch.cat([base, base, base])
    found = knn(x, 2, backend=backend)
    own = torch.arange(120)
    assert not (found.indices == own[:, None]).any()
    assert torch.equal(found.distances, torch.zeros(120, 2))
    copies = torch.stack([own % 40, own % 40 + 40, own % 40 + 80], dim=1)
    assert torch.equal(found.indices, copies[copies != own[:, None]].view(120, 2))
    asked = knn(x, 3, x, backend=backend)  # the same rows as queries find themselves
    assert torch.equal(asked.indices, copies)


@pytest.mark.parametrize("backend", BACKENDS)
def test_T06_all_rows_equal(backend):
    x = torch.full((200, 5), 0.1)
    found = knn(x, 3, backend=backend)
    assert found.indices[[0, 1, 2, 3, 199]].tolist() == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [0, 1, 2]]
    assert torch.equal(found.distances, torch.zeros(200, 3))


# --- numbers that are hard


@pytest.mark.parametrize("offset", [1e4, -1e6])
@pytest.mark.parametrize("backend", BACKENDS)
def test_T15_far_from_the_origin(backend, offset):
    x = make_points(500, 10) + offset
    queries = make_points(90, 10, seed=1) + offset
    for given in (None, queries):
        found = knn(x, 8, given, backend=backend)
        distances, indices = exact_knn(x, 8, given)
        assert torch.equal(found.indices, indices)
        assert torch.allclose(found.distances, distances.float(), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1e18, 1e30])
@pytest.mark.parametrize("backend", BACKENDS)
def test_T05_very_small_and_very_large(backend, scale):
    x = (make_points(200, 6).double() * scale).float()
    for metric in ("euclidean", "cosine"):
        expected = knn(x.double() / scale, 5, None, metric, backend="reference")
        found = knn(x, 5, None, metric, backend=backend)
        assert torch.equal(found.indices, expected.indices)
        size = scale if metric == "euclidean" else 1.0
        assert torch.allclose(found.distances.double() / size, expected.distances, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_clusters_far_apart_keep_their_neighbours(backend):
    x = torch.cat([make_points(150, 4) * 1e-3, make_points(150, 4, seed=1) * 1e-3 + 1e3])
    found = knn(x, 6, backend=backend)
    distances, indices = exact_knn(x, 6)
    assert torch.equal(found.indices, indices)
    assert torch.allclose(found.distances, distances.float(), rtol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_T03_rows_that_are_not_finite(backend, metric):
    x = make_points(100, 3)
    clean = torch.ones(100, dtype=torch.bool)
    x[7, 1], x[50, 0], x[99] = torch.nan, torch.inf, -torch.inf
    clean[[7, 50, 99]] = False
    found = knn(x, 4, None, metric, backend=backend)
    alone = knn(x[clean], 4, None, metric, backend=backend)
    places = torch.arange(100)[clean]
    assert torch.equal(found.indices[clean], places[alone.indices])
    assert torch.allclose(found.distances[clean], alone.distances, rtol=1e-6, atol=1e-7)
    assert (found.indices[~clean] == -1).all()
    assert found.distances[~clean].isnan().all()
    short = knn(x[:9], 8, None, metric, backend=backend)
    assert (short.indices[:7, -1] == -1).all()
    assert short.distances[:7, -1].isinf().all()
    assert (short.indices[:7, :-1] >= 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_T18_a_row_of_zeros_is_at_cosine_distance_one(backend):
    x = torch.cat([torch.zeros(2, 3), make_points(20, 3).abs()])
    found = knn(x, 3, None, "cosine", backend=backend)
    assert torch.equal(found.distances[:2], torch.ones(2, 3))
    assert found.indices[:2].tolist() == [[1, 2, 3], [0, 2, 3]]
    assert (found.indices[2:] > 1).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_T16_half_precision_whose_squares_have_no_room(backend, dtype):
    x = make_points(150, 20, dtype) * 200  # squared norms of a million
    for metric in METRICS:
        found, expected = (knn(rows, 6, None, metric, backend=backend) for rows in (x, x.float()))
        assert torch.equal(found.indices, expected.indices)
        assert torch.equal(found.distances, expected.distances)
        assert found.distances.isfinite().all()


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_T13_one_row(backend, metric):
    x, queries = torch.tensor([[3.0, 4.0]]), torch.tensor([[3.0, 4.0], [6.0, 8.0]])
    found = knn(x, 1, queries, metric, backend=backend)
    assert found.indices.tolist() == [[0], [0]]
    assert found.distances.tolist() == {"euclidean": [[0], [5]], "cosine": [[0], [0]]}.get(metric, [[25], [50]])
    if metric != "inner_product":
        alone = radius_neighbors(x, 1.0, None, metric, backend=backend)
        assert (alone.indptr.tolist(), alone.indices.tolist()) == ([0, 0], [])


@pytest.mark.parametrize("backend", BACKENDS)
def test_T05_all_zeros(backend):
    x = torch.zeros(70, 3)
    for metric, distance in (("euclidean", 0.0), ("cosine", 1.0), ("inner_product", 0.0)):
        found = knn(x, 2, None, metric, backend=backend)
        assert torch.equal(found.distances, torch.full((70, 2), distance))
        assert found.indices[[0, 1, 69]].tolist() == [[1, 2], [0, 2], [0, 1]]


# --- within a radius


@pytest.mark.parametrize("metric", METRICS[:2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_radius_matches_float64(backend, dtype, metric):
    x, queries = make_points(300, 5, dtype), make_points(140, 5, dtype, seed=1)
    for given in (None, queries):
        pairs = all_pairs(x, given, metric)
        for radius in (0.05, 0.4, 50.0):
            near = radius_neighbors(x, radius, given, metric, backend=backend)
            within = pairs <= radius
            assert near.indptr.tolist() == [0, *within.sum(1).cumsum(0).tolist()]
            assert torch.equal(near.indices, within.nonzero()[:, 1])
            assert torch.allclose(near.distances.double(), pairs[within], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_radius_counts_points_at_its_very_distance(backend):
    x = torch.arange(100.0)[:, None]
    near = radius_neighbors(x, 3.0, x[50:51].clone(), backend=backend)
    assert near.indices.tolist() == [47, 48, 49, 50, 51, 52, 53]
    assert near.to_scipy(100).nnz == 7
    nothing = radius_neighbors(x, 0.5, backend=backend)
    assert (nothing.indptr.tolist(), nothing.indices.tolist()) == ([0] * 101, [])


def test_more_pairs_than_the_space_first_made():
    x = make_points(900, 3)
    near = radius_neighbors(x, 100.0, backend="numba")
    assert near.indptr.tolist() == [899 * i for i in range(901)]
    assert torch.equal(near.indices, radius_neighbors(x, 100.0, backend="reference").indices)


# --- threads


def test_T44_threads_do_not_change_a_bit(set_threads):
    x, queries = make_points(3000, 16), make_points(900, 16, seed=1)
    calls = [
        lambda: knn(x, 12),
        lambda: knn(x, 12, queries),
        lambda: knn(x[:1400].round(), 30),
        lambda: radius_neighbors(x, 3.5),
    ]
    for call in calls:
        results = []
        for threads in (1, 2, 3):
            set_threads(threads)
            results.append(call())
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other))


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 4, 7, 10, 33])
def test_every_pair_of_blocks_meets_once(n_blocks):
    pairs = [tuple(sorted(pair)) for pair in numba_kernel.pairs_of_blocks(n_blocks)]
    assert sorted(pairs) == [(i, j) for i in range(n_blocks) for j in range(i, n_blocks)]
    blocks = [(i, i + 1) for i in range(n_blocks)]
    assert sorted(numba_kernel.scattered(blocks)) == blocks


# --- torch


@pytest.mark.parametrize("backend", BACKENDS)
def test_T25_results_are_detached(backend):
    x = make_points(20, 3).requires_grad_()
    assert not knn(x, 2, backend=backend).distances.requires_grad
    assert not radius_neighbors(x, 1.0, x, backend=backend).distances.requires_grad


@pytest.mark.peers("faiss")
def test_opcheck_and_one_graph():
    x, queries = make_points(70, 5), make_points(9, 5, seed=1)
    for given in (None, queries):
        torch.library.opcheck(custom_ops.KNN["numba"], (x, given, 4, "euclidean", "ieee"))
        torch.library.opcheck(custom_ops.KNN_BY, (x, given, 4, "euclidean", "faiss"))
        torch.library.opcheck(custom_ops.RADIUS["numba"], (x, given, 2.0, "euclidean", "ieee"))
    compiled = torch.compile(lambda t: knn(t * 2.0, 3), fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (70, 33):
        for got, expected in zip(compiled(x[:n]), knn(x[:n] * 2.0, 3)):
            assert torch.equal(got, expected)


# --- bad input

X = torch.zeros(4, 3)
BAD = [
    (dict(x=np.zeros((3, 2))), TypeError, "x must be a torch.Tensor, got ndarray; wrap it with torch.as_tensor"),
    (dict(x=X.long()), TypeError, "x must be float32, float64, float16 or bfloat16, got torch.int64; convert it wit"),
    (dict(x=X[:0]), ValueError, "x is empty, shape (0, 3); it needs at least one row and one column"),
    (dict(x=X[0]), ValueError, "x must be 2-D, of shape (n_samples, n_features), got shape (3,); a single sample is"),
    (dict(queries=X[:, :2]), ValueError, "queries has 2 features but x has 3; both must be (…, n_features)"),
    (dict(queries=X.to("meta")), ValueError, "queries is on meta but x is on cpu; move one with .to(...)"),
    (dict(metric="l1"), ValueError, "metric must be one of ('euclidean', 'cosine', 'inner_product'), got 'l1'"),
    (dict(n_neighbors=4), ValueError, "n_neighbors must be from 1 to 3, the number of the other rows of x, got 4"),
    (dict(n_neighbors=0), ValueError, "n_neighbors must be from 1 to 3, the number of the other rows of x, got 0"),
    (dict(n_neighbors=5, queries=X), ValueError, "n_neighbors must be from 1 to 4, the number of the rows of x, got"),
    (dict(x=X[:1]), ValueError, "n_neighbors must be from 1 to 0, the number of the other rows of x, got 1"),
    (dict(n_neighbors=1.0), TypeError, "n_neighbors must be an int, got 1.0"),
    (dict(n_neighbors=True), TypeError, "n_neighbors must be an int, got True"),
    (
        dict(algorithm="tree"),
        ValueError,
        "algorithm must be 'auto' or one of ('exact', 'lists', 'faiss', 'hnsw', 'ivf')",
    ),
    (dict(x=X / 0, check_finite=True), ValueError, "Input x contains NaN: 12 such entries, the first at index [0, 0]."),
    (dict(queries=X + torch.inf, check_finite=True), ValueError, "Input queries contains infinity or a value too lar"),
]


@pytest.mark.parametrize(("given", "error", "message"), BAD, ids=lambda value: str(value)[:50])
def test_bad_input_is_named(given, error, message):
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        knn(**{"x": X, "n_neighbors": 1, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(radius=0.0), "radius must be a finite number above 0, got 0.0"),
        (dict(radius=float("nan")), "radius must be a finite number above 0, got nan"),
        (dict(metric="inner_product"), "metric must be one of ('euclidean', 'cosine'), got 'inner_product'"),
    ],
    ids=str,
)
def test_bad_radius_is_named(given, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        radius_neighbors(**{"x": X, "radius": 1.0, **given})


def test_the_arguments_people_know():
    names = list(inspect.signature(knn).parameters)
    assert names[:5] == ["x", "n_neighbors", "queries", "metric", "algorithm"]

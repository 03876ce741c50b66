"""Values of the GPU kernels of the neighbors room; run by ``test_neighbors_triton.py`` in a process of its own."""

import os

import pytest
import torch

from fastdc.kernels.neighbors import knn, radius_neighbors, triton_kernel
from tests.neighbors_cases import DTYPES, METRICS, assert_finds, exact_knn, make_points

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
EXACT = ["ieee", "tf32x3"] if DEVICE == "cpu" else ["ieee", "tf32x3", "bf16x6"]  # bf16 is beyond the interpreter
REDUCED = ["tf32"] if DEVICE == "cpu" else ["tf32", "bf16"]
SHAPES = [(2, 1, 1), (7, 5, 3), (70, 35, 17)]  # points, queries, features

# the interpreter's numpy warns where a GPU is silent: infinity less infinity
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


def find(x, n_neighbors, queries=None, *options, op=knn, **named):
    queries = None if queries is None else queries.to(DEVICE)
    found = op(x.to(DEVICE), n_neighbors, queries, *options, backend="triton", **named)
    return type(found)(*(part.cpu() for part in found))


@pytest.fixture
def _poisoned(monkeypatch):
    """Uninitialised memory is filled with NaN and nonsense."""
    original = torch.empty

    def poisoned(*size, **options):
        tensor = original(*size, **options)
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.fill_(77)

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_float64(dtype, metric, shape):
    n, m, d = shape
    x, queries = make_points(n, d, dtype), make_points(m, d, dtype, seed=1)
    for given in (None, queries):
        k = min(5, n - (given is None))
        assert_finds(find(x, k, given, metric), x, k, given, metric)


@pytest.mark.parametrize("precision", EXACT)
def test_every_exact_precision_is_exact(precision):
    x = make_points(70, 6) + 100.0
    found = find(x, 4, precision=precision)
    assert torch.equal(found.indices, exact_knn(x, 4)[1])


@pytest.mark.parametrize("precision", REDUCED)
def test_reduced_precisions_measure_what_they_find(precision):
    x = make_points(70, 6)
    found = find(x, 4, precision=precision)
    there = (x.double()[found.indices] - x.double()[:, None]).square().sum(2).sqrt()
    assert torch.allclose(found.distances.double(), there, rtol=1e-6)
    assert (found.indices == exact_knn(x, 4)[1]).float().mean() > 0.8


def test_more_neighbours_than_places():
    x, queries = make_points(140, 4), make_points(20, 4, seed=1)
    for k in (70, 140):  # two and three launches
        assert torch.equal(find(x, k, queries).indices, exact_knn(x, k, queries)[1])


def test_ties_go_to_the_lowest_index_and_a_point_is_not_its_own_neighbour():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 3, (90, 2), generator=generator).float()
    for queries in (None, x[:20].clone()):
        assert torch.equal(find(x, 12, queries).indices, exact_knn(x, 12, queries)[1])
    same = find(torch.full((40, 3), 0.1), 2)
    assert same.indices[:3].tolist() == [[1, 2], [0, 2], [0, 1]]
    assert torch.equal(same.distances, torch.zeros(40, 2))


def test_doubtful_queries_are_searched_by_differences(monkeypatch):
    searched = []
    original = triton_kernel._exact_candidates

    def counted(rows, *rest):
        searched.append(len(rows))
        return original(rows, *rest)

    monkeypatch.setattr(triton_kernel, "_exact_candidates", counted)
    near = torch.cat([make_points(30, 4) * 1e-4, make_points(30, 4, seed=1) * 1e-4 + 1e3])
    found = find(near, 3)
    distances, indices = exact_knn(near, 3)
    assert sum(searched) > 0
    assert torch.equal(found.indices, indices)
    assert torch.allclose(found.distances, distances.float(), rtol=1e-6)
    searched.clear()
    find(make_points(60, 4), 3)
    assert sum(searched) == 0


@pytest.mark.usefixtures("_poisoned")
@pytest.mark.parametrize("precision", ["tf32x3", "tf32"])  # the second one searches nothing anew
def test_points_in_parts_are_those_in_one(precision, monkeypatch):
    """Few queries against many points, equally near ones in all parts, and parts that hold fewer than are wanted."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 4, (300, 3), generator=generator).float()
    x[100:220] = torch.nan
    queries = x[:6].clone()
    monkeypatch.setattr(triton_kernel, "MOST_PLACES", {4: 16, 8: 16})
    for n_neighbors in (5, 20):  # one launch and two
        monkeypatch.setattr(triton_kernel, "LEAST_POINTS", 2)
        found = find(x, n_neighbors, queries, precision=precision)
        monkeypatch.setattr(triton_kernel, "LEAST_POINTS", 1000)
        whole = find(x, n_neighbors, queries, precision=precision)
        assert torch.equal(found.indices, whole.indices)
        assert torch.equal(found.distances, whole.distances)
        if precision == "tf32x3":
            assert torch.equal(found.indices, exact_knn(x, n_neighbors, queries)[1])


def test_far_from_the_origin():
    x = make_points(60, 5) + 1e4
    assert torch.equal(find(x, 4).indices, exact_knn(x, 4)[1])


@pytest.mark.parametrize("metric", METRICS)
def test_rows_that_are_not_finite(metric):
    x = make_points(40, 3)
    x[7, 1], x[39, 0] = torch.nan, torch.inf
    for k in (4, 38):
        found = find(x, k, None, metric)
        expected = knn(x, k, None, metric, backend="reference")
        assert torch.equal(found.indices, expected.indices)
        assert torch.allclose(found.distances, expected.distances, rtol=1e-6, atol=1e-7, equal_nan=True)


@pytest.mark.parametrize("metric", METRICS[:2])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_radius(dtype, metric):
    x, queries = make_points(90, 5, dtype), make_points(40, 5, dtype, seed=1)
    for given in (None, queries):
        for radius in (1e-3, 0.7, 50.0):
            near = find(x, radius, given, metric, op=radius_neighbors)
            expected = radius_neighbors(x, radius, given, metric, backend="reference")
            assert torch.equal(near.indptr, expected.indptr)
            assert torch.equal(near.indices, expected.indices)
            assert torch.allclose(near.distances, expected.distances, rtol=1e-6, atol=1e-7)

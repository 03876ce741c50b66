"""FAISS beside exact search: what it finds, which algorithm is chosen, and why."""

import re

import pytest
import torch

from fastdc.kernels import BackendError
from fastdc.kernels.neighbors import explain_algorithms, knn
from fastdc.kernels.neighbors.choice import choose_algorithm
from tests.neighbors_cases import METRICS, all_pairs, make_points

APPROXIMATE = ["faiss", "hnsw", "ivf"]


@pytest.mark.peers("faiss")
@pytest.mark.parametrize("metric", METRICS)
def test_faiss_is_exact_search(metric):
    x, queries = make_points(600, 20), make_points(100, 20, seed=1)
    for given in (None, queries):
        expected = knn(x, 9, given, metric, "exact")
        found = knn(x, 9, given, metric, "faiss")
        assert torch.equal(found.indices, expected.indices)
        assert torch.allclose(found.distances, expected.distances, rtol=1e-6, atol=1e-7)


@pytest.mark.peers("faiss")
@pytest.mark.parametrize("algorithm", ["hnsw", "ivf"])
@pytest.mark.parametrize("metric", METRICS)
def test_approximate_search_finds_most_with_true_distances(algorithm, metric):
    x = make_points(4000, 8)
    found = knn(x, 10, None, metric, algorithm)
    expected = knn(x, 10, None, metric, "exact")
    same = (found.indices[:, :, None] == expected.indices[:, None, :]).any(2)
    assert same.float().mean() > 0.8
    assert not (found.indices == torch.arange(4000)[:, None]).any()
    there = all_pairs(x, None, metric).gather(1, found.indices.clamp(min=0)) * (-1 if metric == "inner_product" else 1)
    is_found = found.indices >= 0
    assert torch.allclose(found.distances.double()[is_found], there[is_found], rtol=1e-5, atol=1e-6)


@pytest.mark.peers("faiss")
def test_faiss_keeps_duplicates_and_leaves_threads_as_they_were():
    import faiss

    before = faiss.omp_get_max_threads()
    x = make_points(30, 4).repeat(3, 1)
    found = knn(x, 2, algorithm="faiss")
    assert torch.equal(found.distances, torch.zeros(90, 2))
    assert not (found.indices == torch.arange(90)[:, None]).any()
    assert faiss.omp_get_max_threads() == before


@pytest.mark.gpu
@pytest.mark.peers("faiss")
def test_faiss_on_the_gpu():
    import faiss

    if not hasattr(faiss, "StandardGpuResources"):
        pytest.skip("this faiss has no GPU part")
    x = make_points(600, 20).cuda()
    found, expected, listed = (knn(x, 9, algorithm=algorithm) for algorithm in ("faiss", "exact", "ivf"))
    assert torch.equal(found.indices, expected.indices)
    assert (found.indices[:, :, None] == listed.indices[:, None]).any(2).float().mean() > 0.8
    with pytest.raises(BackendError, match="faiss finds fewer than 2048 neighbours on GPUs, 2048 are wanted"):
        choose_algorithm(x, 2048, algorithm="faiss", faiss=True)
    with pytest.raises(BackendError, match="'hnsw' needs CPU tensors; move x with"):
        choose_algorithm(x, 9, algorithm="hnsw", faiss=True)


@pytest.mark.peers("faiss")
def test_one_thread_builds_the_same_graph():
    x = make_points(2000, 8)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (knn(x, 5, algorithm="hnsw") for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(first.indices, second.indices)


def test_auto_is_exact_until_search_takes_minutes():
    small, large = torch.empty(1000, 8), torch.empty(1, 64).expand(1_200_000, 64)
    for faiss in (True, False):
        assert choose_algorithm(small, 5, faiss=faiss) == "exact"
    for faiss in (True, False):
        assert choose_algorithm(large, 5, faiss=faiss) == "lists"
        assert choose_algorithm(large, 5, large[:1000], faiss=faiss) == "exact"  # few queries
        assert choose_algorithm(large, 5, large, faiss=faiss) == ("hnsw" if faiss else "exact")
        assert choose_algorithm(large, 5, metric="inner_product", faiss=faiss) == ("hnsw" if faiss else "exact")
    assert choose_algorithm(large.double(), 5, large.double(), faiss=True) == "exact"


def test_explain_gives_one_reasoned_row_an_algorithm():
    small, large = torch.empty(1000, 8), torch.empty(1, 64).expand(1_200_000, 64)
    assert [(r.algorithm, r.chosen, r.reason) for r in explain_algorithms(small, faiss=True)] == [
        ("exact", True, "exact search takes at most 2^46 products of numbers"),
        ("lists", False, "'auto' takes 'exact' at this size"),
        ("faiss", False, "'exact' is faster here"),
        ("hnsw", False, "'auto' takes 'exact' at this size"),
        ("ivf", False, "'auto' takes 'exact' at this size"),
    ]
    assert [(r.chosen, r.reason) for r in explain_algorithms(large, faiss=True)] == [
        (False, "'auto' takes 'lists' at this size"),
        (True, "exact search takes more than 2^46 products of numbers; approximate, distances are true"),
        (False, "'auto' takes 'lists' at this size"),
        (False, "'auto' takes 'lists' at this size"),
        (False, "'auto' takes 'lists' at this size"),
    ]
    forced = explain_algorithms(small, algorithm="ivf", faiss=True)
    assert [(r.chosen, r.reason) for r in forced if r.chosen] == [(True, "asked for")]
    assert forced[0].reason == "'ivf' is asked for"
    without = explain_algorithms(small, algorithm="ivf", faiss=False)
    assert not any(r.chosen for r in without)
    assert without[4].reason == "faiss does not import; install it with `pip install faiss-cpu`, or use 'exact'"


@pytest.mark.parametrize("algorithm", APPROXIMATE)
def test_T51_an_algorithm_that_cannot_run_says_why(algorithm):
    x = torch.zeros(10, 2)
    with pytest.raises(BackendError, match=re.escape(f"knn: algorithm '{algorithm}' cannot run: faiss does not imp")):
        choose_algorithm(x, 1, algorithm=algorithm, faiss=False)
    expected = f"knn: algorithm '{algorithm}' cannot run: faiss computes in float32; pass x.float(), or use 'exact'"
    with pytest.raises(BackendError, match=f"^{re.escape(expected)}$"):
        choose_algorithm(x, 1, x.double(), algorithm, faiss=True)


@pytest.mark.peers("faiss")
def test_faiss_wants_finite_rows():
    with pytest.raises(ValueError, match=r"^Input x contains NaN: 12 such entries"):
        knn(torch.zeros(4, 3) / 0, 1, algorithm="faiss")

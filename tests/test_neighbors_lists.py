"""Neighbours by near lists: what they find beside exact search, and that widening them ends at it."""

import re

import pytest
import torch

from fastdc.kernels import BackendError
from fastdc.kernels.neighbors import knn, near_lists
from fastdc.kernels.neighbors.choice import choose_algorithm
from fastdc.kernels.neighbors.near_lists import NearLists
from tests.neighbors_cases import make_points


def recall_of(found, expected):
    return (found.distances <= expected.distances[:, -1:] * (1 + 1e-6)).double().mean()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_finds_most_with_true_distances(metric, dtype):
    x = make_points(6000, 8).to(dtype)
    found, expected = (knn(x, 10, None, metric, algorithm) for algorithm in ("lists", "exact"))
    assert recall_of(found, expected) > 0.95
    assert found.distances.dtype == expected.distances.dtype
    assert not (found.indices == torch.arange(6000)[:, None]).any()
    assert (found.indices.sort(dim=1).values.diff(dim=1) > 0).all()  # none twice
    same = found.indices == expected.indices
    assert same.double().mean() > 0.8
    assert torch.equal(found.distances[same], expected.distances[same])


def test_all_lists_together_are_exact_search():
    x = make_points(3000, 12)
    x[100:120] = x[0]  # ties
    lists = NearLists(x, 7, "euclidean")
    expected = knn(x, 7, algorithm="exact")
    recalls = []
    for width in (1, 2, 5, lists.widest // 2, lists.widest):
        lists.look_at(width)
        near = lists.distances(torch.arange(3000))
        recalls.append((near <= expected.distances[:, -1:]).double().mean())
    assert recalls == sorted(recalls)
    assert recalls[-1] == 1
    distances, indices = lists.neighbors()
    assert torch.equal(distances, expected.distances)
    untied = torch.arange(3000) >= 120
    untied &= ~(expected.indices[:, :, None] == torch.arange(100, 120)).any(2).any(1)
    assert torch.equal(indices[untied], expected.indices[untied])


def test_same_bits_for_any_number_of_threads():
    x = make_points(5000, 16)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(knn(x, 5, algorithm="lists"))
    torch.set_num_threads(before)
    assert all(torch.equal(found[0].indices, other.indices) for other in found[1:])
    assert all(torch.equal(found[0].distances, other.distances) for other in found[1:])


def test_rows_that_are_not_finite_and_few_rows():
    x = make_points(900, 4)
    x[::7] = torch.nan
    x[5] = torch.inf
    found, expected = (knn(x, 6, algorithm=algorithm) for algorithm in ("lists", "exact"))
    bad = ~x.isfinite().all(dim=1)
    assert (found.indices[bad] == -1).all()
    assert found.distances[bad].isnan().all()
    assert not torch.isin(found.indices[~bad], bad.nonzero()[:, 0]).any()
    assert (found.distances[~bad] <= expected.distances[~bad][:, -1:]).double().mean() > 0.95
    assert torch.equal(knn(x[8:12], 2, algorithm="lists").indices, knn(x[8:12], 2, algorithm="exact").indices)
    nowhere = torch.full((3, 2), torch.nan)
    assert torch.equal(knn(nowhere, 2, algorithm="lists").indices, torch.full((3, 2), -1))


def test_copies_and_long_lists_are_cut(monkeypatch):
    monkeypatch.setattr(near_lists, "LONGEST_LIST", 50)
    x = make_points(30, 4).repeat(20, 1)
    found = knn(x, 19, algorithm="lists")
    assert torch.equal(found.distances, torch.zeros(600, 19))
    lists = NearLists(x, 3, "euclidean")
    assert sum(stop - start for start, stop in lists._lists) == 600
    assert all(0 < stop - start <= 50 for start, stop in lists._lists)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(queries=torch.zeros(3, 2)), "it seeks the neighbours of x among x itself, and queries are given; use"),
        (dict(metric="inner_product"), "what has a large product with the same point need not be near; use 'ivf'"),
        (dict(x=torch.zeros(10, 2, device="meta")), "it needs CPU tensors, x is on meta; use 'ivf' or 'exact'"),
    ],
    ids=str,
)
def test_says_why_it_cannot_run(given, message):
    with pytest.raises(BackendError, match=re.escape(f"knn: algorithm 'lists' cannot run: {message}")):
        choose_algorithm(**{"x": torch.zeros(10, 2), "n_neighbors": 1, "algorithm": "lists", **given})

"""Agreement scores: equal to scikit-learn, exact where integers allow it, defined at every edge."""

import itertools
import math

import mpmath
import numpy as np
import pytest
import sklearn.metrics as peer
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.metrics.cluster import contingency_matrix

from fastdc import metrics
from fastdc.kernels.contingency import contingency_table, matching, scores
from fastdc.kernels.contingency.numba_kernel import expected_mutual_information_numba
from fastdc.kernels.contingency.reference import expected_mutual_information_reference

TOLERANCE = 1e-12
PEERS = {
    metrics.normalized_mutual_info: peer.normalized_mutual_info_score,
    metrics.adjusted_mutual_info: peer.adjusted_mutual_info_score,
    metrics.adjusted_rand_index: peer.adjusted_rand_score,
    metrics.homogeneity: peer.homogeneity_score,
    metrics.completeness: peer.completeness_score,
    metrics.v_measure: peer.v_measure_score,
}
ALL_SCORES = [
    *PEERS,
    metrics.clustering_accuracy,
    metrics.purity,
    metrics.pair_f_measure,
]
EDGES = {
    "empty": ([], []),
    "one_sample": ([3], [8]),
    "one_class_one_cluster": ([1, 1, 1], [0, 0, 0]),
    "one_class": ([1, 1, 1, 1], [0, 0, 1, 2]),
    "one_cluster": ([0, 0, 1, 2], [1, 1, 1, 1]),
    "singletons": (list(range(50)), list(range(50))),
    "singletons_against_one": (list(range(50)), [0] * 50),
    "singletons_against_classes": ([i // 5 for i in range(50)], list(range(50))),
    "renamed": ([0, 0, 1, 1, 2], [7, 7, -3, -3, 10**12]),
    "independent": ([0, 0, 1, 1], [0, 1, 0, 1]),
    "worse_than_chance": ([0, 0, 1, 1, 2, 2], [0, 1, 0, 2, 1, 2]),
    "negative_and_huge": ([-5, -5, 10**12, 10**12, 0], [2**62, 0, 2**62, 2**62, -(2**62)]),
}


def draw(n: int, n_classes: int, n_clusters: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    true = rng.integers(0, n_classes, n)
    pred = np.where(rng.random(n) < 0.5, true * 7 % n_clusters, rng.integers(0, n_clusters, n))
    return true, pred


def exact_expected_information(class_sizes: np.ndarray, cluster_sizes: np.ndarray) -> float:
    """By binomials of Python integers and 40 digits."""
    n = int(class_sizes.sum())
    with mpmath.workdps(40):
        total = mpmath.mpf(0)
        for a, b in itertools.product(class_sizes.tolist(), cluster_sizes.tolist()):
            for t in range(max(1, a + b - n), min(a, b) + 1):
                ways = mpmath.mpf(math.comb(a, t) * math.comb(n - a, b - t)) / math.comb(n, b)
                total += ways * t / n * mpmath.log(mpmath.mpf(n * t) / (a * b))
        return float(total)


def test_by_hand():
    true, pred = [0, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 2]
    # the table is [[2, 1, 0], [0, 2, 1]]: of 6 true pairs, and 4 found ones, 2 are in both
    found = metrics.evaluate(true, pred)
    assert found["clustering_accuracy"] == 4 / 6
    assert found["purity"] == 5 / 6
    assert found["pair_f_measure"] == 2 * 2 / (6 + 4)
    assert found["adjusted_rand_index"] == pytest.approx((2 - 6 * 4 / 15) / ((6 + 4) / 2 - 6 * 4 / 15), abs=1e-15)
    mutual = math.log(2) / 2 + math.log(4 / 3) / 3 + math.log(2 / 3) / 6
    cluster_entropy = math.log(6) / 6 + math.log(3) / 3 + math.log(2) / 2
    assert found["homogeneity"] == pytest.approx(mutual / math.log(2), abs=1e-15)
    assert found["completeness"] == pytest.approx(mutual / cluster_entropy, abs=1e-15)
    assert (found["n_samples"], found["n_classes"], found["n_clusters"]) == (6, 2, 3)
    assert metrics.label_map(true, pred) == {0: 0, 1: 1}


@pytest.mark.parametrize("shape", [(5, 2, 2), (300, 7, 30), (1797, 10, 10), (5000, 10, 12), (20_000, 100, 90)])
def test_equals_sklearn(shape):
    true, pred = draw(*shape)
    for ours, theirs in PEERS.items():
        assert abs(ours(true, pred) - theirs(true, pred)) <= TOLERANCE, ours.__name__
    table = contingency_matrix(true, pred)
    rows, columns = linear_sum_assignment(-table)
    assert metrics.clustering_accuracy(true, pred) == table[rows, columns].sum() / shape[0]
    assert metrics.purity(true, pred) == table.max(0).sum() / shape[0]


@pytest.mark.parametrize("method", ["arithmetic", "geometric", "min", "max"])
def test_means_of_the_entropies(method):
    true, pred = draw(500, 5, 9)
    for ours, theirs in list(PEERS.items())[:2]:
        wanted = theirs(true, pred, average_method=method)
        assert abs(ours(true, pred, average_method=method) - wanted) <= TOLERANCE
    with pytest.raises(ValueError, match="average_method must be one of"):
        metrics.normalized_mutual_info(true, pred, average_method="mean")


@pytest.mark.parametrize("beta", [0.0, 0.5, 2.0])
def test_weighted_f_measures(beta):
    true, pred = draw(500, 5, 9)
    wanted = peer.v_measure_score(true, pred, beta=beta)
    assert abs(metrics.v_measure(true, pred, beta=beta) - wanted) <= TOLERANCE
    together_true, together_pred = (np.equal.outer(v, v)[np.triu_indices(500, 1)] for v in (true, pred))
    wanted = peer.fbeta_score(together_true, together_pred, beta=beta)
    assert abs(metrics.pair_f_measure(true, pred, beta=beta) - wanted) <= TOLERANCE
    for score in (metrics.v_measure, metrics.pair_f_measure):
        with pytest.raises(ValueError, match="beta must be a finite number, at least 0, got -1"):
            score(true, pred, beta=-1)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 4), st.integers(0, 3)), max_size=30))
def test_random_labels_equal_sklearn(pairs):
    true, pred = [t for t, _ in pairs], [p for _, p in pairs]
    array_true, array_pred = np.array(true, dtype=int), np.array(pred, dtype=int)
    found = metrics.evaluate(true, pred)
    for ours, theirs in PEERS.items():
        value = ours(true, pred)
        assert abs(value - theirs(array_true, array_pred)) <= TOLERANCE, ours.__name__
        assert value == found[ours.__name__]
    for score in ALL_SCORES:
        assert score(true, pred) <= 1.0


@pytest.mark.parametrize("edge", EDGES)
def test_T40_edges_equal_sklearn(edge):
    true, pred = (np.array(labels, dtype=np.int64) for labels in EDGES[edge])
    for ours, theirs in PEERS.items():
        assert abs(ours(true, pred) - theirs(true, pred)) <= TOLERANCE, ours.__name__


@pytest.mark.parametrize("score", ALL_SCORES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("edge", ["empty", "one_sample", "one_class_one_cluster", "singletons", "renamed"])
def test_T40_equal_partitions_score_one(score, edge):
    assert score(*EDGES[edge]) == 1.0


def test_T40_more_pairs_than_int64():
    n = 2**33
    blocks = np.array([[n // 2, 0], [0, n // 2]])
    assert metrics.adjusted_rand_index(contingency=blocks) == 1.0
    mixed = np.array([[n // 4, n // 4], [n // 4, n // 4 + 8]])
    a, b = [n // 2, n // 2 + 8], [n // 2, n // 2 + 8]
    pairs_in_both = sum(math.comb(int(v), 2) for v in mixed.ravel())
    pairs_a, pairs_b = sum(math.comb(v, 2) for v in a), sum(math.comb(v, 2) for v in b)
    with mpmath.workdps(60):
        chance = mpmath.mpf(pairs_a) * pairs_b / math.comb(n + 8, 2)
        wanted = float((pairs_in_both - chance) / (mpmath.mpf(pairs_a + pairs_b) / 2 - chance))
    assert metrics.adjusted_rand_index(contingency=mixed) == pytest.approx(wanted, rel=1e-12)
    assert metrics.pair_f_measure(contingency=mixed) == pytest.approx(
        2 * pairs_in_both / (pairs_a + pairs_b), rel=1e-14
    )
    found = metrics.evaluate(contingency=mixed)
    assert found["n_samples"] == n + 8
    assert abs(found["adjusted_mutual_info"]) < 1e-9


@pytest.mark.parametrize("sizes", [([1, 1], [1, 1]), ([3, 4], [5, 1, 1]), ([200, 300, 17], [400, 100, 16, 1])])
def test_expected_information_is_exact(sizes):
    a, b = (np.array(side) for side in sizes)
    exact = exact_expected_information(a, b)
    assert expected_mutual_information_numba(a, b) == pytest.approx(exact, rel=1e-14)
    assert expected_mutual_information_reference(a, b) == pytest.approx(exact, rel=1e-10)


def test_expected_information_at_a_hundred_million_samples():
    a, b = np.array([10**8 - 3, 3]), np.array([10**8 - 900, 900])
    exact = exact_expected_information(a, b)
    assert expected_mutual_information_numba(a, b) == pytest.approx(exact, abs=1e-15)


def test_expected_information_does_not_depend_on_threads(n_threads):
    rng = np.random.default_rng(0)
    a, b = rng.integers(1, 90, 100), rng.integers(1, 90, 100)
    a[0] += max(0, b.sum() - a.sum())
    b[0] += max(0, a.sum() - b.sum())
    got = expected_mutual_information_numba(a, b)
    torch.set_num_threads(1)
    assert got == expected_mutual_information_numba(a, b)
    assert got == pytest.approx(expected_mutual_information_reference(a, b), rel=1e-10)


@pytest.mark.parametrize(("n_classes", "n_clusters"), [(3, 8), (8, 3), (1, 5), (5, 1)])
def test_T41_rectangular_matching(n_classes, n_clusters):
    true, pred = draw(200, n_classes, n_clusters)
    table = contingency_matrix(true, pred)
    columns = range(n_clusters)
    small = min(n_classes, n_clusters)
    best = max(
        sum(table[i, j] for i, j in zip(rows, chosen))
        for rows in itertools.combinations(range(n_classes), small)
        for chosen in itertools.permutations(columns, small)
    )
    assert metrics.clustering_accuracy(true, pred) == best / 200
    found = metrics.label_map(true, pred)
    assert len(set(found.values())) == len(found) == small
    assert sum(found.get(p) == t for t, p in zip(true.tolist(), pred.tolist())) == best


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([[1.0, float("nan")], [0.0, 1.0]], "contingency contains NaN: 1 such entries"),
        ([[1.0, float("inf")], [0.0, 1.0]], "contingency contains infinity or a value too large"),
        ([[1.5, 0.0], [0.0, 1.0]], "contingency must hold integers, got the fraction 1.5"),
        ([[1, -2], [0, 1]], "contingency holds negative counts"),
        ([1, 2], r"contingency must be 2-D, of shape \(n_classes, n_clusters\), got shape \(2,\)"),
    ],
)
@pytest.mark.parametrize("score", [metrics.clustering_accuracy, metrics.label_map, metrics.evaluate])
def test_T41_bad_counts(score, bad, message):
    with pytest.raises(ValueError, match=message):
        score(contingency=bad)


@pytest.mark.parametrize("score", ALL_SCORES, ids=lambda f: f.__name__)
def test_T41_bad_labels(score):
    with pytest.raises(ValueError, match="labels_pred contains NaN"):
        score([0, 1], [0.0, float("nan")])
    with pytest.raises(ValueError, match="labels_true contains infinity"):
        score([0.0, float("inf")], [0, 1])
    with pytest.raises(ValueError, match="labels_true must be 1-D"):
        score([[0, 1]], [0, 1])
    with pytest.raises(ValueError, match="labels_true has 2 entries but labels_pred has 1"):
        score([0, 1], [0])
    with pytest.raises(TypeError, match="labels_true and labels_pred must both be given"):
        score([0, 1])
    with pytest.raises(TypeError, match="not both"):
        score([0], [0], contingency=[[1]])


def test_T41_counts_near_2_to_53():
    top = 2**53 - 1
    counts = np.array([[top, top - 1], [top - 1, top - 3]])  # off the diagonal is larger by 0; then by 1
    found = scores.best_matching(metrics.external._summary(None, None, counts))[2]
    assert int(found.sum()) == max(top + top - 3, 2 * (top - 1))
    counts[1, 1] = top - 1
    found = scores.best_matching(metrics.external._summary(None, None, counts))[2]
    assert int(found.sum()) == 2 * top - 1


@pytest.mark.parametrize("cells_solved_dense", [0, 10**6])
@pytest.mark.parametrize("density", [0.05, 0.15, 0.6])
@pytest.mark.parametrize("shape", [(30, 40), (40, 30), (35, 35)])
def test_T41_ties_cost_what_scipy_says(cells_solved_dense, density, shape, monkeypatch):
    monkeypatch.setattr(matching, "CELLS_SOLVED_DENSE", cells_solved_dense)
    rng = np.random.default_rng(1)
    counts = rng.integers(0, 4, shape) * (rng.random(shape) < density)
    wanted = counts[linear_sum_assignment(counts, maximize=True)].sum()
    rows, columns = counts.nonzero()
    values = counts[rows, columns]
    for found in (
        matching.best_cells(rows, columns, values, shape),
        matching._solved(rows, columns, values),
    ):
        assert values[found].sum() == wanted
        assert len(set(rows[found].tolist())) == len(set(columns[found].tolist())) == len(found)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 6).flatmap(lambda k: st.lists(st.lists(st.integers(0, 4), min_size=k, max_size=k), max_size=6)))
def test_T41_matching_at_once_is_optimal(table):
    counts = np.array(table, dtype=np.int64).reshape(len(table), -1 if table else 1)
    wanted = counts[linear_sum_assignment(counts, maximize=True)].sum()
    rows, columns = counts.nonzero()
    found = matching.best_cells(rows, columns, counts[rows, columns], counts.shape)
    assert counts[rows, columns][found].sum() == wanted


def test_ties_of_equal_cells():
    assert metrics.clustering_accuracy(contingency=np.ones((4, 6), dtype=int)) == 4 / 24


def test_thousands_of_classes_need_no_dense_table():
    rng = np.random.default_rng(0)
    n_ids = 100_000
    true = rng.permutation(n_ids).repeat(3)
    pred = np.where(rng.random(len(true)) < 0.999, true, true // 2)
    found = metrics.evaluate(true, pred)
    table = contingency_matrix(true, pred, sparse=True)
    assert found["n_classes"] == n_ids
    assert found["purity"] == table.max(0).sum() / len(true)
    for ours, theirs in PEERS.items():
        if ours is not metrics.adjusted_mutual_info:  # scikit-learn's takes hours here
            assert abs(found[ours.__name__] - theirs(true, pred)) <= TOLERANCE, ours.__name__
    assert 0.99 < found["adjusted_mutual_info"] < found["normalized_mutual_info"]
    assert found["purity"] >= found["clustering_accuracy"] > 0.99


def test_tables_and_chunks_give_the_scores_of_the_labels():
    true, pred = draw(3000, 12, 15)
    table = contingency_table(true[:1000], pred[:1000], n_classes=20, n_clusters=15)
    table = table + contingency_table(true[1000:], pred[1000:], n_classes=20, n_clusters=15)
    assert metrics.evaluate(contingency=table) == metrics.evaluate(true, pred)
    assert metrics.evaluate(contingency=table.to_sparse()) == metrics.evaluate(true, pred)
    assert metrics.label_map(contingency=table) == metrics.label_map(true, pred)


def test_arrays_tensors_and_lists_agree():
    true, pred = draw(400, 5, 6)
    wanted = metrics.evaluate(true, pred)
    assert metrics.evaluate(true.tolist(), pred.astype(np.int32)) == wanted
    assert metrics.evaluate(torch.from_numpy(true), torch.from_numpy(pred).float()) == wanted
    assert metrics.evaluate(pred, true)["normalized_mutual_info"] == pytest.approx(
        wanted["normalized_mutual_info"], abs=1e-15
    )


def test_scores_do_not_depend_on_threads(n_threads):
    true, pred = draw(200_000, 40, 30)
    found = metrics.evaluate(true, pred)
    torch.set_num_threads(1)
    assert found == metrics.evaluate(true, pred)


@pytest.mark.gpu
def test_labels_on_the_gpu():
    true, pred = draw(10_000, 12, 15)
    assert metrics.evaluate(true, torch.from_numpy(pred).cuda()) == metrics.evaluate(true, pred)

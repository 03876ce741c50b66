"""Passes with bounds are plain passes, bit for bit."""

import numpy as np
import pytest
import torch

from fastdc import KMeans
from fastdc.cluster.lloyd import lloyd
from fastdc.kernels.kmeans import LloydSteps, kmeans_plusplus, kmeans_step
from fastdc.kernels.kmeans.bounds import FEWEST_CENTERS
from fastdc.kernels.kmeans.restless import Forecast


def make_points(kind, n, d, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator)
    if kind == "groups":
        x = x + 4 * torch.randn(30, d, generator=generator)[torch.randint(30, (n,), generator=generator)]
    if kind == "duplicates":  # rows as far from one center as from another
        x = x[: -(-n // 50)].repeat(50, 1)[:n].round()
    if kind == "offset":
        x = x + 1e4
    return x.to(dtype)


def assert_same_runs(x, centers, weight=None, max_iter=40):
    records = {name: [] for name in ("lloyd", "bounds", "auto")}
    found = {
        name: lloyd(x, centers, weight, max_iter=max_iter, tol=0.0, algorithm=name, report=records[name].append)
        for name in records
    }
    for name in ("bounds", "auto"):
        assert torch.equal(found[name].labels, found["lloyd"].labels)
        assert torch.equal(found[name].centers, found["lloyd"].centers)
        assert found[name].inertia == found["lloyd"].inertia
        assert records[name] == records["lloyd"]


@pytest.mark.parametrize("kind", ["normal", "groups", "duplicates", "offset"])
@pytest.mark.parametrize(("n", "k", "d"), [(900, 2, 9), (1500, 40, 17), (1300, 130, 64), (700, 16, 200)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_same_bits(kind, n, k, d, dtype):
    x = make_points(kind, n, d, dtype if kind != "offset" or dtype != torch.float16 else torch.bfloat16)
    assert_same_runs(x, kmeans_plusplus(x, k, random_state=0).centers)


def test_same_bits_with_weights_over_many_blocks():
    x = make_points("groups", 9000, 24)
    weight = torch.rand(9000, generator=torch.Generator().manual_seed(1))
    assert_same_runs(x, x[:50].clone(), weight)


def test_same_bits_with_few_features_and_with_empty_clusters():
    assert_same_runs(make_points("groups", 2000, 3), make_points("groups", 40, 3, seed=1))
    assert_same_runs(make_points("groups", 2000, 12), make_points("groups", 60, 12, seed=1) * 3)
    assert_same_runs(make_points("duplicates", 300, 12), make_points("duplicates", 60, 12, seed=1), max_iter=8)


def test_rows_that_are_not_finite():
    x = make_points("groups", 1200, 20)
    x[3, 1], x[4, 2], x[5] = torch.nan, torch.inf, 3e19
    assert_same_runs(x, x[100:130].clone(), max_iter=12)


def test_T44_threads_do_not_change_a_bit():
    x = make_points("groups", 9000, 24)
    runs = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        runs.append(lloyd(x, x[:50].clone(), None, max_iter=15, tol=0.0, algorithm="bounds"))
    assert torch.equal(runs[0].centers, runs[1].centers)
    assert runs[0].history == runs[1].history


def test_centers_that_jump():
    x = make_points("groups", 1500, 20)
    steps, labels = LloydSteps(x, None, "bounds"), None
    for seed in range(6):
        centers = x[torch.randperm(1500, generator=torch.Generator().manual_seed(seed))[:32]].clone()
        expected = kmeans_step(x, centers, previous_labels=labels)
        got = steps(centers, labels)
        assert all(torch.equal(a, b) for a, b in zip(got, expected))
        labels = got.labels


def run_steps(steps, centers, n_steps):
    labels = None
    for _ in range(n_steps):
        step = steps(centers, labels)
        labels, centers = step.labels, (step.sums / step.counts.clamp(min=1)[:, None]).float()
    return centers, labels


def test_distances_are_skipped_and_bounds_rest_where_they_do_not_pay():
    x = make_points("groups", 40_000, 16)
    steps = LloydSteps(x, None)
    centers, labels = run_steps(steps, kmeans_plusplus(x, 64, random_state=0).centers, 12)
    steps(centers, labels)
    assert steps.memory.share < 0.5
    steps(make_points("normal", 64, 16, seed=2), labels)  # all centers move far
    assert steps.memory.lower is None
    small = LloydSteps(x[:4000], None)
    run_steps(small, centers, 6)
    assert small.memory is None


def test_restless_centers_are_looked_at_by_all_rows_and_come_home():
    """Three centers jump at every second pass: forecast as restless, and every pass is a plain one's equal."""
    x = make_points("groups", 3000, 24)
    steps = LloydSteps(x, None, "bounds")
    centers, labels = run_steps(steps, kmeans_plusplus(x, 96, random_state=0).centers, 20)
    n_restless = []
    for i in range(8):
        moved = centers.clone()
        if i % 2:
            moved[[5, 40, 77]] = x[[i, 100 * i, 300 * i]]
        expected = kmeans_step(x, moved, previous_labels=labels)
        got = steps(moved, labels)
        assert all(torch.equal(a, b) for a, b in zip(got, expected))
        labels = got.labels
        n_restless.append(int(steps.memory.restless.sum()))
    assert max(n_restless) >= 3
    assert min(n_restless) < 96 / 4


def test_the_forecast_counts_the_groups_that_moves_reach():
    """Rows on a line, own center at distance 0, one other group at 10: moves of 2 reach it in 5 passes."""
    centers = torch.tensor([[0.0], [10.0], [11.0], [-1e6]])
    forecast = Forecast(torch.zeros(64, 1), np.array([0, 1, 1, 2]))
    before = centers + torch.tensor([[0.0], [2.0], [1.0], [0.0]])
    share, restless = forecast.choose(centers, before, np.zeros(4, np.bool_))
    assert share == pytest.approx(0.2 * 2 / 4)
    assert not restless.any()
    lone = centers + torch.tensor([[0.0], [100.0], [0.0], [0.0]])
    share, restless = forecast.choose(centers, lone, np.zeros(4, np.bool_))
    assert share == pytest.approx(1 / 4)
    assert restless.tolist() == [False, True, False, False]
    assert np.isnan(Forecast(torch.full((64, 1), torch.nan), np.zeros(4, np.int64)).choose(centers, lone, restless)[0])


def test_estimator():
    x = make_points("groups", 1000, 12).numpy()
    models = [KMeans(FEWEST_CENTERS, random_state=0, algorithm=name).fit(x) for name in ("lloyd", "bounds")]
    assert np.array_equal(models[0].cluster_centers_, models[1].cluster_centers_)
    with pytest.raises(ValueError, match=r"algorithm must be one of \('auto', 'lloyd', 'bounds'\), got 'elkan'"):
        KMeans(3, algorithm="elkan").fit(x)

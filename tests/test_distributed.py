"""KMeans over rows that processes share: the bits of one process; what fails on one rank ends all."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from sklearn.base import clone

from fastdc import KMeans
from fastdc.cluster import sharded
from fastdc.cluster.exact import ExactSum, exponent_of, fixed_sum
from fastdc.data import as_row_source
from fastdc.distributed import Blocks, PartRows, Ranks, own_rows
from fastdc.kernels._group import Shares
from tests import distributed_cases as cases
from tests.test_kmeans_estimator import make_blobs

needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch has no gloo"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What 2 and 3 processes saved."""
    path = tmp_path_factory.mktemp("ranks")
    worlds = [torch.multiprocessing.spawn(cases.work, (size, str(path)), size, join=False) for size in (2, 3)]
    for world in worlds:
        while not world.join():
            pass
    return path


@pytest.fixture(scope="module")
def alone():
    """What one process finds."""
    before = sharded.ROWS_CPU, sharded.MOST_ROWS
    cases.small_blocks()
    yield cases.solve(0, (cases.N,), None)
    sharded.ROWS_CPU, sharded.MOST_ROWS = before


def loaded(folder, size):
    return [torch.load(folder / f"{size}-{rank}.pt", weights_only=False) for rank in range(size)]


@needs_gloo
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", list(cases.problems()))
def test_T44_any_number_of_processes_gives_the_same_bits(folder, alone, size, name):
    expected = alone[name]
    for i, counts in enumerate(cases.SHARES[size]):
        ranks = [found[i][name] for found, _, _ in loaded(folder, size)]
        assert [len(found["labels"]) for found in ranks] == list(counts)
        assert np.array_equal(np.concatenate([found["labels"] for found in ranks]), expected["labels"])
        for found in ranks:
            assert np.array_equal(found["centers"], expected["centers"])
            assert found["centers"].dtype == expected["centers"].dtype
            assert found["inertia"] == expected["inertia"]
            assert found["history"] == expected["history"]


@needs_gloo
@pytest.mark.parametrize("size", [2, 3])
def test_each_rank_reads_its_part_of_a_source(folder, size):
    parts = [seen for _, seen, _ in loaded(folder, size)]
    assert np.array_equal(np.concatenate(parts)[:, 0], np.arange(10.0))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@needs_gloo
@pytest.mark.parametrize(
    ("name", "on_the_rank", "on_the_other"),
    [
        ("NaN", "ValueError: Input X contains NaN. 1 entry, the first in row 550, column 1", "rank 1 of 2 failed: "),
        ("NaN in a source", "ValueError: Input X contains NaN.", "rank 1 of 2 failed: ValueError: Input X contains"),
        ("features", "ValueError: rank 1 has 2 features in X, rank 0 has 3; all ranks must agree", "rank 1 has 2"),
        ("dtype", "ValueError: rank 1 has 1 as the dtype of X", "rank 1 has 1 as the dtype"),
        ("weights on one", "ValueError: rank 1 has 1 sample_weight: given (1) or not (0)", "rank 1 has 1 sample"),
        ("negative weight", "ValueError: Negative values in data", "rank 1 of 2 failed: ValueError: Negative values"),
        ("all weights zero", "ValueError: Sample weights must contain", "ValueError: Sample weights must contain"),
        ("parameters", "ValueError: rank 1 has", "ValueError: rank 1 has"),
        ("masked", "TypeError: X is a masked array", "RuntimeError: rank 1 of 2 failed: TypeError: X is a masked"),
        ("reading", "OSError: the disk is gone", "RuntimeError: rank 1 of 2 failed: OSError: the disk is gone"),
        ("callback", "KeyError: 'a callback'", "RuntimeError: rank 1 of 2 failed: KeyError: 'a callback'"),
        ("too many clusters", "ValueError: n_clusters=901 must be at most n_samples=900", "ValueError: n_clusters=901"),
        ("no rows at all", "ValueError: X of all ranks has 0 samples", "ValueError: X of all ranks has 0 samples"),
        ("overflow", "ValueError", "ValueError"),
    ],
)
def test_T52_an_error_on_one_rank_is_raised_on_all(folder, name, on_the_rank, on_the_other):
    (_, _, other), (_, _, rank) = loaded(folder, 2)
    assert rank[name][0].startswith(on_the_rank)
    assert on_the_other in other[name][0]
    assert max(rank[name][1], other[name][1]) < cases.TIMEOUT


@needs_gloo
def test_T52_the_group_works_on_after_errors(folder):
    expected = KMeans(4, random_state=0, deterministic=True).fit(make_blobs(900, 4, 3))
    found = [faults["afterwards"] for _, _, faults in loaded(folder, 2)]
    assert np.array_equal(np.concatenate([each["labels"] for each in found]), expected.labels_)
    assert [faults["stopped by one"] for _, _, faults in loaded(folder, 2)] == [1, 1]


@needs_gloo
@pytest.mark.parametrize(("how", "seconds"), [("killed", 20), ("hung", 20)])
def test_T52_a_rank_that_dies_or_hangs_ends_the_other(tmp_path, how, seconds):
    begin = time.monotonic()
    world = torch.multiprocessing.spawn(cases.die, (2, str(tmp_path), how), 2, join=False)
    try:
        world.processes[0].join(timeout=60)
        assert world.processes[0].exitcode == 0
    finally:
        for process in world.processes:
            process.kill()
    said = (tmp_path / f"{how}-0.txt").read_text()
    assert said.startswith("rank 0 of 2 got no answer: another process has ended, or hung for longer than the time-out")
    assert time.monotonic() - begin < 60


def test_T44_deterministic_gives_the_bits_of_any_source_and_number_of_threads(alone, set_threads):
    x = make_blobs(2000, 12, 9, spread=1.0)
    expected = KMeans(12, random_state=0, deterministic=True).fit(x)
    for threads in (1, 2, 3):
        set_threads(threads)
        for source in (x, cases.Read(x), as_row_source(np.asfortranarray(x)), torch.from_numpy(x)):
            found = KMeans(12, random_state=0, deterministic=True).fit(source)
            assert np.array_equal(found.labels_, expected.labels_)
            assert np.array_equal(found.cluster_centers_, expected.cluster_centers_)
            assert found.history_ == expected.history_


@pytest.mark.parametrize("weighted", [False, True])
def test_deterministic_gives_the_result_of_plain_sums(alone, weighted):
    x = make_blobs(3001, 12, 9, spread=1.0)
    weight = np.random.default_rng(1).random(3001) if weighted else None
    expected = KMeans(12, init=x[:12]).fit(x, sample_weight=weight)
    found = KMeans(12, init=x[:12], deterministic=True).fit(x, sample_weight=weight)
    assert np.array_equal(found.labels_, expected.labels_)
    assert found.inertia_ == pytest.approx(expected.inertia_, rel=1e-12)
    assert np.allclose(found.cluster_centers_, expected.cluster_centers_, rtol=1e-6)


def test_an_outlier_takes_no_digits_from_other_clusters(alone):
    x = make_blobs(1000, 3, 4)
    x[0] = 1e18
    init = np.vstack([x[0], x[10], x[20]])
    expected, found = (KMeans(3, init=init, tol=0, deterministic=yes).fit(x) for yes in (False, True))
    assert np.array_equal(found.labels_, expected.labels_)
    assert np.allclose(found.cluster_centers_, expected.cluster_centers_, rtol=1e-6)


def test_rows_of_several_ranks_make_whole_blocks():
    for counts in ([5, 3, 9], [0, 17], [16, 1], [1] * 17, [3, 0, 0, 14], [0, 0, 17, 0]):
        starts = np.cumsum([0, *counts])
        worked = []
        for rank in range(len(counts)):
            blocks = Blocks(Shares(counts, rank), 4)
            borrowed = sum(rows for _, borrower, rows in blocks.loans() if borrower == rank)
            worked += [[blocks.first, blocks.first + counts[rank] - blocks.lead + borrowed]]
            assert blocks.lead == 0 or starts[rank] % 4
        worked = [part for part in worked if part[0] < part[1]]
        assert worked[0][0] == 0
        assert worked[-1][1] == 17
        assert all(before[1] == after[0] and after[0] % 4 == 0 for before, after in itertools.pairwise(worked))


def test_exact_sums():
    random = np.random.default_rng(0)
    numbers = random.standard_normal((500, 3, 7)) * 10.0 ** random.integers(-9, 9, (500, 3, 7))
    bounds = exponent_of(np.abs(numbers).max(axis=(0, 1))) + exponent_of(len(numbers))
    sums = []
    for order in (np.arange(500), random.permutation(500)):
        parts = [ExactSum((3, 7), bounds, torch.device("cpu")) for _ in range(3)]
        for i, row in enumerate(order):
            parts[i % 3].add(torch.from_numpy(numbers[row]))
        parts[0].limbs += parts[1].limbs + parts[2].limbs
        sums.append(parts[0].value())
    assert torch.equal(*sums)
    assert np.allclose(sums[0].numpy(), numbers.astype(np.longdouble).sum(axis=0).astype(float), rtol=1e-15)


def test_fixed_sum_is_that_of_any_number_of_threads(n_threads):
    x = torch.randn(100_003, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.set_num_threads(1)
    expected = fixed_sum(x)
    torch.set_num_threads(n_threads)
    assert fixed_sum(x) == expected
    assert float(expected) == pytest.approx(float(x.sum()), rel=1e-12)
    assert fixed_sum(x[:1]) == x[0]


def test_a_part_of_a_source():
    x = make_blobs(100)
    part = PartRows(cases.Read(x), 10, 60)
    assert np.array_equal(np.asarray(part), x[10:60])
    assert np.array_equal(PartRows(as_row_source(x), 10, 60).view(3, 9), x[13:19])
    assert len(PartRows(as_row_source(x), 10, 10)) == 0
    assert own_rows(as_row_source(x), None).shape == x.shape
    with pytest.raises(ValueError, match=r"start and stop must be in order within \[0, 100\], got 5 and 101"):
        PartRows(as_row_source(x), 5, 101)


def test_bad_groups():
    x = make_blobs(50)
    for group in ("world", 3):
        with pytest.raises(RuntimeError, match=r"group needs torch.distributed: call"):
            KMeans(2, group=group).fit(x)
    assert clone(KMeans(2, group="world")).group == "world"
    assert (Ranks().rank, Ranks().size) == (0, 1)

"""Estimators over rows that processes share: the bits of one process; what fails on one rank ends all."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone

from fastdc import KMeans, cli
from fastdc.cluster.blocks import Blocks
from fastdc.cluster.exact import ExactSum, exponent_of, fixed_sum
from fastdc.data import as_row_source
from fastdc.distributed import PartRows, Ranks, own_rows, save_rows
from fastdc.kernels._group import Shares
from tests import distributed_cases as cases
from tests.test_kmeans_estimator import make_blobs

needs_gloo = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch has no gloo"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What groups of 2 and of 3 processes saved."""
    path = tmp_path_factory.mktemp("ranks")
    world = torch.multiprocessing.spawn(cases.work, (str(path),), 3, join=False)
    for process in world.processes:
        process.join(timeout=240)
        process.kill()
    return path


@pytest.fixture
def small_blocks(monkeypatch):
    cases.small_blocks(monkeypatch.setattr)


@pytest.fixture(scope="module")
def alone():
    """What one process finds."""
    with pytest.MonkeyPatch.context() as patch:
        cases.small_blocks(patch.setattr)
        return cases.solve(0, (cases.N,), None)


def loaded(folder, size, what):
    return [torch.load(folder / f"{size}-{rank}.pt", weights_only=False)[what] for rank in range(size)]


@needs_gloo
@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", list(cases.problems()))
def test_T44_any_number_of_processes_gives_the_same_bits(folder, alone, size, name):
    expected = alone[name]
    for i, counts in enumerate(cases.SHARES[size]):
        ranks = [found[i][name] for found in loaded(folder, size, "solutions")]
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
    parts = loaded(folder, size, "own")
    assert np.array_equal(np.concatenate(parts)[:, 0], np.arange(10.0))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@needs_gloo
@pytest.mark.parametrize("size", [2, 3])
def test_each_rank_writes_its_rows_of_one_file(folder, size):
    expected = np.concatenate([np.full((rank + 1, 2), rank) for rank in range(size)])
    assert np.array_equal(np.load(folder / f"{size}.npy"), expected)
    assert not list(folder.glob(".*.part"))


@needs_gloo
@pytest.mark.parametrize("size", [2, 3])
def test_T49_an_interrupted_fit_goes_on_with_any_number_of_processes(folder, alone, small_blocks, size):
    expected = alone["weights"]
    stopped = loaded(folder, size, "interrupted")
    assert np.array_equal(np.concatenate([each["resumed"]["labels"] for each in stopped]), expected["labels"])
    for each in stopped:
        assert each["resumed"]["history"] == expected["history"]
        assert "CheckpointError" in each["other seed"]
        assert "is the checkpoint of a run; go on with it" in each["not resumed"]
    model, x, weight, _ = cases.problems()["weights"]
    model.set_params(deterministic=True)
    found = cases.outcome(model.fit(x, sample_weight=weight, checkpoint=folder / f"run-{size}-copy", resume=True))
    assert np.array_equal(found["labels"], expected["labels"])
    assert np.array_equal(found["centers"], expected["centers"])
    assert found["history"] == expected["history"]


@needs_gloo
def test_the_command_under_torchrun(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", make_blobs(70_001, 12, 9, spread=1.0))
    arguments = ["cluster", "x.npy", "--k", "12", "--json", "--centers", "centers.npy"]
    assert cli.main([*arguments, "--deterministic", "--out", "alone.npy"]) == 0
    alone, centers = json.loads(capsys.readouterr().out), np.load("centers.npy")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "fastdc"]
    done = subprocess.run([*torchrun, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert np.array_equal(np.load("labels.npy"), np.load("alone.npy"))
    assert np.array_equal(np.load("centers.npy"), centers)
    assert report["processes"] == 2
    for name in ("n_samples", "cluster_sizes", "n_iter", "inertia"):
        assert report[name] == alone[name]


def as_started_by_torchrun(monkeypatch):
    """The environment of the only process of a group."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started = {"TORCHELASTIC_RUN_ID": "x", "RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": port}
    for name, value in (started | {"MASTER_ADDR": "127.0.0.1"}).items():
        monkeypatch.setenv(name, str(value))


@needs_gloo
@pytest.mark.parametrize("method", ["minibatch", "gmm"])
def test_the_command_in_a_group_of_one(tmp_path, monkeypatch, capsys, method):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", make_blobs(2000, 5, 4))
    arguments = ["cluster", "x.npy", "--k", "5", "--method", method, "--json", "--centers", "centers.npy"]
    found = []
    for more in (["--deterministic"], []):
        if not more:
            as_started_by_torchrun(monkeypatch)
        assert cli.main([*arguments, *more]) == 0
        report = json.loads(capsys.readouterr().out)
        found.append((np.load("labels.npy"), np.load("centers.npy"), report["cluster_sizes"], report["n_iter"]))
    assert not torch.distributed.is_initialized()
    for alone, in_group in zip(*found):
        assert np.array_equal(alone, in_group)


@needs_gloo
def test_the_command_under_torchrun_refuses(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", make_blobs(50))
    for arguments, message in (
        (["--method", "balanced"], "torchrun is for --method kmeans, minibatch, gmm, the deep methods, got --method b"),
        (["--out", "labels.csv"], "--out labels.csv must end in .npy, where every process writes its labels"),
    ):
        as_started_by_torchrun(monkeypatch)
        assert cli.main(["cluster", "x.npy", "--k", "2", *arguments]) == 2
        assert message in capsys.readouterr().err
        assert not torch.distributed.is_initialized()


def test_rows_of_one_process_are_saved_whole_or_not_at_all(tmp_path):
    rows = np.arange(12.0).reshape(4, 3)
    save_rows(tmp_path / "x.npy", rows, None)
    assert np.array_equal(np.load(tmp_path / "x.npy"), rows)
    with pytest.raises(FileNotFoundError):
        save_rows(tmp_path / "no" / "x.npy", rows, None)
    assert [file.name for file in tmp_path.iterdir()] == ["x.npy"]


@needs_gloo
@pytest.mark.parametrize(
    ("name", "on_the_rank", "on_the_other"),
    [
        ("NaN", "ValueError: Input X contains NaN. 1 entry, the first in row 550, column 1", "rank 1 of 2 failed: "),
        ("NaN in a source", "ValueError: Input X contains NaN.", "rank 1 of 2 failed: ValueError: Input X contains"),
        (
            "features",
            "ValueError: the number of features of X is 2 on rank 1 and 3 on rank 0; all",
            "features of X is 2",
        ),
        ("dtype", "ValueError: the dtype of X is float64 on rank 1 and float32 on rank 0", "dtype of X is float64"),
        ("weights on one", "ValueError: sample_weight is given on rank 1 and None on rank 0", "is given on rank 1"),
        ("negative weight", "ValueError: Negative values in data", "rank 1 of 2 failed: ValueError: Negative values"),
        ("all weights zero", "ValueError: Sample weights must contain", "ValueError: Sample weights must contain"),
        ("parameters", "ValueError: a digest of n_clusters, init", "ValueError: a digest of n_clusters, init"),
        ("masked", "TypeError: X is a masked array", "RuntimeError: rank 1 of 2 failed: TypeError: X is a masked"),
        ("reading", "OSError: the disk is gone", "RuntimeError: rank 1 of 2 failed: OSError: the disk is gone"),
        ("callback", "KeyError: 'a callback'", "RuntimeError: rank 1 of 2 failed: KeyError: 'a callback'"),
        ("too many clusters", "ValueError: n_clusters=901 must be at most n_samples=900", "ValueError: n_clusters=901"),
        ("no rows at all", "ValueError: X of all ranks has 0 samples", "ValueError: X of all ranks has 0 samples"),
        ("overflow", "ValueError", "ValueError"),
        ("mixture, NaN", "ValueError: Input X contains NaN. 1 entry, the first in row 550, column 1", "rank 1 of 2 f"),
        (
            "mixture, reading",
            "OSError: the disk is gone",
            "RuntimeError: rank 1 of 2 failed: OSError: the disk is gone",
        ),
        (
            "mixture, parameters",
            "ValueError: a digest of n_components, covariance_type, tol",
            "a digest of n_components",
        ),
        ("mixture, overflow", "ValueError: ", "ValueError: "),
        ("mini-batch, NaN", "ValueError: Input X contains NaN. 1 entry, the first in row 550, column 1", "rank 1 of 2"),
        ("mini-batch, reading", "OSError: the disk is gone", "RuntimeError: rank 1 of 2 failed: OSError: the disk is"),
        (
            "mini-batch, parameters",
            "ValueError: a digest of n_clusters, init, n_init, max_iter, batch_size",
            "a digest",
        ),
    ],
)
def test_T52_an_error_on_one_rank_is_raised_on_all(folder, name, on_the_rank, on_the_other):
    other, rank = loaded(folder, 2, "faults")
    assert rank[name][0].startswith(on_the_rank)
    assert on_the_other in other[name][0]
    assert max(rank[name][1], other[name][1]) < cases.TIMEOUT


@needs_gloo
def test_T52_the_group_works_on_after_errors(folder, small_blocks):
    expected = KMeans(4, random_state=0, deterministic=True).fit(make_blobs(900, 4, 3))
    found = [faults["afterwards"] for faults in loaded(folder, 2, "faults")]
    assert np.array_equal(np.concatenate([each["labels"] for each in found]), expected.labels_)
    assert [faults["stopped by one"] for faults in loaded(folder, 2, "faults")] == [1, 1]


@needs_gloo
def test_T52_a_rank_that_dies_or_hangs_ends_the_others(folder):
    said = "RuntimeError: rank {} of {} got no answer: another process has ended, or hung for longer than the time-out"
    message, seconds = loaded(folder, 2, "hung")[0]
    assert message.startswith(said.format(0, 2))
    assert seconds < cases.TIMEOUT
    for rank in (0, 1):
        message, seconds = torch.load(folder / f"killed-{rank}.pt")
        assert message.startswith(said.format(rank, 3))
        assert seconds < cases.TIMEOUT
    assert not (folder / "killed-2.pt").exists()


def test_T44_deterministic_gives_the_bits_of_any_source_and_number_of_threads(small_blocks, set_threads):
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
def test_deterministic_gives_the_result_of_plain_sums(small_blocks, weighted):
    x = make_blobs(3001, 12, 9, spread=1.0)
    weight = np.random.default_rng(1).random(3001) if weighted else None
    expected = KMeans(12, init=x[:12]).fit(x, sample_weight=weight)
    found = KMeans(12, init=x[:12], deterministic=True).fit(x, sample_weight=weight)
    assert np.array_equal(found.labels_, expected.labels_)
    assert found.inertia_ == pytest.approx(expected.inertia_, rel=1e-12)
    assert np.allclose(found.cluster_centers_, expected.cluster_centers_, rtol=1e-6)


def test_an_outlier_takes_no_digits_from_other_clusters(small_blocks):
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

"""A fit that is interrupted and resumed gives the result of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from fastdc import KMeans, SphericalKMeans, cli
from fastdc.cluster import checkpoints
from fastdc.data import as_row_source
from fastdc.persistence import CheckpointError, write_checkpoint
from tests.checkpoint_cases import fit, same
from tests.test_kmeans_estimator import make_blobs


@pytest.fixture(autouse=True)
def _written_each_iteration(monkeypatch):
    monkeypatch.setattr(checkpoints, "SECONDS", 0.0)


def interrupted_at(iteration, run=1, error=KeyboardInterrupt):
    def callback(record):
        if (record["run"], record["iteration"]) == (run, iteration):
            raise error

    return [callback]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork to kill a process half-way")
def test_T50_killed_during_a_run_or_at_any_write_it_resumes_to_the_same_result(tmp_path):
    command = [sys.executable, "-m", "tests.checkpoint_cases", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "all resumed" in done.stdout


@pytest.mark.parametrize("kind", [np.asarray, as_row_source, torch.from_numpy])
@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_T49_an_interrupt_leaves_a_checkpoint(tmp_path, monkeypatch, kind, seconds):
    monkeypatch.setattr(checkpoints, "SECONDS", seconds)
    expected = fit(None, kind=kind)
    for run, iteration in ((1, 4), (2, 3)):
        folder = tmp_path / f"{run}"
        with pytest.raises(KeyboardInterrupt):
            fit(folder, callbacks=interrupted_at(iteration, run), kind=kind)
        assert [file.name for file in folder.iterdir()] == [checkpoints.FILE]
        seen: list[dict] = []
        assert same(fit(folder, resume=True, callbacks=[seen.append], kind=kind), expected)
        assert (seen[0]["run"], seen[0]["iteration"]) == (run, iteration)  # the one that had not been kept


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("init", ["random", "rows"])
def test_weights_empty_clusters_and_exact_sums(tmp_path, weighted, init):
    x = make_blobs(700, 8, 5, spread=0.5)
    weight = np.random.default_rng(0).random(700) if weighted else None
    start = np.vstack([x[:6], np.full((2, 5), 1e3, np.float32)]) if init == "rows" else init
    for deterministic in (False, True):
        options = {"init": start, "tol": 0, "random_state": 1, "deterministic": deterministic}
        expected = KMeans(8, **options).fit(x, sample_weight=weight)
        folder = tmp_path / str(deterministic)
        with pytest.raises(KeyboardInterrupt):
            KMeans(8, **options, callbacks=interrupted_at(2)).fit(x, sample_weight=weight, checkpoint=folder)
        assert same(KMeans(8, **options).fit(x, sample_weight=weight, checkpoint=folder, resume=True), expected)


def test_a_run_that_is_over_is_not_begun_again(tmp_path):
    expected = fit(tmp_path)
    seen = []
    assert same(fit(tmp_path, resume=True, callbacks=[seen.append]), expected)
    assert len(seen) <= 1  # the iteration that changed no label is made again
    x = make_blobs(600, 10, 4, spread=0.5)

    def run(name, **options):
        model = KMeans(10, **({"tol": 0, "random_state": 0} | options))
        return model.fit(x, checkpoint=None if name is None else tmp_path / name, resume=name is not None)

    coarse = run("tol", tol=1e-2)
    assert same(run("tol", tol=1e-2), coarse)
    stopped = run("stopped", callbacks=[lambda record: record["iteration"] == 3])
    assert same(run("stopped"), stopped)
    run("more", max_iter=3)
    assert same(run("more", max_iter=50), run(None, max_iter=50))


def test_resume_without_a_checkpoint_begins(tmp_path):
    assert same(fit(tmp_path / "new" / "folder", resume=True), fit(None))
    with pytest.raises(ValueError, match="resume=True needs checkpoint="):
        fit(None, resume=True)


def test_an_old_checkpoint_is_not_overwritten(tmp_path):
    fit(tmp_path)
    before = (tmp_path / checkpoints.FILE).read_bytes()
    with pytest.raises(FileExistsError, match="is the checkpoint of a run; go on with it"):
        fit(tmp_path)
    assert (tmp_path / checkpoints.FILE).read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_clusters": 9}, "its n_clusters is 10, here it is 9; resume with the same data and parameters"),
        ({"init": "random"}, r"its init is k-means\+\+, here it is random"),
        ({"n_init": 3}, "its n_init is 1, here it is 3"),
        ({"tol": 0.5}, r"its tol is 0\.0, here it is 0\.5"),
        ({"random_state": 1}, "its random_state is 0, here it is 1"),
        ({"deterministic": True}, "its deterministic is False, here it is True"),
        ({"rows": 599}, r"its shape is \[600, 4\], here it is \[599, 4\]"),
        ({"dtype": np.float64}, "its dtype is float32, here it is float64"),
        ({"offset": 1.0}, "its digest of rows is"),
        ({"weight": np.ones(600)}, "its weighted is False, here it is True"),
        ({"kind": SphericalKMeans}, "its estimator is KMeans, here it is SphericalKMeans"),
    ],
)
def test_a_checkpoint_of_other_data_or_parameters_is_refused(tmp_path, change, message):
    def run(resume, rows=600, dtype=np.float32, offset=0.0, weight=None, kind=KMeans, **parameters):
        x = (make_blobs(600, 10, 4, spread=0.5)[:rows] + np.float32(offset)).astype(dtype)
        options = {"n_clusters": 10, "n_init": 1, "tol": 0, "random_state": 0} | parameters
        return kind(**options).fit(x, sample_weight=weight, checkpoint=tmp_path, resume=resume)

    run(False)
    before = (tmp_path / checkpoints.FILE).read_bytes()
    with pytest.raises(CheckpointError, match=message):
        run(True, **change)
    assert (tmp_path / checkpoints.FILE).read_bytes() == before


def test_T50_damaged_and_foreign_files_are_refused(tmp_path):
    fit(tmp_path)
    file = tmp_path / checkpoints.FILE
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged: its content does not match its checksum"):
        fit(tmp_path, resume=True)
    write_checkpoint(file, {}, {"class": "IDEC"})
    with pytest.raises(CheckpointError, match="holds a IDEC, not a run of k-means"):
        fit(tmp_path, resume=True)


def test_a_full_disk_ends_the_fit_and_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, callbacks=interrupted_at(3))
    before = (tmp_path / checkpoints.FILE).read_bytes()
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        fit(tmp_path, resume=True)
    monkeypatch.undo()
    assert (tmp_path / checkpoints.FILE).read_bytes() == before
    assert same(fit(tmp_path, resume=True), fit(None))


# --- the command


@pytest.fixture
def points(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = make_blobs(60_000, 40, 8, spread=0.3)
    np.save("points.npy", x)
    return x


def test_the_command_resumes(points, tmp_path, capsys):
    options = ["--k", "40", "--max-iter", "6", "--json"]
    assert cli.main(["cluster", "points.npy", *options, "--out", "plain.npy"]) == 0
    assert cli.main(["cluster", "points.npy", *options, "--checkpoint", "run", "--out", "first.npy"]) == 0
    assert cli.main(["cluster", "points.npy", *options, "--checkpoint", "run", "--resume"]) == 0
    assert np.array_equal(np.load("labels.npy"), np.load("plain.npy"))
    capsys.readouterr()
    assert cli.main(["cluster", "points.npy", *options, "--checkpoint", "run"]) == 2
    assert "is the checkpoint of a run; go on with it (resume=True, --resume)" in capsys.readouterr().err
    for arguments, message in (
        (["--resume"], "--resume needs --checkpoint"),
        (["--checkpoint", "points.npy"], "--checkpoint points.npy is a file; name a folder"),
        (["--checkpoint", "run", "--resume", "--seed", "5"], "its random_state is 0, here it is 5"),
        (
            ["--checkpoint", "run", "--method", "minibatch"],
            "--checkpoint is for --method kmeans, gmm, the deep methods, got",
        ),
        (["--deterministic", "--method", "idec"], "--deterministic is for --method kmeans, minibatch, gmm, got"),
    ):
        assert cli.main(["cluster", "points.npy", *options, *arguments]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_T49_the_command_is_interrupted_and_killed_and_resumes(points, tmp_path, interruptible):
    command = [sys.executable, "-c", RUN, "cluster", "points.npy", "--k", "40", "--max-iter", "60", "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def begin(*arguments):
        return subprocess.Popen([*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    process = begin("--checkpoint", "run")
    file = tmp_path / "run" / checkpoints.FILE
    for number, status in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        end = time.monotonic() + 60
        while not file.exists() and time.monotonic() < end and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
        assert process.returncode == status, errors
        assert (b"run holds the state of the run; --resume goes on with it" in errors) == (status == 130)
        assert not (tmp_path / "labels.npy").exists()
        before = file.read_bytes()
        process = begin("--checkpoint", "run", "--resume")
        end = time.monotonic() + 60
        while file.read_bytes() == before and time.monotonic() < end and process.poll() is None:
            time.sleep(0.01)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    report = json.loads(out)
    expected = KMeans(40, max_iter=60, random_state=0).fit(as_row_source(points))
    assert np.array_equal(np.load("labels.npy"), expected.labels_)
    assert (report["n_iter"], report["inertia"]) == (expected.n_iter_, expected.inertia_)


RUN = """
import sys, time
from fastdc import cli
from fastdc.cluster import checkpoints
checkpoints.SECONDS = 0.0
sys.exit(cli.main())
"""

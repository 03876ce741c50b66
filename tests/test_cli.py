"""The command line: what it writes, what it prints, and one clear line with status 2 for what it refuses."""

from __future__ import annotations

import hashlib
import json
import os

import h5py
import numpy as np
import pyarrow
import pyarrow.parquet as pq
import pytest
import zarr

from fastdc import cli
from fastdc.data import load_points
from tests.cli_cases import fails, same_partition


@pytest.mark.parametrize("file", ["points.npy", "points.npz", "points.csv"])
def test_cluster_finds_the_blobs_in_every_format(folder, blobs, capsys, file):
    key = ["--key", "x"] if file.endswith("npz") else []
    assert cli.main(["cluster", file, "--k", "3", "--json", *key]) == 0
    report = json.loads(capsys.readouterr().out)
    labels = np.load("labels.npy")
    assert same_partition(labels, blobs[1])
    assert report["n_samples"] == 60
    assert report["n_features"] == 3
    assert report["cluster_sizes"] == {"smallest": 20, "median": 20, "largest": 20, "empty": 0}
    assert report["inertia"] == pytest.approx(np.var(blobs[0].reshape(3, 20, 3), axis=1).sum() * 20, rel=1e-3)


def test_cluster_reads_stores_and_shards(folder, blobs, capsys):
    x = blobs[0].astype(np.float32)
    pq.write_table(pyarrow.table({"a": x[:, 0], "name": ["?"] * 60, "b": x[:, 1]}), "points.parquet")
    zarr.create_array("points.zarr", data=x)
    with h5py.File("points.h5", "w") as file:
        file["x"], file["y"] = x, blobs[1]
    (folder / "shards").mkdir()
    np.save("shards/a.npy", x[:35])
    np.save("shards/b.npy", x[35:])
    for arguments in (["points.parquet", "--columns", "a,b"], ["points.zarr"], ["points.h5:x"], ["shards"]):
        assert cli.main(["cluster", *arguments, "--k", "3", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["n_samples"] == 60
        assert same_partition(np.load("labels.npy"), blobs[1])
    assert "points.h5: holds several arrays; its keys are x, y" in fails(capsys, "cluster", "points.h5", "--k", "3")
    assert "column 'name' holds" in fails(capsys, "cluster", "points.parquet", "--k", "3")


@pytest.mark.parametrize("method", ["dec", "idec"])
def test_cluster_runs_the_deep_methods(folder, capsys, method):
    options = ["--method", method, "--pretrain-epochs", "2", "--max-iter", "2", "--centers", "centers.npy"]
    assert cli.main(["cluster", "points.npy", "--k", "3", "--json", *options]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["method"] == method
    assert report["n_iter"] <= 2
    labels, centers = np.load("labels.npy"), np.load("centers.npy")
    assert labels.shape == (60,)
    assert set(labels.tolist()) <= {0, 1, 2}
    assert centers.shape[0] == 3
    assert np.isfinite(centers).all()


def test_cluster_writes_centers_and_csv(folder, blobs, capsys):
    assert cli.main(["cluster", "points.npy", "-k", "3", "--out", "labels.csv", "--centers", "centers.npy"]) == 0
    labels = np.loadtxt("labels.csv", dtype=int)
    means = np.stack([blobs[0][labels == i].mean(0) for i in range(3)])
    np.testing.assert_allclose(np.load("centers.npy"), means, atol=1e-5)
    out = capsys.readouterr().out
    printed = dict(line.split("  ", 1) for line in out.splitlines())
    assert printed["labels"].strip() == "labels.csv"
    assert printed["cluster sizes"].strip() == "smallest 20, median 20, largest 20, empty 0"


def test_cluster_is_repeatable_by_seed_and_quiet(folder, capsys):
    results = []
    for seed in ("1", "1", "2"):
        assert cli.main(["cluster", "points.npy", "--k", "8", "--seed", seed, "--quiet"]) == 0
        results.append(np.load("labels.npy"))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])
    assert capsys.readouterr() == ("", "")


def test_T21_read_only_memmap_is_left_alone(folder, blobs, capsys):
    os.chmod("points.npy", 0o444)
    before = hashlib.sha256((folder / "points.npy").read_bytes()).hexdigest()
    x = load_points("points.npy")
    assert isinstance(x, np.memmap)
    assert not x.flags.writeable
    assert cli.main(["cluster", "points.npy", "--k", "3"]) == 0
    assert hashlib.sha256((folder / "points.npy").read_bytes()).hexdigest() == before
    assert same_partition(np.load("labels.npy"), blobs[1])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", ">f8"])
def test_T23_T24_other_number_types(folder, blobs, dtype):
    np.save("points.npy", np.asfortranarray((blobs[0] + 5).clip(0)).astype(dtype))
    assert cli.main(["cluster", "points.npy", "--k", "3", "--quiet"]) == 0
    assert same_partition(np.load("labels.npy"), blobs[1])


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["no.npy", "--k", "3"], "no.npy: no such file"),
        ([".", "--k", "3"], "shards must be of one kind, these are"),
        (["points.parquet", "--k", "3"], "no such file"),
        (["points.npy", "--k", "0"], "--k must be at least 1, got 0"),
        (["points.npy", "--k", "-2"], "--k must be at least 1, got -2"),
        (["points.npy", "--k", "2.5"], "--k"),
        (["points.npy"], "--k"),
        (["points.npy", "--k", "61"], "--k 61 asks for more clusters than points.npy has rows (60)"),
        (["points.npy", "--k", "3", "--method", "kmean"], "--method must be one of kmeans, minibatch, spherical"),
        (["points.npy", "--k", "3", "--max-iter", "0"], "--max-iter must be at least 1"),
        (["points.npy", "--k", "3", "--seed", "-1"], "--seed must be at least 0"),
        (
            ["points.npy", "--k", "3", "--pretrain-epochs", "5"],
            "--pretrain-epochs is for --method the deep methods",
        ),
        (["points.npy", "--k", "3", "--out", "no/labels.npy"], "there is no folder no"),
        (["points.npy", "--k", "3", "--out", "points.npy"], "would overwrite the input"),
        (["points.npy", "--k", "3", "--out", "labels.xlsx"], "must end in .npy, .csv or .txt"),
        (["points.npy", "--k", "3", "--centers", "."], "is a folder"),
        (["points.npy", "--k", "3", "--key", "x"], "a key chooses an array of an .npz file"),
        (["points.csv", "--k", "3", "--key", "x"], "a key chooses an array of an .npz file"),
        (["points.npz", "--k", "3"], "holds several arrays; its keys are x, y"),
        (["points.npz", "--k", "3", "--key", "z"], "holds no array 'z'; its keys are x, y"),
        (["points.npz", "--k", "3", "--key", "y"], "points must be 2-D"),
        (["points.npy", "--k", "3", "--columns", "0"], "columns and header apply to CSV files only"),
        (["points.csv", "--k", "3", "--columns", "a,d"], "no column 'd'; the columns are a,b,c"),
        (["points.csv", "--k", "3", "--columns", "a,7"], "no column '7'"),
        (["points.csv", "--k", "3", "--no-header"], "column '0' is not numeric: on line 1 it holds 'a'"),
    ],
)
def test_cluster_refuses(folder, capsys, arguments, fragment):
    assert fragment in fails(capsys, "cluster", *arguments)
    assert not (folder / "labels.npy").exists()


@pytest.mark.parametrize(
    ("array", "fragment"),
    [
        (np.array([[1.0, np.nan], [2, 3], [4, 5]]), "NaN"),
        (np.array([[1.0, np.inf], [2, 3], [4, 5]]), "infinity"),
        (np.zeros(5), "points must be 2-D (n_samples, n_features), this is (5,); save x[:, None]"),
        (np.zeros((5, 2, 2)), "save x.reshape(len(x), -1)"),
        (np.array(1.0), "points must be 2-D"),
        (np.zeros((0, 3)), "no points"),
        (np.zeros((3, 0)), "no points"),
        (
            np.ones((3, 2), dtype=complex),
            "points must be real numbers of at most 64 bits, these are complex128",
        ),
        (np.array([["a", "b"], ["c", "d"]]), "points must be real numbers"),
        (np.array([[None, 1], [2, 3]], dtype=object), "cannot be read as .npy"),
    ],
    ids=["nan", "inf", "1d", "3d", "0d", "no-rows", "no-columns", "complex", "text", "objects"],
)
def test_cluster_refuses_bad_arrays(folder, capsys, array, fragment):
    np.save("bad.npy", array, allow_pickle=True)
    assert fragment in fails(capsys, "cluster", "bad.npy", "--k", "2")


@pytest.mark.parametrize("name", ["bad.npy", "bad.npz", "bad.csv", "bad.txt"])
@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04 cut", b"\xff\xfe\x00\x81"])
def test_cluster_refuses_damaged_files(folder, capsys, name, content):
    (folder / name).write_bytes(content)
    assert name in fails(capsys, "cluster", name, "--k", "2")


def test_cluster_refuses_a_truncated_array(folder, capsys):
    whole = (folder / "points.npy").read_bytes()
    (folder / "cut.npy").write_bytes(whole[:-100])
    assert "cut.npy: cannot be read as .npy" in fails(capsys, "cluster", "cut.npy", "--k", "2")


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("a,b,name\n1,2,x\n3,4,y\n", "column 'name' is not numeric: on line 2 it holds 'x'"),
        ("a,b,name\n1,2,x\n", "choose the numeric columns (--columns), on this line a,b"),
        ("a,b\n1,2\n3,\n", "column 'b' is not numeric: on line 3 it is empty"),
        ("1,2\n3,4\n5\n", "line 3 has 1 cells, the first line has 2"),
        ("a,b\n", "a header and no rows"),
        ("\n1,2\n", "begins with an empty line"),
    ],
)
def test_cluster_names_the_bad_cell_of_a_csv(folder, capsys, text, fragment):
    (folder / "bad.csv").write_text(text)
    assert fragment in fails(capsys, "cluster", "bad.csv", "--k", "1")


def test_usage_errors_are_one_line(folder, capsys):
    assert "No such command" in fails(capsys, "clusters", "points.npy")
    assert "--kk" in fails(capsys, "cluster", "points.npy", "--kk", "3")


def test_traceback_is_shown_when_asked_for(folder):
    with pytest.raises(FileNotFoundError):
        cli.main(["--traceback", "cluster", "no.npy", "--k", "3"])


def test_version_and_help(capsys):
    import fastdc

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastdc {fastdc.__version__}\n"
    assert cli.main(["cluster", "--help"]) == 0
    assert "--columns" in capsys.readouterr().out


def test_warnings_are_one_line(folder, capsys):
    np.save("points.npy", np.ones((5, 2)))
    assert cli.main(["cluster", "points.npy", "--k", "2"]) == 0
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("fastdc: warning: ")
    assert "distinct" in errors[0]


def test_evaluate_prints_the_metrics(folder, blobs, capsys):
    np.save("labels.npy", (blobs[1] + 1) % 3)
    assert cli.main(["evaluate", "true.npy", "labels.npy", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["clustering_accuracy"] == 1.0
    assert report["adjusted_rand_index"] == 1.0
    assert report["n_samples"] == 60
    assert cli.main(["evaluate", "true.npy", "labels.npy"]) == 0
    assert "clustering accuracy     1" in capsys.readouterr().out


def test_evaluate_refuses(folder, capsys):
    np.save("short.npy", np.zeros(5, int))
    np.save("half.npy", np.full(60, 0.5))
    (folder / "two.csv").write_text("1,2\n3,4\n")
    assert "true.npy has 60 labels and short.npy has 5" in fails(capsys, "evaluate", "true.npy", "short.npy")
    assert "labels must be whole numbers" in fails(capsys, "evaluate", "true.npy", "half.npy")
    assert "labels must be one number a sample" in fails(capsys, "evaluate", "points.npy", "true.npy")
    assert "a file of one column, this one has 2" in fails(capsys, "evaluate", "two.csv", "true.npy")


def test_doctor_reports_as_json(capsys, monkeypatch):
    monkeypatch.delenv("FASTDC_BACKEND", raising=False)
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["torch"]["version"]
    assert next(row["backend"] for row in report["backends"] if row["chosen"]) == "numba"
    assert report["cpu"]["usable_cores"] >= 1
    assert report["cache"]["state"] == "writable"


def test_doctor_prints_why_nothing_runs(capsys, monkeypatch):
    monkeypatch.setenv("FASTDC_BACKEND", "cuda")
    assert cli.main(["doctor"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "FASTDC_BACKEND=cuda" in out
    assert "asks for 'cuda'" in out


def test_doctor_knows_every_op_to_warm():
    from fastdc import _warm
    from fastdc.kernels import OPS

    assert set(_warm._CALLS) == set(OPS)


@pytest.mark.slow
def test_doctor_warms_every_kernel(run_python, tmp_path):
    code = """
import importlib, pkgutil
import fastdc.kernels
from fastdc._warm import warm_all
from numba.core.registry import CPUDispatcher

warm_all()
modules = [info.name for info in pkgutil.walk_packages(fastdc.kernels.__path__, "fastdc.kernels.")]
for module in map(importlib.import_module, (name for name in modules if "triton" not in name)):
    for name, value in vars(module).items():
        if isinstance(value, CPUDispatcher) and not value.signatures:
            print(module.__name__, name)
"""
    # In an empty cache: a kernel that is loaded from the cache does not load the helpers it was compiled with.
    assert run_python(code, timeout=1200, env=os.environ | {"FASTDC_CACHE_DIR": str(tmp_path)}) == ""


def test_doctor_survives_a_package_that_crashes_or_fails(tmp_path, monkeypatch):
    from fastdc.doctor import try_imports

    (tmp_path / "crashing.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    (tmp_path / "failing.py").write_text("raise OSError('libgone.so: cannot open shared object file')")
    (tmp_path / "plain.py").write_text("__version__ = '1.2'")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = try_imports(["crashing", "failing", "plain"])
    assert found["crashing"] == (None, "importing it killed the process (signal 9)")
    assert found["failing"] == (None, "OSError: libgone.so: cannot open shared object file")
    assert found["plain"] == ("1.2", "")

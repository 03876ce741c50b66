"""Row sources: every kind of file gives the rows that were written, in chunks of any size, and says what is wrong."""

from __future__ import annotations

import hashlib
import importlib.util
import threading

import h5py
import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import scipy.sparse
import torch
import zarr

from fastdc.data import ConcatenatedRows, as_row_source, iter_chunks, open_rows
from fastdc.data import sources as sources_module
from tests.row_source_cases import (
    WRITERS,
    D,
    N,
    files,
    make_points,
    opened,
    write_compressed_npz,
    write_csv,
    write_feather,
    write_hdf5,
    write_npy,
    write_npz,
    write_parquet,
    write_parquet_of_fixed_lists,
    write_parquet_shards,
    write_shards,
    write_zarr,
    write_zarr_2,
)


@pytest.fixture(autouse=True)
def _no_reader_is_left():
    yield
    assert "fastdc-reader" not in {thread.name for thread in threading.enumerate()}


# --- every kind against the array


@files
@pytest.mark.parametrize("rows", [1, 20, 64, 1000])
def test_chunks_of_every_kind_are_the_array(tmp_path, write, rows):
    x = make_points(np.float64)
    source = opened(write, tmp_path, x)
    assert (source.shape, source.dtype, len(source)) == ((N, D), np.float64, N)
    starts, chunks = zip(*((start, part.numpy().copy()) for start, part in iter_chunks(source, rows)))
    assert list(starts) == list(range(0, N, rows))
    assert {len(chunk) for chunk in chunks[:-1]} <= {rows}
    np.testing.assert_array_equal(np.concatenate(chunks), x)


@files
def test_rows_in_any_order(tmp_path, write):
    x = make_points(np.float64)
    source = opened(write, tmp_path, x)
    for start, stop in ((90, N), (3, 4), (50, 95), (0, N), (19, 21)):
        out = np.full((stop - start, D), np.nan)
        source.read(start, stop, out)
        np.testing.assert_array_equal(out, x[start:stop])
    wanted = np.array([100, 0, 57, 57, 2, 99])
    np.testing.assert_array_equal(source.take(wanted), x[wanted])
    np.testing.assert_array_equal(np.asarray(source), x)
    assert source.take(np.array([], np.int64)).shape == (0, D)
    with pytest.raises(IndexError, match=rf"rows must lie in \[0, {N}\), got 5 to {N}"):
        source.take(np.array([N, 5]))


@files
@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [("f2", "f4"), ("i1", "f4"), ("u2", "f4"), ("?", "f4"), ("f4", "f4"), ("i4", "f8"), ("i8", "f8")],
)
def test_T24_dtypes_are_promoted(tmp_path, write, dtype, wanted):
    x = make_points(np.float64).clip(0, 100).astype(dtype)
    if write in (write_zarr, write_zarr_2, write_hdf5, write_npy, write_npz) or dtype != "?":
        source = opened(write, tmp_path, x)
        assert source.dtype == (np.float64 if write is write_csv else wanted)
        np.testing.assert_array_equal(np.asarray(source), x.astype(wanted))


@files
def test_T21_files_are_left_alone(tmp_path, write):
    path = write(tmp_path, make_points(np.float64))
    before = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.rglob("*") if p.is_file()}
    source = open_rows(path, key="x" if write is write_npz else None)
    np.asarray(source).sum()
    assert {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_columns_are_chosen_in_the_order_asked_for(tmp_path):
    x = make_points(np.float64)
    for path in (write_parquet(tmp_path, x), write_feather(tmp_path, x)):
        np.testing.assert_array_equal(np.asarray(open_rows(path, columns=["c3", "c0"])), x[:, [3, 0]])
    np.testing.assert_array_equal(np.asarray(open_rows(write_csv(tmp_path, x), columns=["3", "0"])), x[:, [3, 0]])


def test_columns_of_several_types(tmp_path):
    table = pyarrow.table({"a": np.arange(4, dtype=np.int8), "b": np.arange(4), "c": np.array([True, False] * 2)})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    source = open_rows(tmp_path / "x.parquet")
    assert source.dtype == np.float64
    np.testing.assert_array_equal(np.asarray(source), [[0, 0, 1], [1, 1, 0], [2, 2, 1], [3, 3, 0]])
    assert open_rows(tmp_path / "x.parquet", columns=["a", "c"]).dtype == np.float32


def test_an_array_of_several(tmp_path):
    x = make_points()
    write_hdf5(tmp_path, x)
    np.testing.assert_array_equal(np.asarray(open_rows(tmp_path / "x.h5", key="chunked")), x)
    group = zarr.open_group(tmp_path / "group.zarr", mode="w")
    group.create_array("inner/x", data=x)
    np.testing.assert_array_equal(np.asarray(open_rows(tmp_path / "group.zarr")), x)
    group.create_array("y", data=x + 1)
    np.testing.assert_array_equal(np.asarray(open_rows(tmp_path / "group.zarr", key="y")), x + 1)
    with pytest.raises(ValueError, match=r"group\.zarr: holds several arrays; its keys are inner/x, y"):
        open_rows(tmp_path / "group.zarr")


def test_stored_arrays_are_mapped_and_not_loaded(tmp_path):
    x = make_points()
    for write in (write_npy, write_npz):
        assert sources_module._mmap_of(opened(write, tmp_path, x)._array) is not None
    assert sources_module._mmap_of(opened(write_compressed_npz, tmp_path, x)._array) is None


def test_rows_that_lie_in_memory_are_not_copied(tmp_path):
    x = make_points()
    for array in (x, np.load(write_npy(tmp_path, x), mmap_mode="r")):
        starts = [part.data_ptr() for _, part in iter_chunks(as_row_source(array), 50)]
        assert starts[1] - starts[0] == 50 * D * 4
    tensor = torch.from_numpy(x)
    assert next(iter_chunks(as_row_source(tensor), 50)).x.data_ptr() == tensor.data_ptr()


def test_a_folder_of_many_files_holds_few_open(tmp_path, monkeypatch):
    monkeypatch.setattr(sources_module, "OPEN_AT_ONCE", 2)
    x = make_points(n=12)
    for i in range(12):
        np.save(tmp_path / f"{i:02}.npy", x[i : i + 1])
    source = open_rows(tmp_path)
    np.testing.assert_array_equal(np.asarray(source), x)
    assert len(source.parts[0]._opened) == 2


def test_parts_of_other_dtypes():
    parts = [as_row_source(make_points(dtype, n=10)) for dtype in (np.float32, np.float64, np.float16)]
    source = ConcatenatedRows(parts)
    whole = np.concatenate([np.asarray(part) for part in parts])
    assert source.dtype == np.float64
    for rows in (1, 7, 30):
        np.testing.assert_array_equal(np.concatenate([c.x.numpy().copy() for c in iter_chunks(source, rows)]), whole)


# --- arrays and tensors

LAYOUTS = {
    "fortran": np.asfortranarray,
    "reversed": lambda x: x[::-1].copy()[::-1],
    "steps": lambda x: np.repeat(np.repeat(x, 2, 0), 3, 1)[::2, ::3],
    "transposed": lambda x: x.T.copy().T,
    "big-endian": lambda x: x.astype(">f4"),
    "misaligned": lambda x: np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(x.shape),
    "long double": lambda x: x.astype(np.longdouble),
    "list": lambda x: x.astype(np.float64).tolist(),
    "frame": lambda x: pytest.importorskip("pandas").DataFrame(x),
    "tensor": torch.from_numpy,
    "tensor with gradient": lambda x: torch.from_numpy(x).requires_grad_(),
    "strided tensor": lambda x: torch.from_numpy(np.repeat(x, 2, 0))[::2],
    "zarr": lambda x: zarr.array(x, chunks=(9, D)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_T20_T22_T23_layouts(layout):
    x = make_points()
    source = as_row_source(LAYOUTS[layout](x))
    for rows in (10, N):
        chunks = [part.numpy().copy() for _, part in iter_chunks(source, rows)]
        np.testing.assert_array_equal(np.concatenate(chunks), x)


def test_T20_an_expanded_row():
    row = make_points(n=1)
    source = as_row_source(np.broadcast_to(row, (10**13, D)))
    out = np.empty((3, D), np.float32)
    source.read(10**13 - 3, 10**13, out)
    np.testing.assert_array_equal(out, row.repeat(3, 0))


def test_half_tensors():
    x = torch.from_numpy(make_points())
    for dtype in (torch.bfloat16, torch.float16, torch.int8, torch.bool):
        source = as_row_source(x.to(dtype))
        assert source.dtype == np.float32
        np.testing.assert_array_equal(np.asarray(source), x.to(dtype).float().numpy())


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [7, 50, 1000])
def test_chunks_on_a_gpu(tmp_path, rows):
    x = make_points(n=400)
    for source in (as_row_source(x), open_rows(write_parquet(tmp_path, x)), as_row_source(torch.from_numpy(x).cuda())):
        chunks = [chunk.x * 1 for chunk in iter_chunks(source, rows, device="cuda")]
        np.testing.assert_array_equal(torch.cat(chunks).cpu().numpy(), x)


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (np.zeros(5), ValueError, r"points must be 2-D \(n_samples, n_features\), this is \(5,\); use x\[:, None\]"),
        (np.zeros((2, 2, 2)), ValueError, r"this is \(2, 2, 2\); use x.reshape\(len\(x\), -1\)"),
        (np.array(1.0), ValueError, "points must be 2-D"),
        (np.zeros((0, 3)), ValueError, r"no points, the array has shape \(0, 3\)"),
        (torch.zeros(3, 0), ValueError, r"no points, the array has shape \(3, 0\)"),
        (np.eye(3, dtype=complex), TypeError, "points must be real numbers, these are complex128"),
        (torch.eye(3, dtype=torch.complex64), TypeError, "points must be real numbers, these are torch.complex64"),
        (np.array([["a", "b"]]), TypeError, "points must be real numbers, these are <U1"),
        (scipy.sparse.eye(3).tocsr(), TypeError, r"X is sparse \(csr_matrix\), dense data is required"),
        (torch.eye(3).to_sparse(), TypeError, "X is a sparse tensor .* use X.to_dense"),
        (np.ma.masked_array(np.eye(3), np.eye(3)), TypeError, "X is a masked array, whose mask would be lost"),
    ],
)
def test_T27_what_is_no_matrix(X, error, message):
    with pytest.raises(error, match=message):
        as_row_source(X)


# --- files that cannot be read


def bad_shapes(folder):
    np.savez(folder / "x.npz", a=np.zeros(3))
    with h5py.File(folder / "x.h5", "w") as file:
        file["a"] = np.zeros(3)
        file["b"] = np.zeros((0, 3))
        file["text"] = "hello"
    zarr.create_array(folder / "flat.zarr", data=np.zeros(3))
    zarr.open_group(folder / "none.zarr", mode="w")
    (folder / "bare.zarr").mkdir()
    (folder / "empty").mkdir()
    (folder / "nested" / "deeper").mkdir(parents=True)
    (folder / "mixed").mkdir()
    np.save(folder / "mixed" / "a.npy", np.zeros((2, 2)))
    (folder / "mixed" / "b.csv").write_text("1,2\n")
    (folder / "wide").mkdir()
    np.save(folder / "wide" / "a.npy", np.zeros((2, 2)))
    np.save(folder / "wide" / "b.npy", np.zeros((2, 3)))
    (folder / "x.doc").write_text("?")
    table = {"a": [1.0, None], "b": ["x", "y"], "c": [[1.0, 2.0], [3.0]], "d": [1, 2]}
    pyarrow.parquet.write_table(pyarrow.table(table), folder / "x.parquet")
    pyarrow.feather.write_feather(pyarrow.table(table), folder / "x.feather")
    pyarrow.parquet.write_table(pyarrow.table({"a": pyarrow.array([], "f4")}), folder / "none.parquet")
    pyarrow.feather.write_feather(pyarrow.table({"a": pyarrow.array([], "f4")}), folder / "none.feather")


BAD = [
    ("x.npz", {}, r"points must be 2-D \(n_samples, n_features\), this is \(3,\)"),
    ("x.h5", {}, "holds several arrays; its keys are a, b, text"),
    ("x.h5", {"key": "c"}, "holds no array 'c'; its keys are a, b, text"),
    ("x.h5", {"key": "a"}, r"points must be 2-D .* this is \(3,\)"),
    ("x.h5:a", {}, ": points must be 2-D"),
    ("x.h5:a", {"key": "b"}, ":a: the path names a dataset, so there can be no key='b'"),
    ("x.h5", {"key": "b"}, r"no points, the array has shape \(0, 3\)"),
    ("x.h5", {"key": "text"}, r"points must be 2-D"),
    ("x.h5", {"columns": ["a"]}, "columns apply to CSV, parquet and Arrow files only"),
    ("x.h5", {"header": True}, "header applies to CSV files only"),
    ("flat.zarr", {}, r"points must be 2-D .* this is \(3,\)"),
    ("flat.zarr", {"key": "a"}, "a key chooses an array of a group, this is an array"),
    ("none.zarr", {}, "holds no arrays; its keys are none"),
    ("bare.zarr", {}, "No group found"),
    ("empty", {}, "the folder holds no files"),
    ("nested", {}, ".deeper: this is a folder in a folder, or no file"),
    ("mixed", {}, r"shards must be of one kind, these are a\.npy and b\.csv"),
    ("wide", {}, r"b\.npy has 3 features, .*a\.npy has 2; all parts must agree"),
    ("x.doc", {}, r"unknown kind of file '\.doc'; it must end in one of \.npy, \.npz"),
    ("x.parquet", {}, r"column 'b' holds (large_)?string; choose numeric columns"),
    ("x.parquet", {"columns": ["a", "e"]}, "no column 'e'; the columns are a, b, c, d"),
    ("x.parquet", {"key": "a"}, "columns choose from a table"),
    ("x.parquet", {"columns": ["a", "d"]}, "column 'a' has nulls in rows 0 to 2"),
    ("x.parquet", {"columns": ["c"]}, "the lists of column 'c' have 2 entries in row 0 and others in rows 0 to 2"),
    ("x.parquet", {"columns": ["c", "d"]}, "column 'c' holds list<.*>; choose numeric columns, or one column of lists"),
    ("x.parquet", {"columns": []}, "no columns chosen; the columns are a, b, c, d"),
    ("x.feather", {"columns": ["a"]}, "column 'a' has nulls in rows 0 to 2"),
    ("x.feather", {"columns": ["c"]}, "the lists of column 'c' have 2 entries"),
    ("none.parquet", {}, r"no points, the array has shape \(0, 1\)"),
    ("none.feather", {}, r"no points, the array has shape \(0, 1\)"),
]


@pytest.mark.parametrize(("name", "options", "message"), BAD, ids=lambda v: str(v) if isinstance(v, str) else "")
def test_what_is_no_table_of_points(tmp_path, name, options, message):
    bad_shapes(tmp_path)
    with pytest.raises(ValueError, match=f"{name.split(':')[0]}.*{message}"):
        np.asarray(open_rows(tmp_path / name, **options))


@pytest.mark.parametrize("name", ["no.npy", "no.parquet", "no.h5", "no.h5:x", "no.zarr", "no.arrow", "no"])
def test_no_such_file(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=f"{name.split(':')[0]}: no such file"):
        open_rows(tmp_path / name)
    with pytest.raises(ValueError, match="there must be at least one file, got none"):
        open_rows([])


FILES = [
    write for write in WRITERS if write not in (write_zarr, write_zarr_2, write_shards, write_parquet_shards, write_csv)
]


@pytest.mark.parametrize("write", FILES, ids=lambda write: write.__name__.removeprefix("write_"))
@pytest.mark.parametrize("kept", [0, 0.02, 0.5, 0.97])
def test_T50_truncated_files(tmp_path, write, kept):
    path = write(tmp_path, make_points())
    file = next(p for p in tmp_path.iterdir() if p.is_file())
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(ValueError, match=file.name):
        np.asarray(open_rows(path, key="x" if write is write_npz else None))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_T50_damaged_zarr(tmp_path, zarr_format):
    path = write_zarr(tmp_path, make_points(), zarr_format)
    chunk = next(p for p in sorted(path.rglob("*")) if p.is_file() and p.name[0].isdigit())
    chunk.write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"x\.zarr: "):
        np.asarray(open_rows(path))
    (path / (".zarray" if zarr_format == 2 else "zarr.json")).write_text("{")
    with pytest.raises(ValueError, match=r"x\.zarr: "):
        open_rows(path)


def test_parquet_damaged_in_its_pages(tmp_path):
    path = write_parquet_of_fixed_lists(tmp_path, make_points())
    content = bytearray(path.read_bytes())
    content[4:300] = b"\xff" * 296
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.parquet: "):
        np.asarray(open_rows(path))


@pytest.mark.parametrize(
    ("write", "package"),
    [(write_parquet, "pyarrow"), (write_feather, "pyarrow"), (write_zarr, "zarr"), (write_hdf5, "h5py")],
)
def test_T51_a_missing_library(tmp_path, monkeypatch, write, package):
    path = write(tmp_path, make_points())
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else found(name))
    with pytest.raises(ImportError, match=rf'needs {package}; install it with `pip install "fastdc\[data\]"`'):
        open_rows(path)


def test_T51_the_libraries_are_imported_when_they_are_needed(run_python):
    code = "import sys, fastdc.cluster; print({'h5py', 'zarr', 'pyarrow.parquet'} & set(sys.modules))"
    assert run_python(code) == "set()"

"""Points as files of every kind, for the tests of row sources."""

from __future__ import annotations

import h5py
import numpy as np
import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
import zarr

from fastdc.data import open_rows

N, D = 103, 5


def make_points(dtype=np.float32, n=N, seed=0):
    x = np.random.default_rng(seed).normal(size=(n, D)) * 50
    return x.astype(dtype)


def list_table(x, is_fixed=True):
    flat = pyarrow.array(x.ravel())
    if is_fixed:
        return pyarrow.table({"x": pyarrow.FixedSizeListArray.from_arrays(flat, x.shape[1])})
    offsets = pyarrow.array(np.arange(0, x.size + 1, x.shape[1], dtype=np.int32))
    return pyarrow.table({"x": pyarrow.ListArray.from_arrays(offsets, flat)})


def column_table(x):
    return pyarrow.table({f"c{i}": x[:, i] for i in range(x.shape[1])})


def write_npy(folder, x):
    np.save(folder / "x.npy", x)
    return folder / "x.npy"


def write_npz(folder, x):
    np.savez(folder / "x.npz", other=np.arange(3), x=x)
    return folder / "x.npz"


def write_compressed_npz(folder, x):
    np.savez_compressed(folder / "x.npz", x=x)
    return folder / "x.npz"


def write_csv(folder, x):
    np.savetxt(folder / "x.csv", x, delimiter=",", fmt="%.18g")
    return folder / "x.csv"


def write_parquet(folder, x):
    pyarrow.parquet.write_table(column_table(x), folder / "x.parquet", row_group_size=20)
    return folder / "x.parquet"


def write_parquet_of_lists(folder, x):
    pyarrow.parquet.write_table(list_table(x, is_fixed=False), folder / "x.pq", row_group_size=33)
    return folder / "x.pq"


def write_parquet_of_fixed_lists(folder, x):
    pyarrow.parquet.write_table(list_table(x), folder / "x.parquet", row_group_size=N)
    return folder / "x.parquet"


def write_arrow(folder, x):
    table = list_table(x)
    with pyarrow.ipc.new_file(folder / "x.arrow", table.schema) as file:
        file.write_table(table, max_chunksize=17)
    return folder / "x.arrow"


def write_feather(folder, x):
    pyarrow.feather.write_feather(column_table(x), folder / "x.feather", compression="lz4", chunksize=40)
    return folder / "x.feather"


def write_zarr(folder, x, zarr_format=3):
    array = zarr.create_array(folder / "x.zarr", shape=x.shape, chunks=(10, 2), dtype=x.dtype, zarr_format=zarr_format)
    array[:] = x
    return folder / "x.zarr"


def write_zarr_2(folder, x):
    return write_zarr(folder, x, zarr_format=2)


def write_hdf5(folder, x):
    with h5py.File(folder / "x.h5", "w") as file:
        file["inner/x"] = x
        file.create_dataset("chunked", data=x, chunks=(7, D))
    return f"{folder / 'x.h5'}:inner/x"


def write_shards(folder, x):
    (folder / "shards").mkdir()
    for i, part in enumerate(np.array_split(x, [1, 40, 41, 80])):
        np.save(folder / "shards" / f"part-{i}.npy", part)
    (folder / "shards" / "_SUCCESS").touch()
    return folder / "shards"


def write_parquet_shards(folder, x):
    for name, part in (("a", x[:50]), ("b", x[50:])):
        pyarrow.parquet.write_table(column_table(part), folder / f"{name}.parquet")
    return [folder / "a.parquet", folder / "b.parquet"]


WRITERS = [
    write_npy, write_npz, write_compressed_npz, write_csv, write_parquet, write_parquet_of_lists,
    write_parquet_of_fixed_lists, write_arrow, write_feather, write_zarr, write_zarr_2, write_hdf5, write_shards,
    write_parquet_shards,
]  # fmt: skip
files = pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__.removeprefix("write_"))


def opened(write, folder, x):
    return open_rows(write(folder, x), key="x" if write is write_npz else None)

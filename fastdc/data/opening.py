"""Row sources from paths and from what users have in memory."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fastdc.data._csv import TABLE_SUFFIXES
from fastdc.data.files import load_points
from fastdc.data.sources import ArrayRows, ConcatenatedRows, ReopenedRows, RowSource, TensorRows
from fastdc.data.stores import StoredRows, open_hdf5, open_zarr
from fastdc.data.tables import ArrowRows, ParquetRows

KINDS = {
    **dict.fromkeys((".npy", ".npz"), "numpy"),
    **dict.fromkeys(TABLE_SUFFIXES, "text"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), "arrow"),
    **dict.fromkeys((".h5", ".hdf5"), "hdf5"),
    ".zarr": "zarr",
}
_ZARR_FILES = ("zarr.json", ".zarray", ".zgroup")
_HDF5_DATASET = re.compile(r"(?P<path>.+\.(?:h5|hdf5)):(?P<key>.+)", re.IGNORECASE)


def open_rows(
    path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    key: str | None = None,
    columns: Sequence[str] | None = None,
    header: bool | None = None,
) -> RowSource:
    """A row source over a file, a folder of shards, or a list of files.

    ========================  ===========================================================================
    file                      how it is read
    ========================  ===========================================================================
    ``.npy``                  memory-mapped
    ``.npz``                  memory-mapped where stored by ``numpy.savez``; loaded whole where compressed
    ``.csv``, ``.tsv``,       loaded whole, as float64
    ``.txt``
    ``.parquet``, ``.pq``     decoded in order, some thousand rows at a time (pyarrow)
    ``.arrow``, ``.feather``  memory-mapped, a record batch at a time (pyarrow)
    ``.zarr``, format 2, 3    the chunks that hold the rows (zarr)
    ``.h5``, ``.hdf5``        the chunks that hold the rows (h5py)
    folder                    its files in the order of their names, all of one kind; names that begin
                              with a dot or an underscore are passed over
    ========================  ===========================================================================

    Parameters
    ----------
    path : path or sequence of paths
        ``file.h5:dataset`` names a dataset too. Files of a list follow each other as they are listed.
    key : str, optional
        Which array of an ``.npz``, zarr or HDF5 file; may be left out where there is one.
    columns : sequence of str, optional
        Columns of parquet, Arrow and CSV files to keep, in this order. None keeps all.
    header : bool, optional
        Whether the first CSV row holds names; None looks.

    Returns
    -------
    source : RowSource
        float32 where that holds every value of the file's type, else float64.

    Raises
    ------
    ValueError
        If the file cannot be read as points; the message names it.
    FileNotFoundError
        If there is no such file.
    ImportError
        If the library is missing that reads it; ``pip install "fastdc[data]"`` brings all.

    Notes
    -----
    Memory: nothing but what the table says, and a decoded batch or chunk.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> for i in range(3):
    ...     np.save(folder / f"part-{i}.npy", np.full((10, 2), i, np.float16))
    >>> open_rows(folder)
    ConcatenatedRows(shape=(30, 2), dtype=float32)
    """
    options: dict[str, Any] = {"key": key, "columns": columns, "header": header}
    if not isinstance(path, (str, os.PathLike)):
        return _concatenated([Path(one) for one in path], options)
    path = Path(path)
    if path.is_dir() and _kind_of(path) != "zarr":
        files = sorted(file for file in path.iterdir() if not file.name.startswith((".", "_")))
        if not files:
            raise ValueError(f"{path}: the folder holds no files")
        return _concatenated(files, options)
    return _open_file(path, **options)


def as_row_source(X: Any) -> RowSource:
    """A row source over anything: an array, tensor, zarr array, HDF5 dataset, path, or a row source itself.

    Arrays and tensors are not copied. Lists and frames become arrays.

    Raises
    ------
    ValueError, TypeError
        If it is no matrix of real numbers.

    Examples
    --------
    >>> as_row_source(np.zeros((3, 2), np.int64))
    ArrayRows(shape=(3, 2), dtype=float64)
    """
    if isinstance(X, RowSource):
        return X
    if isinstance(X, (str, os.PathLike)):
        return open_rows(X)
    if isinstance(X, Tensor):
        return TensorRows(X)
    if hasattr(X, "toarray"):
        raise TypeError(f"X is sparse ({type(X).__name__}), dense data is required; use X.toarray()")
    if isinstance(X, np.ndarray):
        return ArrayRows(X)
    if hasattr(X, "chunks") and hasattr(X, "shape"):
        return StoredRows(X)
    return ArrayRows(np.asarray(X))


def _open_file(path: Path, key: str | None, columns: Sequence[str] | None, header: bool | None) -> RowSource:
    if not path.exists() and (named := _HDF5_DATASET.fullmatch(str(path))):
        if key is not None:
            raise ValueError(f"{path}: the path names a dataset, so there can be no key={key!r}")
        path, key = Path(named["path"]), named["key"]
    kind = _kind_of(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if kind in ("numpy", "text"):
        return ArrayRows(load_points(path, key=key, columns=columns, header=header))
    if header is not None:
        raise ValueError(f"{path}: header applies to CSV files only")
    if kind in ("parquet", "arrow"):
        if key is not None:
            raise ValueError(f"{path}: a key chooses an array of a file; columns choose from a table")
        return ParquetRows(path, columns) if kind == "parquet" else ArrowRows(path, columns)
    if columns is not None:
        raise ValueError(f"{path}: columns apply to CSV, parquet and Arrow files only")
    return open_zarr(path, key) if kind == "zarr" else open_hdf5(path, key)


def _kind_of(path: Path) -> str:
    if path.is_dir() and any((path / name).exists() for name in _ZARR_FILES):
        return "zarr"
    kind = KINDS.get(path.suffix.lower())
    if kind is None and path.is_file():
        raise ValueError(f"{path}: unknown kind of file {path.suffix!r}; it must end in one of {', '.join(KINDS)}")
    return kind or ""


def _concatenated(files: list[Path], options: dict[str, Any]) -> RowSource:
    if not files:
        raise ValueError("there must be at least one file, got none")
    kinds = {_kind_of(file): file.name for file in reversed(files)}
    if "" in kinds:
        missing = next(file for file in files if not _kind_of(file))
        raise ValueError(f"{missing}: this is a folder in a folder, or no file; shards must be files of one kind")
    if len(kinds) > 1:
        raise ValueError(
            f"{files[0].parent}: shards must be of one kind, these are {' and '.join(sorted(kinds.values()))}"
        )
    opened: OrderedDict[int, RowSource] = OrderedDict()
    opening: list[Callable[[], RowSource]] = [partial(_open_file, file, **options) for file in files]
    shards = [ReopenedRows(open_shard, opened) for open_shard in opening]
    return ConcatenatedRows(shards, [str(file) for file in files])

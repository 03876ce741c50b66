"""Arrays from files: ``.npy`` and uncompressed ``.npz`` (memory-mapped), compressed ``.npz`` and CSV (loaded).

Every error names the file and what would repair it.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdc._files import atomic_write, save_array
from fastdc.data._csv import TABLE_SUFFIXES, load_column, load_table
from fastdc.data._faults import one_line

__all__ = ["atomic_write", "load_labels", "load_points", "save_array"]


def load_points(
    path: str | os.PathLike[str],
    *,
    key: str | None = None,
    columns: Sequence[str] | None = None,
    header: bool | None = None,
) -> np.ndarray:
    """Read points of shape (n_samples, n_features) from a ``.npy``, ``.npz`` or CSV file.

    Parameters
    ----------
    path : path
        Arrays of ``.npy`` files, and of ``.npz`` files that ``numpy.savez`` wrote, are memory-mapped read-only;
        those of ``numpy.savez_compressed`` and CSV are loaded whole. CSV may be separated by comma, semicolon,
        tab or bar.
    key : str, optional
        Which array of an ``.npz`` file; may be left out where the file holds one array.
    columns : sequence of str, optional
        CSV columns to keep, by name or by number from 0. A name goes before a number.
    header : bool, optional
        Whether the first CSV row holds names. None decides: it does if one of its cells is text above a
        number, or if no cell of it is a number.

    Returns
    -------
    x : ndarray of shape (n_samples, n_features)
        Real numbers as they are stored; CSV gives float64. Estimators promote other types as they need.

    Raises
    ------
    ValueError
        If the file cannot be read as points; the message names the file, and for CSV the column and the row.
    FileNotFoundError
        If there is no such file.

    Examples
    --------
    >>> import numpy, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "points.csv"
    >>> _ = path.write_text("height,width,name\\n1,2,a\\n3,4,b\\n")
    >>> load_points(path, columns=["height", "width"])
    array([[1., 2.],
           [3., 4.]])
    """
    path = _existing(path)
    if path.suffix.lower() in TABLE_SUFFIXES:
        if key is not None:
            raise ValueError(f"{path}: a key chooses an array of an .npz file, this is a {path.suffix} file")
        return load_table(path, columns, header)
    if columns is not None or header is not None:
        raise ValueError(f"{path}: columns and header apply to CSV files only; slice the array before saving it")
    x = _load_numpy(path, key)
    if x.ndim != 2:
        remedy = "save x[:, None]" if x.ndim == 1 else "save x.reshape(len(x), -1)" if x.ndim > 2 else "save a matrix"
        raise ValueError(f"{path}: points must be 2-D (n_samples, n_features), this is {x.shape}; {remedy}")
    if 0 in x.shape:
        raise ValueError(f"{path}: no points, the array has shape {x.shape}")
    if x.dtype.kind not in "biuf" or x.dtype.itemsize > 8:
        raise ValueError(f"{path}: points must be real numbers of at most 64 bits, these are {x.dtype}")
    return x


def load_labels(path: str | os.PathLike[str], *, key: str | None = None) -> np.ndarray:
    """Read one label a sample, as int64 of shape (n_samples,).

    Integers are kept. Text labels become numbers in alphabetical order. A CSV file must have one column; its
    first row is a header only where it is text above a number.

    Raises
    ------
    ValueError
        If the file holds no labels: not one column, empty, not finite, or fractions such as 0.5.
    """
    path = _existing(path)
    if path.suffix.lower() in TABLE_SUFFIXES:
        labels = load_column(path)
    else:
        labels = _load_numpy(path, key)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"{path}: labels must be one number a sample, this array has shape {labels.shape}")
    if labels.dtype.kind == "U":
        return np.unique(labels, return_inverse=True)[1].astype(np.int64)
    if labels.dtype.kind == "f":
        if not np.array_equal(labels, np.floor(labels)) or not np.isfinite(labels).all():
            raise ValueError(f"{path}: labels must be whole numbers; these are {labels.dtype} with other values")
    elif labels.dtype.kind not in "biu":
        raise ValueError(f"{path}: labels must be integers or text, these are {labels.dtype}")
    return labels.astype(np.int64)


def _existing(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: this is a folder; name a .npy, .npz or CSV file")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix.lower() not in (".npy", ".npz", *TABLE_SUFFIXES):
        raise ValueError(f"{path}: unknown kind of file {path.suffix!r}; it must be .npy, .npz, .csv, .tsv or .txt")
    return path


def _load_numpy(path: Path, key: str | None) -> np.ndarray:
    is_archive = path.suffix.lower() == ".npz"
    if key is not None and not is_archive:
        raise ValueError(f"{path}: a key chooses an array of an .npz file, this is a {path.suffix} file")
    try:
        loaded = np.load(path, mmap_mode=None if is_archive else "r", allow_pickle=False)
        if not is_archive:
            return loaded
        with loaded as archive:
            names = archive.files
            if key is None and len(names) == 1:
                key = names[0]
            if key is None or key not in names:
                asked = "holds several arrays" if key is None else f"holds no array {key!r}"
                raise ValueError(f"{asked}; its keys are {', '.join(names)}")
            mapped = _mapped_member(path, archive, f"{key}.npy")
            return archive[key] if mapped is None else mapped
    except (ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        fault = "it holds Python objects or is no such file" if "pickle" in str(error) else one_line(error)
        raise ValueError(f"{path}: cannot be read as {path.suffix}: {fault}") from error


def _mapped_member(path: Path, archive: Any, name: str) -> np.ndarray | None:
    """An array of an ``.npz`` file where it lies; None where it is compressed or no plain array."""
    if name not in archive.zip.namelist():
        return None
    member = archive.zip.getinfo(name)
    if member.compress_type != zipfile.ZIP_STORED:
        return None
    with open(path, "rb") as file:
        file.seek(member.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
        file.seek(name_length + extra_length, os.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            return None
        shape, is_fortran, dtype = readers[version](file)
        if dtype.hasobject or 0 in shape or not shape:
            return None
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if is_fortran else "C")

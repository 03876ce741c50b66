"""Row sources over zarr arrays and HDF5 datasets. zarr and h5py do the reading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastdc.data._faults import faults_of, require
from fastdc.data.sources import RowSource, check_matrix, promoted


class StoredRows(RowSource):
    """Rows of a zarr array or an HDF5 dataset, or of whatever gives arrays for slices of rows.

    Parameters
    ----------
    array : object with ``shape``, ``dtype`` and slices
        Its chunks, where it has ``chunks``, are best some thousand rows of all features.
    name : str
        What errors call it.
    """

    def __init__(self, array: Any, name: str = "X") -> None:
        self.shape = check_matrix(tuple(array.shape))
        self.dtype = promoted(array.dtype)
        self.near = max(self.near, (getattr(array, "chunks", None) or (1,))[0])
        self._array, self._name = array, name

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        with faults_of(self._name):
            out[:] = self._array[start:stop]


def open_zarr(path: Path, key: str | None = None) -> StoredRows:
    """A zarr array of format 2 or 3, or the array ``key`` of a group; a group's only array needs no key."""
    require("zarr", path)
    import zarr

    with faults_of(path):
        node = zarr.open(str(path), mode="r")
        arrays = [] if hasattr(node, "shape") else _arrays_of(node, zarr.Group)
        if hasattr(node, "shape") and key is not None:
            raise ValueError(f"{path}: a key chooses an array of a group, this is an array")
        found = node if hasattr(node, "shape") else node[_chosen(path, key, arrays)]
        return StoredRows(found, str(path))


def open_hdf5(path: Path, key: str | None = None) -> StoredRows:
    """The dataset ``key`` of an HDF5 file; its only dataset needs no key."""
    require("h5py", path)
    import h5py

    with faults_of(path):
        file = h5py.File(path, "r")
        datasets: list[str] = []
        file.visititems(lambda name, item: datasets.append(name) if isinstance(item, h5py.Dataset) else None)
        return StoredRows(file[_chosen(path, key, datasets)], str(path))


def _arrays_of(group: Any, group_type: type, prefix: str = "") -> list[str]:
    """Paths of the arrays in a zarr group and the groups below it."""
    names: list[str] = []
    for name in sorted(group):
        below = _arrays_of(group[name], group_type, f"{prefix}{name}/") if isinstance(group[name], group_type) else None
        names += [f"{prefix}{name}"] if below is None else below
    return names


def _chosen(path: Path, key: str | None, names: list[str]) -> str:
    if key is None and len(names) == 1:
        return names[0]
    if key is None or key.strip("/") not in names:
        what = "holds several arrays" if key is None else f"holds no array {key!r}"
        raise ValueError(f"{path}: {what if names else 'holds no arrays'}; its keys are {', '.join(names) or 'none'}")
    return key

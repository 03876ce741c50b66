"""Points from files and arrays, whole or a part at a time.

``load_points`` and ``load_labels`` give arrays. ``open_rows`` gives a :class:`RowSource`, whose rows are read when
they are needed, from memory, memory-mapped files, parquet, Arrow, zarr, HDF5 or a folder of such files.
"""

from fastdc._files import atomic_write, save_array
from fastdc.data.files import load_labels, load_points
from fastdc.data.opening import as_row_source, open_rows
from fastdc.data.sources import ArrayRows, ConcatenatedRows, RowSource, TensorRows
from fastdc.data.stores import StoredRows
from fastdc.data.stream import Chunk, iter_chunks
from fastdc.data.tables import ArrowRows, ParquetRows

__all__ = [
    "ArrayRows",
    "ArrowRows",
    "Chunk",
    "ConcatenatedRows",
    "ParquetRows",
    "RowSource",
    "StoredRows",
    "TensorRows",
    "as_row_source",
    "atomic_write",
    "iter_chunks",
    "load_labels",
    "load_points",
    "open_rows",
    "save_array",
]

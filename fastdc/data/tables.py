"""Row sources over parquet and Arrow files. pyarrow does the reading."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fastdc.data._faults import faults_of, require
from fastdc.data.sources import RowSource, check_matrix, promoted

BATCH_ROWS = 8192  # rows of a parquet file that are decoded at a time


class ParquetRows(RowSource):
    """Rows of a parquet file, which are decoded in order, some thousand at a time.

    Reading on where the last ``read`` ended costs nothing more; reading from elsewhere begins at the start of its
    row group, unless the rows lie a little ahead. The features are numeric columns, or the entries of one column of
    lists that are all of one length. Nulls are an error.
    """

    def __init__(self, path: Path, columns: Sequence[str] | None = None) -> None:
        require("pyarrow", path)
        import pyarrow.parquet

        self.path = path
        with faults_of(path):
            self._file = pyarrow.parquet.ParquetFile(path, memory_map=True)
            groups = self._file.metadata
            rows = [groups.row_group(i).num_rows for i in range(groups.num_row_groups)]
            self._starts = np.cumsum([0, *rows]).tolist()
            self._table = _Columns(path, self._file.schema_arrow, columns)
            first = next(self._batches(0), None) if self._table.is_list and self._starts[-1] else None
            self.shape = check_matrix((self._starts[-1], self._table.width(first)))
        self.dtype = self._table.dtype
        self._decoded = iter(())
        self._batch: Any = None  # rows self._first to self._end
        self._first = self._end = 0

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        row = start
        with faults_of(self.path):
            while row < stop:
                self._decode_to(row)
                end = min(stop, self._end)
                part = self._batch.slice(row - self._first, end - row)
                self._table.write(part, row, out[row - start : end - start])
                row = end

    def _decode_to(self, row: int) -> None:
        """Decode on until the batch holds a row."""
        group = bisect_right(self._starts, row) - 1
        if self._batch is None or row < self._first or self._starts[group] > self._end:
            self._batch, self._end, self._decoded = None, self._starts[group], self._batches(group)
        while self._batch is None or row >= self._end:
            self._first, self._batch = self._end, next(self._decoded, None)
            if self._batch is None:
                raise ValueError(f"it ends at row {self._first}, its metadata promise {len(self)} rows")
            self._end += self._batch.num_rows

    def _batches(self, group: int) -> Iterator[Any]:
        groups = range(group, self._file.num_row_groups)
        return self._file.iter_batches(BATCH_ROWS, row_groups=groups, columns=self._table.names)


class ArrowRows(RowSource):
    """Rows of an Arrow IPC file (Feather version 2), memory-mapped; columns as in :class:`ParquetRows`."""

    def __init__(self, path: Path, columns: Sequence[str] | None = None) -> None:
        require("pyarrow", path)
        import pyarrow

        self.path = path
        with faults_of(path):
            mapped = pyarrow.memory_map(str(path))
            schema = pyarrow.ipc.open_file(mapped).schema
            self._table = _Columns(path, schema, columns)
            fields = [schema.get_field_index(name) for name in self._table.names]
            self._file = _open_fields(mapped, fields)
            lengths = _open_fields(mapped, fields[:1])  # decompresses no more than one column
            rows = [lengths.get_batch(i).num_rows for i in range(lengths.num_record_batches)]
            self._starts = np.cumsum([0, *rows]).tolist()
            first = next((self._file.get_batch(i) for i, n in enumerate(rows) if n), None)
            self.shape = check_matrix((self._starts[-1], self._table.width(first)))
        self.dtype = self._table.dtype
        self.near = max(rows)
        self._batch: tuple[int, Any] = -1, None  # the one read last: it may have been decompressed

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        row = start
        with faults_of(self.path):
            while row < stop:
                i = bisect_right(self._starts, row) - 1
                if self._batch[0] != i:
                    self._batch = i, self._file.get_batch(i)
                end = min(stop, self._starts[i + 1])
                part = self._batch[1].slice(row - self._starts[i], end - row)
                self._table.write(part, row, out[row - start : end - start])
                row = end


class _Columns:
    """Which columns are features, and how a batch of them becomes rows."""

    def __init__(self, path: Path, schema: Any, columns: Sequence[str] | None) -> None:
        import pyarrow.types as kind

        missing = [name for name in columns or () if name not in schema.names]
        if missing:
            raise ValueError(f"{path}: no column {missing[0]!r}; the columns are {', '.join(schema.names)}")
        self.names = list(schema.names if columns is None else columns)
        if not self.names:
            raise ValueError(f"{path}: no columns chosen; the columns are {', '.join(schema.names)}")
        types = [schema.field(name).type for name in self.names]
        self.is_list = len(types) == 1 and _is_list(types[0])
        if self.is_list:
            types = [types[0].value_type]
        for name, found in zip(self.names, types):
            if not (kind.is_integer(found) or kind.is_floating(found) or kind.is_boolean(found)):
                raise ValueError(
                    f"{path}: column {name!r} holds {found}; choose numeric columns, or one column of lists of "
                    f"numbers (columns=), among {', '.join(schema.names)}"
                )
        self.dtype = np.result_type(*(promoted(found.to_pandas_dtype()) for found in types))

    def width(self, first: Any) -> int:
        """Features, as the first batch has them."""
        if not self.is_list:
            return len(self.names)
        return 0 if first is None else len(first.column(0).slice(0, 1).flatten())

    def write(self, batch: Any, row: int, out: np.ndarray) -> None:
        """The batch into ``out``; ``row`` is its first in the file."""
        for i, name in enumerate(self.names):  # of a batch, columns are in the order of the file
            column = batch.column(name)
            entries = column.flatten() if self.is_list else column
            if column.null_count or entries.null_count:
                raise ValueError(f"column {name!r} has nulls in rows {row} to {row + len(column)}; fill or drop them")
            values = entries.to_numpy(zero_copy_only=False)
            if not self.is_list:
                out[:, i] = values
            elif _all_of_length(column, out.shape[1]):
                out[:] = values.reshape(out.shape)
            else:
                raise ValueError(
                    f"the lists of column {name!r} have {out.shape[1]} entries in row 0 and others in rows {row} to "
                    f"{row + len(column)}"
                )


def _open_fields(mapped: Any, fields: list[int]) -> Any:
    import pyarrow

    return pyarrow.ipc.open_file(mapped, options=pyarrow.ipc.IpcReadOptions(included_fields=fields))


def _is_list(found: Any) -> bool:
    import pyarrow.types as kind

    return kind.is_fixed_size_list(found) or kind.is_list(found) or kind.is_large_list(found)


def _all_of_length(column: Any, length: int) -> bool:
    import pyarrow.compute

    ends = pyarrow.compute.min_max(pyarrow.compute.list_value_length(column)).as_py()
    return ends["min"] == ends["max"] == length

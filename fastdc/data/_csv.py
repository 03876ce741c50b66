"""CSV files into arrays, and what is wrong with those that are no table of numbers."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from fastdc.data._faults import one_line

TABLE_SUFFIXES = (".csv", ".tsv", ".txt")
DELIMITERS = ",;\t|"


class _Table(NamedTuple):
    """How a CSV file is laid out."""

    delimiter: str
    names: list[str]  # of all columns; numbers from 0 where there is no header
    has_header: bool


def load_table(path: Path, columns: Sequence[str] | None, header: bool | None) -> np.ndarray:
    """The chosen columns as float64, of shape (n_rows, n_columns)."""
    try:
        table = _layout(path, header)
        used = _positions(table.names, columns, path)
        with _open_text(path) as file:
            if table.has_header:
                next(csv.reader(file, delimiter=table.delimiter))
            try:
                return np.loadtxt(file, delimiter=table.delimiter, usecols=used, ndmin=2, comments=None, quotechar='"')
            except ValueError as error:
                fault = _first_fault(path, table, used)
                raise ValueError(f"{path}: {fault or one_line(error)}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error


def _open_text(path: Path) -> IO[str]:
    return open(path, newline="", encoding="utf-8-sig")


def _layout(path: Path, header: bool | None) -> _Table:
    with _open_text(path) as file:
        line = file.readline()
    if not line.strip():
        raise ValueError(f"{path}: the file is empty or begins with an empty line")
    delimiter = max(DELIMITERS, key=line.count)
    with _open_text(path) as file:
        reader = csv.reader(file, delimiter=delimiter)
        first, second = next(reader), next(reader, None)
    if header is None:
        header = _looks_like_header(first, second)
    if header and second is None:
        raise ValueError(f"{path}: a header and no rows")
    return _Table(delimiter, first if header else [str(i) for i in range(len(first))], header)


def _looks_like_header(first: list[str], second: list[str] | None) -> bool:
    text = [bool(cell.strip()) and not _is_number(cell) for cell in first]
    if all(text):
        return True
    return second is not None and any(t and _is_number(below) for t, below in zip(text, second))


def _positions(names: list[str], columns: Sequence[str] | None, path: Path) -> list[int]:
    if columns is None:
        return list(range(len(names)))
    positions = []
    for column in columns:
        if column in names:
            positions.append(names.index(column))
        elif column.isdecimal() and int(column) < len(names):
            positions.append(int(column))
        else:
            raise ValueError(f"{path}: no column {column!r}; the columns are {_some(names)}")
    if not positions:
        raise ValueError(f"{path}: no columns chosen; the columns are {_some(names)}")
    return positions


def _first_fault(path: Path, table: _Table, used: list[int]) -> str:
    """The first cell that is no number or row of another length, in words; empty if there is none."""
    width = len(table.names)
    with _open_text(path) as file:
        reader = csv.reader(file, delimiter=table.delimiter)
        if table.has_header:
            next(reader)
        for row in reader:
            if not row:
                continue
            if len(row) != width:
                return f"line {reader.line_num} has {len(row)} cells, the first line has {width}"
            for i in used:
                if not _is_number(row[i]):
                    numeric = [name for name, cell in zip(table.names, row) if _is_number(cell)]
                    what = f"holds {row[i]!r}" if row[i].strip() else "is empty"
                    return (
                        f"column {table.names[i]!r} is not numeric: on line {reader.line_num} it {what}; choose "
                        f"the numeric columns (--columns), on this line {_some(numeric) or 'there are none'}"
                    )
    return ""


def load_column(path: Path) -> np.ndarray:
    """The one column of a file, without its header, as integers, floats or text."""
    table = _layout(path, header=None)
    with _open_text(path) as file:
        rows = [row for row in csv.reader(file, delimiter=table.delimiter) if row]
    if any(len(row) != 1 for row in rows):
        raise ValueError(f"{path}: labels must be in a file of one column, this one has {len(table.names)}")
    cells = [row[0].strip() for row in rows]
    if len(cells) > 1 and not _is_number(cells[0]) and _is_number(cells[1]):
        cells = cells[1:]
    if all(cell.lstrip("+-").isdecimal() for cell in cells):
        return np.array([int(cell) for cell in cells])
    if all(_is_number(cell) for cell in cells):
        return np.array([float(cell) for cell in cells])
    return np.array(cells)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _some(names: Sequence[str], most: int = 12) -> str:
    shown = ",".join(names[:most])
    return shown if len(names) <= most else f"{shown},... ({len(names)} in all)"

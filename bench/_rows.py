"""One measurement is one row, and one line of JSON. Files of rows are only ever appended to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

STATUSES = ("ok", "wrong", "missing", "out_of_memory", "failed")


@dataclass(frozen=True)
class Row:
    """A measurement of one provider in one mode at one shape.

    Times are milliseconds: the median and the 20 % and 80 % quantiles of ``repeats`` samples. Only a row with
    status "ok" has times; ``reason`` says why another has none. ``first_call_ms`` (nothing compiled yet) and
    ``cached_start_ms`` (compiled by an earlier process) are those of the fullest mode measured, and stand in
    its row. ``peak_bytes`` is memory over inputs, outputs and gradients. ``percent_of_roofline`` is the least
    time that the ceiling allows, over the median; the ceiling is ``gemm_gflops`` and ``copy_gbs``, measured
    on this machine with these threads. ``max_error`` is the largest of ``errors``, each relative to a float64
    truth; one that is not finite is None.
    """

    op: str
    shape: dict[str, int]
    provider: str
    mode: str
    status: str
    device: str
    device_name: str
    cores: int
    threads: int
    dtype: str
    date: str
    commit: str | None
    dirty: bool | None
    versions: dict[str, str | None]
    reason: str = ""
    note: str = ""
    median_ms: float | None = None
    q20_ms: float | None = None
    q80_ms: float | None = None
    repeats: int = 0
    prepare_ms: float | None = None
    first_call_ms: float | None = None
    cached_start_ms: float | None = None
    peak_bytes: int | None = None
    percent_of_roofline: float | None = None
    gemm_gflops: float | None = None
    copy_gbs: float | None = None
    max_error: float | None = None
    errors: dict[str, float | None] | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {STATUSES}, got {self.status!r}")

    @property
    def group(self) -> tuple[Any, ...]:
        """Rows of one group compete: same op, shape, mode, dtype, machine and threads."""
        return (self.op, tuple(self.shape.items()), self.mode, self.dtype, *self.machine)

    @property
    def machine(self) -> tuple[str, str, int]:
        return (self.device, self.device_name, self.threads)


def append_rows(path: Path, rows: Iterable[Row]) -> None:
    """Add rows at the end of a file, which is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(asdict(row), allow_nan=False) + "\n")


def read_rows(paths: Iterable[Path]) -> list[Row]:
    """Every row of the files, in their order. A line that is no row raises, naming file and line."""
    known = {field.name for field in fields(Row)}
    rows = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            values = json.loads(line)
            if set(values) != known:
                odd = ", ".join(sorted(set(values) ^ known))
                raise ValueError(f"{path}, line {number}: not a row of this harness, its keys differ in {odd}")
            rows.append(Row(**values))
    return rows


def holds_rows(path: Path) -> bool:
    """Whether a file is of this harness; other measurements may lie beside it."""
    with path.open(encoding="utf-8") as file:
        first = json.loads(file.readline() or "{}")
    return {"op", "provider", "mode", "status"} <= set(first)


def latest(rows: Iterable[Row]) -> list[Row]:
    """The last row of each provider in each group, in the order of first appearance."""
    newest: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        newest[(*row.group, row.provider)] = row
    return list(newest.values())


def slowdowns(rows: Iterable[Row]) -> dict[tuple[Any, ...], float]:
    """How many times slower than its group's best each timed row is, by ``(*row.group, row.provider)``."""
    timed = [row for row in rows if row.median_ms is not None]
    best: dict[tuple[Any, ...], float] = {}
    for row in timed:
        best[row.group] = min(best.get(row.group, float("inf")), row.median_ms or 0.0)
    return {(*row.group, row.provider): (row.median_ms or 0.0) / best[row.group] for row in timed}

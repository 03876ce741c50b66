"""Tables and plots of results: ``python -m bench.report [FILES] [--readme README.md] [--plot FILE.png]``.

Without files it reads those of ``bench/results`` that hold its rows. Where rows measure the same thing the
last one counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench._environment import ROOT
from bench._rows import Row, holds_rows, latest, read_rows, slowdowns
from bench._text import STATUS_WORDS, figure, machine_text, ratio_text, shape_text

BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
COLUMNS = ("provider", "ms", "20-80 %", "x slower", "peak MB", "first call s", "% roof", "error")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m bench.report", description="Tables and plots of results.")
    add = parser.add_argument
    add("files", nargs="*", type=Path, help="JSON lines files; default: those in bench/results")
    add("--op", nargs="+", help="only these ops")
    add(
        "--mode",
        choices=("forward", "backward", "both", "all"),
        help="default: the fullest measured of each op",
    )
    add("--readme", type=Path, help=f"write the table into this file, between {BEGIN} and {END}")
    add("--plot", type=Path, help="write a figure here; one op a file: with several, -OP is added to the name")
    options = parser.parse_args(arguments)
    files = options.files or default_files(ROOT / "bench" / "results")
    rows = [row for row in latest(read_rows(files)) if not options.op or row.op in options.op]
    if not rows:
        parser.error("no rows to report; measure first with python -m bench --op dec_loss")
    rows = select_mode(rows, options.mode)
    table = markdown(rows, files)
    print(table)
    if options.readme:
        replace_between_markers(options.readme, table)
    if options.plot:
        from bench._plot import plot_op

        ops = list(dict.fromkeys(row.op for row in rows))
        for op in ops:
            path = options.plot if len(ops) == 1 else options.plot.with_stem(f"{options.plot.stem}-{op}")
            plot_op([row for row in rows if row.op == op], path)


def default_files(folder: Path) -> list[Path]:
    """The files of the folder that hold rows of this harness."""
    return [path for path in sorted(folder.glob("*.jsonl")) if holds_rows(path)]


def select_mode(rows: Sequence[Row], mode: str | None) -> list[Row]:
    """Rows of one mode, of "all", or (None) of the fullest mode of each op."""
    if mode == "all":
        return list(rows)
    fullest = {op: max((row.mode for row in rows if row.op == op), key=_fullness) for op in {row.op for row in rows}}
    return [row for row in rows if row.mode == (mode or fullest[row.op])]


def tables(
    rows: Iterable[Row], heading: Sequence[str], leading: str
) -> Iterator[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    """(title, header, lines of cells) of each table: rows that agree in ``heading`` share one.

    ``heading`` and ``leading``, the first column, name facts of a row: "op", "shape", "mode", "machine".
    """
    rows = list(rows)
    ratio = slowdowns(rows)
    titled: dict[str, list[Row]] = {}
    for row in rows:
        titled.setdefault(", ".join(_fact(row, name) for name in heading), []).append(row)
    for title, members in titled.items():
        lines = [(_fact(row, leading), *_cells(row, ratio.get((*row.group, row.provider)))) for row in members]
        yield title, (leading, *COLUMNS), lines


def markdown(rows: Sequence[Row], files: Iterable[Path]) -> str:
    """A Markdown table for each op, mode and machine, with the files they come from."""
    parts = []
    for title, header, lines in tables(rows, heading=("op", "mode", "machine"), leading="shape"):
        parts += [f"**{title}**\n", _markdown_line(header)]
        parts += [_markdown_line(["---"] * 2 + ["---:"] * (len(header) - 2)), *map(_markdown_line, lines), ""]
    dates = sorted({row.date[:10] for row in rows})
    parts.append(
        "Medians of interleaved runs and their 20 and 80 % quantiles; peak memory over inputs, outputs and "
        "gradients; first call with nothing compiled, then from the cache; percent of what matrix products "
        "and memory traffic allow on this machine; error relative to a float64 truth. Measured "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}. "
        f"Made by `python -m bench.report` from {', '.join(f'`{Path(file).name}`' for file in files)}."
    )
    return "\n".join(parts)


def replace_between_markers(path: Path, table: str, begin: str = BEGIN, end: str = END) -> None:
    """Put the table between the two markers of a file; a file without both, in order, raises."""
    text = path.read_text(encoding="utf-8")
    start, stop = text.find(begin), text.find(end)
    if start < 0 or stop < start:
        raise ValueError(f"{path.name} needs the lines {begin} and {end}, in this order, to hold the table")
    path.write_text(f"{text[: start + len(begin)]}\n{table}\n{text[stop:]}", encoding="utf-8")


def _fact(row: Row, name: str) -> str:
    if name == "shape":
        return shape_text(row)
    return machine_text(row) if name == "machine" else str(getattr(row, name))


def _cells(row: Row, ratio: float | None) -> tuple[str, ...]:
    """The texts of a row in the order of ``COLUMNS``."""
    timed = row.median_ms is not None
    return (
        row.provider,
        figure(row.median_ms) if timed else STATUS_WORDS[row.status],
        f"{figure(row.q20_ms)}-{figure(row.q80_ms)}" if timed else "",
        ratio_text(ratio),
        figure(row.peak_bytes, 1e-6),
        _first_call(row),
        figure(row.percent_of_roofline),
        "" if row.max_error is None else f"{row.max_error:.0e}",
    )


def _first_call(row: Row) -> str:
    if row.first_call_ms is None:
        return ""
    return f"{figure(row.first_call_ms, 1e-3)}, {figure(row.cached_start_ms, 1e-3)}"


def _fullness(mode: str) -> int:
    return ("forward", "backward", "both").index(mode)


def _markdown_line(cells: Iterable[Any]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()

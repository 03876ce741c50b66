"""One line a measurement of every op: ``python -m bench.overview [--readme bench/README.md]``.

Of each op and shape the last rows count, in the fullest mode; ours is held against every other provider, fastest
first.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench._environment import ROOT
from bench._rows import Row, latest, read_rows
from bench._text import figure, machine_text, ratio_text, shape_text
from bench.report import default_files, replace_between_markers, select_mode

BEGIN, END = "<!-- overview:begin -->", "<!-- overview:end -->"
OURS = ("numba", "triton", "fastdc")  # "reference" is the readable form, no rival
MOST_RIVALS = 4


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m bench.overview", description="All ops in one table.")
    parser.add_argument("--readme", type=Path, help=f"write the table into this file, between {BEGIN} and {END}")
    parser.add_argument("files", nargs="*", type=Path, help="JSON lines; default: bench/results")
    options = parser.parse_args(arguments)
    table = markdown(latest(read_rows(options.files or default_files(ROOT / "bench" / "results"))))
    print(table)
    if options.readme:
        replace_between_markers(options.readme, table, BEGIN, END)


def markdown(rows: Sequence[Row]) -> str:
    """The table of the rows of one machine and dtype: those measured last."""
    newest = max(rows, key=lambda row: row.date)
    rows = select_mode([row for row in rows if (*row.machine, row.dtype) == (*newest.machine, newest.dtype)], None)
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        if row.median_ms is not None and row.provider != "reference":
            groups.setdefault(row.group, []).append(row)
    lines = [line for members in groups.values() if (line := _line(members))]
    dates = sorted(row.date[:10] for row in rows)
    return "\n".join(
        [
            "| op | shape | ms | how many times as long others take |",
            "| --- | --- | ---: | --- |",
            *lines,
            "",
            f"{machine_text(newest)}; forward and backward pass where there is a gradient. Medians of "
            f"interleaved runs, measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}. Made by "
            "`python -m bench.overview` from `bench/results`.",
        ]
    )


def _line(members: Sequence[Row]) -> str | None:
    ours = next((row for name in OURS for row in members if row.provider == name), None)
    rivals = sorted((row for row in members if row.provider not in OURS), key=lambda row: row.median_ms or 0.0)
    if ours is None or ours.median_ms is None or not rivals:
        return None
    times = [f"{row.provider} {ratio_text((row.median_ms or 0.0) / ours.median_ms)}" for row in rivals[:MOST_RIVALS]]
    return f"| `{ours.op}` | {shape_text(ours)} | {figure(ours.median_ms)} | {', '.join(times)} |"


if __name__ == "__main__":
    main()

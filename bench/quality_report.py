"""A table of quality beside ClustPy: ``python -m bench.quality_report [FILE] [--readme README.md]``.

Of each data set, method and comparison the last summary that ``bench.quality`` wrote counts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench._environment import ROOT
from bench.quality import METHODS
from bench.report import replace_between_markers

BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"
HEADER = (
    "| data | method | comparison | fastdc ACC / NMI | ClustPy ACC / NMI | difference of ACC | of NMI | "
    "seconds, share of ClustPy's |"
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser("python -m bench.quality_report", description="Quality as a table.")
    add = parser.add_argument
    default = ROOT / "bench" / "results" / "methods" / "quality.jsonl"
    add("file", nargs="?", type=Path, default=default, help="JSON lines of bench.quality")
    add("--readme", type=Path, help=f"write the table into this file, between {BEGIN} and {END}")
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for line in options.file.read_text(encoding="utf-8").splitlines()]
    table = markdown([row for row in rows if row["kind"] == "summary" and "clustpy: acc" in row])
    print(table)
    if options.readme:
        replace_between_markers(options.readme, table, BEGIN, END)


def markdown(summaries: Sequence[dict[str, Any]]) -> str:
    """The table, and a line that says what its columns are."""
    latest = {(row["data"], row["method"], row["comparison"]): row for row in summaries}
    lines = [HEADER, "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |", *map(_line, latest.values()), ""]
    seeds = sorted({row["seeds"] for row in latest.values()})
    dates = sorted(row["date"][:10] for row in latest.values())
    lines.append(
        f"Means over {' or '.join(map(str, seeds))} seeds. Paired: both sides from the same pre-trained weights and "
        "centers, with the same epochs and ClustPy's recipe; the difference has its standard error. Defaults: each "
        "side as it comes, pre-training included; some of ours were set with an eye on these data. ACC and NMI of "
        "`labels_`. Measured "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}. Made by `python -m bench.quality_report`."
    )
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    sides = [f"{row[f'{side}: acc']:.3f} / {row[f'{side}: nmi']:.3f}" for side in ("fastdc", "clustpy")]
    differences = [
        f"{row[f'minus clustpy: {score}']:+.4f} ± {row[f'minus clustpy: {score} error']:.4f}"
        for score in ("acc", "nmi")
    ]
    share = f"{row['fastdc: seconds'] / row['clustpy: seconds']:.2f}"
    about = row["data"], METHODS[row["method"]].kind.__name__, row["comparison"]
    return f"| {' | '.join([*about, *sides, *differences, share])} |"


if __name__ == "__main__":
    main()

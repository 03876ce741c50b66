"""``fastdc choose-k``: how many clusters the points of a file have."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from fastdc.cli._options import (
    AsJson,
    Columns,
    Device,
    Header,
    Key,
    Points,
    Quiet,
    Seed,
    Threads,
    check_target,
    open_points,
    use_threads,
)


def choose_k(
    file: Points,
    k: Annotated[str, typer.Option("--k", "-k", help="Numbers of clusters: 2-10, 10-100:10, or 2,4,8.")] = "2-10",
    criteria: Annotated[
        str, typer.Option(help="Some of silhouette, bic, mixture_bic and gap, with commas.")
    ] = "silhouette,bic,gap",
    plot: Annotated[Path | None, typer.Option(help="Draw the criteria here: .png, .pdf or .svg.")] = None,
    n_init: Annotated[int, typer.Option(help="Runs of k-means for each number.")] = 3,
    sample: Annotated[int, typer.Option(help="Most rows that silhouettes and gaps are computed on.")] = 10_000,
    references: Annotated[int, typer.Option(help="Sets of uniform data that a gap compares with.")] = 10,
    seed: Seed = 0,
    threads: Threads = None,
    device: Device = None,
    key: Key = None,
    columns: Columns = None,
    header: Header = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Run k-means for several numbers of clusters, and say which of them each criterion prefers."""
    numbers = read_numbers(k)
    check_target(plot, "--plot", file, (".png", ".pdf", ".svg"))
    use_threads(threads)
    from fastdc import choose_k as sweep_over
    from fastdc import plots

    if plot is not None:
        plots.require_matplotlib()
    sweep = sweep_over(
        open_points(file, key, columns, header),
        numbers,
        criteria=[name.strip() for name in criteria.split(",")],
        n_init=n_init,
        sample_size=sample,
        n_references=references,
        device=device,
        random_state=seed,
        verbose=not quiet and sys.stderr.isatty(),
    )
    if plot is not None:
        plots.save_figure(plots.k_sweep_figure(*sweep), plot)
    if quiet:
        return
    if as_json:
        typer.echo(json.dumps({"file": str(file), **sweep._asdict()}, indent=2))
        return
    _print_table(sweep.table)
    for name, best in sweep.suggested.items():
        typer.echo(f"{name} suggests {'none of these' if best is None else best}")


def read_numbers(text: str) -> list[int]:
    """Numbers of clusters from 2-10, 10-100:10 or 2,4,8, or several such with commas."""
    numbers: list[int] = []
    for part in text.split(","):
        matched = re.fullmatch(r"\s*(\d+)(?:-(\d+)(?::(\d+))?)?\s*", part)
        if matched is None:
            raise ValueError(f"--k must be numbers such as 2-10, 10-100:10 or 2,4,8, got {text!r}")
        first, last, step = matched.groups()
        if last is not None and (int(last) < int(first) or step == "0"):
            raise ValueError(f"--k {part.strip()} holds no numbers; ranges go from the smaller to the larger")
        numbers += range(int(first), int(last or first) + 1, int(step or 1))
    return numbers


def _print_table(table: list[dict[str, Any]]) -> None:
    columns = [name for name in table[0] if name != "seconds"]
    cells = [[name.replace("_", " ") for name in columns]]
    cells += [[_cell(row[name]) for name in columns] for row in table]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        typer.echo("  ".join(f"{cell:>{width}}" for cell, width in zip(line, widths)))


def _cell(value: float | int | None) -> str:
    return "-" if value is None else str(value) if isinstance(value, int) else f"{value:.6g}"

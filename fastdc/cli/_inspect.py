"""``fastdc evaluate``, ``fastdc methods``, ``fastdc demo`` and ``fastdc doctor``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fastdc.cli._options import AsJson, Seed
from fastdc.cli._report import print_report


def evaluate(
    labels_true: Annotated[Path, typer.Argument(help="True labels: .npy, .npz or CSV.")],
    labels: Annotated[Path, typer.Argument(help="Cluster labels: .npy, .npz or CSV.")],
    as_json: AsJson = False,
) -> None:
    """Compare cluster labels with true ones: accuracy, NMI, ARI and more."""
    from fastdc.data import load_labels
    from fastdc.metrics import evaluate as compare

    true, predicted = load_labels(labels_true), load_labels(labels)
    if len(true) != len(predicted):
        raise ValueError(
            f"{labels_true} has {len(true)} labels and {labels} has {len(predicted)}; both need one a sample"
        )
    print_report({name: float(value) for name, value in compare(true, predicted).items()}, as_json)


def methods(
    every: Annotated[bool, typer.Option("--all", help="Also those of the literature that are not here.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the deep clustering methods: family, name, paper, data, and what each does."""
    from fastdc.catalog import list_methods

    entries = list_methods(None) if every else [*list_methods("done"), *list_methods("preset")]
    if as_json:
        typer.echo(json.dumps([entry._asdict() for entry in entries], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("method", "class", "paper", "data", "what it does", box=None)
    family = ""
    for entry in entries:
        if entry.family != family:
            family = entry.family
            table.add_section()
            table.add_row(f"[bold]{family}[/bold]")
        here = entry.where or entry.status
        table.add_row(entry.name, here, entry.paper, entry.data, f"{entry.line}; {entry.note}".removesuffix("; "))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("fastdc-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Digits only and fewer epochs, in half a minute.")] = False,
    seed: Seed = 0,
) -> None:
    """Cluster handwritten digits with k-means, DEC and IDEC: a table, labels and pictures."""
    from fastdc.demo import run

    run(out, quick=quick, random_state=seed)


def doctor(
    warm: Annotated[bool, typer.Option("--warm", help="Compile every kernel into the cache.")] = False,
    as_json: AsJson = False,
) -> None:
    """Report versions, devices, threads, the cache, and which backends work here."""
    from fastdc import doctor as clinic

    report = clinic.examine(warm=warm)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        clinic.show(report)
    if not clinic.is_healthy(report):
        raise typer.Exit(1)

"""``fastdc evaluate``, ``fastdc demo`` and ``fastdc doctor``."""

from __future__ import annotations

import json
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

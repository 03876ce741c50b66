"""What commands print."""

from __future__ import annotations

import json
from typing import Any

import typer


def print_report(report: dict[str, Any], as_json: bool) -> None:
    """A line a name, or one JSON object."""
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    width = max(len(name) for name in report)
    for name, value in report.items():
        if isinstance(value, dict):
            value = ", ".join(f"{inner} {number}" for inner, number in value.items())
        elif isinstance(value, float):
            value = f"{value:.4g}" if abs(value) >= 1 else f"{value:.4f}"
        typer.echo(f"{name.replace('_', ' '):<{width}}  {value}")

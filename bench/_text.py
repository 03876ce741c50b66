"""Words and figures of results, for tables and plots alike."""

from __future__ import annotations

import math

from bench._rows import Row

STATUS_WORDS = {
    "wrong": "wrong result",
    "missing": "not installed",
    "out_of_memory": "out of memory",
    "failed": "failed",
}


def shape_text(row: Row) -> str:
    """The shape of a row as in ``n=1,000,000 k=10``."""
    return " ".join(f"{name}={size:,}" for name, size in row.shape.items())


def machine_text(row: Row) -> str:
    """Device, threads, dtype and torch version of a row."""
    threads = "" if row.device == "cuda" else f"{row.threads} thread{'s' * (row.threads != 1)}, "
    return f"{row.device_name}, {threads}{row.dtype}, torch {row.versions.get('torch')}"


def figure(value: float | None, scale: float = 1.0) -> str:
    """Three significant digits, never in exponent form; empty for None."""
    if value is None:
        return ""
    value *= scale
    if value == 0:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def ratio_text(ratio: float | None) -> str:
    if ratio is None:
        return ""
    return "best" if ratio == 1 else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"

"""Figures of results: one panel a shape, one bar a provider."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench._rows import Row, slowdowns
from bench._text import STATUS_WORDS, figure, machine_text, ratio_text, shape_text

OURS = ("numba", "triton", "reference")
_OURS_COLOUR, _REFERENCE_COLOUR, _OTHER_COLOUR = "#1b6ca8", "#8fb8d6", "#b9b4ab"


def plot_op(rows: Sequence[Row], path: Path) -> None:
    """Save a figure of one op: medians with 20 and 80 % quantiles on a log axis, and ratios to the best.

    Needs matplotlib. The kind of file follows from the ending of ``path``.
    """
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(row.group for row in rows))
    tallest = max(sum(row.group == group for row in rows) for group in panels)
    canvas = Figure(figsize=(3.6 * len(panels) + 1.2, 0.36 * tallest + 1.5), layout="constrained")
    ratio = slowdowns(rows)
    for axes, group in zip(canvas.subplots(1, len(panels), squeeze=False)[0], panels):
        members = [row for row in rows if row.group == group]
        members.sort(key=lambda row: row.median_ms or float("inf"))
        times = [row.median_ms for row in members if row.median_ms is not None]
        left, right = (min(times) / 2, max(times) * 6) if times else (0.1, 10.0)
        for height, row in enumerate(members):
            if row.median_ms is None or row.q20_ms is None or row.q80_ms is None:
                axes.text(left * 1.1, height, STATUS_WORDS[row.status], va="center", fontsize=8, color="0.45")
                continue
            spread = [[row.median_ms - row.q20_ms], [row.q80_ms - row.median_ms]]
            axes.barh(height, row.median_ms, height=0.66, color=_colour(row.provider), xerr=spread,
                      error_kw={"elinewidth": 0.8, "capsize": 2})  # fmt: skip
            times_best = ratio_text(ratio[(*row.group, row.provider)])
            label = figure(row.median_ms) + ("" if times_best == "best" else f"  ({times_best}x)")
            axes.text(row.q80_ms * 1.12, height, label, va="center", fontsize=8)
        axes.set_yticks(range(len(members)), [row.provider for row in members], fontsize=8)
        axes.set_xscale("log")
        axes.set_xlim(left, right)
        axes.set_ylim(len(members) - 0.4, -0.6)
        axes.tick_params(axis="x", labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(shape_text(members[0]), fontsize=9)
    canvas.suptitle(f"{rows[0].op}, {rows[0].mode}, {machine_text(rows[0])}", fontsize=10)
    canvas.supxlabel("milliseconds, median with 20 and 80 % quantiles", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=200)


def _colour(provider: str) -> str:
    if provider == "reference":
        return _REFERENCE_COLOUR
    return _OURS_COLOUR if provider in OURS else _OTHER_COLOUR

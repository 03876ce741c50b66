"""The command line: ``python -m bench --op dec_loss --shapes n=1000000,k=10,d=10 --threads 2``.

Measures every provider of an op, appends one JSON line a measurement to ``bench/results/<op>.jsonl`` and
prints tables. Run it from the root of the checkout, on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from bench._environment import ROOT
from bench._harness import MODES, Bench, all_benches, parse_shape
from bench._measure import Settings, measure
from bench._rows import Row, append_rows
from bench._timing import Budget
from bench.report import tables


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Run the benchmark that the arguments describe; returns its rows."""
    benches = all_benches()
    parser = _parser(benches)
    options = parser.parse_args(arguments)
    if options.list:
        _print_list(benches, options.device)
        return []
    if not options.op:
        parser.error("name an op with --op, or see them with --list")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can use; torch.cuda.is_available() is False")
    settings = _settings(options)
    rows = []
    for op in options.op:
        bench = benches[op]
        try:
            shapes = [parse_shape(text, bench.tiny) for text in options.shapes] or bench.shapes
            _check_providers(bench, options.providers or ())
        except ValueError as error:
            parser.error(f"{op}: {error}")
        out = options.out or ROOT / "bench" / "results" / f"{op}.jsonl"
        for threads in options.threads:
            for number, shape in enumerate(shapes):
                fresh = options.fresh == "all" or (options.fresh == "first" and number == 0)
                measured = measure(bench, shape, replace(settings, threads=threads, fresh=fresh))
                if not options.discard:
                    append_rows(out, measured)
                rows += measured
    print_tables(rows)
    return rows


def print_tables(rows: Sequence[Row]) -> None:
    """A table for each op, shape and thread count on the terminal; drawn by rich where it is installed."""
    for title, header, lines in tables(rows, heading=("op", "shape", "machine"), leading="mode"):
        try:
            from rich.console import Console
            from rich.table import Table
        except ImportError:
            widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
            texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)) for line in [header, *lines]]
            print("\n".join([title, *texts, ""]))
            continue
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(header):
            table.add_column(name, justify="left" if number < 2 else "right", no_wrap=number < 3)
        for line in lines:
            table.add_row(*line)
        Console(width=None if sys.stdout.isatty() else 120).print(table)


def _settings(options: argparse.Namespace) -> Settings:
    return Settings(
        device=options.device,
        dtype=options.dtype,
        modes=tuple(options.modes),
        providers=tuple(options.providers) if options.providers else None,
        budget=Budget(options.repeats, options.seconds),
        memory_fraction=options.memory_fraction,
        note=options.note,
    )


def _check_providers(bench: Bench, names: Sequence[str]) -> None:
    unknown = ", ".join(sorted(set(names) - set(bench.providers)))
    if unknown:
        raise ValueError(f"no provider {unknown}; it has {', '.join(bench.providers)}")


def _print_list(benches: dict[str, Bench], device: str) -> None:
    """``op: provider, provider`` for each op that runs on the device."""
    for op, bench in benches.items():
        able = [name for name, provider in bench.providers.items() if device in provider.devices]
        if able:
            print(f"{op}: {', '.join(able)}")


def _parser(benches: dict[str, Bench]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m bench", description="Measure the providers of an op side by side.")
    add = parser.add_argument
    add("--op", nargs="+", choices=sorted(benches), metavar="OP", help="ops to measure; see --list")
    add("--list", action="store_true", help="list the ops and their providers on the device")
    add("--shapes", nargs="+", default=[], metavar="n=1000,k=10,d=10", help="instead of the op's own shapes")
    add("--providers", nargs="+", metavar="NAME", help="instead of all that run on the device")
    add("--modes", nargs="+", default=MODES, choices=MODES, help="default: all that the op has")
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--dtype", default="float32", choices=("float64", "float32", "float16", "bfloat16"))
    add(
        "--threads",
        nargs="+",
        type=int,
        default=[torch.get_num_threads()],
        help="CPU threads, one or several",
    )
    add("--repeats", type=int, help="rounds of measurement; default: as many as fit in --seconds, 5 to 100")
    add("--seconds", type=float, default=10.0, help="time for the rounds of one shape and mode")
    add("--memory-fraction", type=float, default=0.6, help="share of the free memory a provider may take")
    fresh_help = "first calls and CPU peak memory, in new processes: at all shapes, the first, or none"
    add("--fresh", default="all", choices=("all", "first", "none"), help=fresh_help)
    add("--note", default="", help="a remark kept in every row, such as the state of the clocks")
    add("--out", type=Path, help="JSON lines file to append to; default: bench/results/OP.jsonl")
    add("--discard", action="store_true", help="print only, write no file")
    return parser

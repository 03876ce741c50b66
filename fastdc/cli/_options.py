"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

INPUT, RUN = "Input", "Run"  # panels of the help

Points = Annotated[
    Path,
    typer.Argument(
        help="Points, one sample a row: .npy, .npz, CSV, parquet, Arrow, zarr, HDF5 (file.h5:dataset), or a "
        "folder of such files."
    ),
]
Key = Annotated[str | None, typer.Option(help="Which array of an .npz, zarr or HDF5 file.", rich_help_panel=INPUT)]
Columns = Annotated[
    str | None,
    typer.Option(help="Columns of CSV (by name or number from 0: a,b,7), parquet and Arrow.", rich_help_panel=INPUT),
]
Header = Annotated[
    bool | None,
    typer.Option("--header/--no-header", help="Whether the first CSV row holds names.", rich_help_panel=INPUT),
]
Seed = Annotated[int, typer.Option(help="Seed of all random choices.")]
Threads = Annotated[int | None, typer.Option(help="Threads; default: those of torch.", rich_help_panel=RUN)]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; default: the GPU if there is one.", rich_help_panel=RUN)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")]

INITS = {
    "k-means++": "k-means++",
    "kmeans++": "k-means++",
    "k-means||": "k-means||",
    "kmeans||": "k-means||",
    "random": "random",
}


def open_points(file: Path, key: str | None, columns: str | None, header: bool | None) -> Any:
    """The row source of a file."""
    from fastdc.data import open_rows

    return open_rows(file, key=key, columns=columns.split(",") if columns else None, header=header)


def use_threads(threads: int | None) -> None:
    if threads is None:
        return
    import torch

    check_at_least(1, threads, "--threads")
    torch.set_num_threads(threads)


def read_init(text: str, *, names: bool = True) -> Any:
    """Where to start: a name of :data:`INITS`, or the centers of a file."""
    if names and text in INITS:
        return INITS[text]
    if not Path(text).suffix:
        ways = f"{', '.join(dict.fromkeys(INITS.values()))} or " if names else ""
        raise ValueError(f"--init must be {ways}a file of centers (.npy, .npz, .csv), got {text!r}")
    from fastdc.data import load_points

    return load_points(text)


def read_bytes(text: str, option: str) -> int:
    """A size such as 500M, 2G, 1.5GB or 1000000; units are powers of 1,000, with an i (GiB) of 1,024."""
    matched = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if matched is None:
        raise ValueError(f"{option} must be a number of bytes such as 500M or 2G, got {text!r}")
    number, unit, binary = matched.groups()
    size = int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " "))
    check_at_least(1, size, option)
    return size


def check_at_least(least: int, value: int, option: str) -> None:
    if value < least:
        raise ValueError(f"{option} must be at least {least}, got {value}")


def check_target(
    target: Path | None, option: str, source: Path, suffixes: tuple[str, ...] = (".npy", ".csv", ".txt")
) -> None:
    """Refuse a place that cannot be written before hours of work, and the input itself."""
    if target is None:
        return
    if target.resolve() == source.resolve():
        raise ValueError(f"{option} {target} would overwrite the input; choose another name")
    if target.is_dir():
        raise ValueError(f"{option} {target} is a folder; name a file")
    if not target.resolve().parent.is_dir():
        raise ValueError(f"{option} {target}: there is no folder {target.parent}; make it first")
    if target.suffix.lower() not in suffixes and not target.exists():
        *others, last = suffixes
        raise ValueError(f"{option} {target} must end in {', '.join(others)} or {last}")

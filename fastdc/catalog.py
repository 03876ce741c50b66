"""The deep-clustering methods of the field, and which of them stand here: what ``fastdc methods`` prints."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files
from typing import NamedTuple

STATUS = ("done", "preset", "next", "refused")


class Entry(NamedTuple):
    """A method of the literature.

    Attributes
    ----------
    family, name, paper, data : str
        ``data`` is what it is for: any (rows of features), images, text, graphs ...
    line : str
        What it does, in one line.
    status : {"done", "preset", "next", "refused"}
        "preset" is another class with other parameters, which ``note`` names.
    where : str
        Name of the class in ``fastdc.methods``; empty where there is none.
    note : str
        What is missing, or why it is refused.
    """

    family: str
    name: str
    paper: str
    data: str
    line: str
    status: str
    where: str
    note: str


@cache
def catalog() -> tuple[Entry, ...]:
    """All methods, family by family."""
    text = files("fastdc").joinpath("catalog.csv").read_text(encoding="utf-8")
    return tuple(Entry(**row) for row in csv.DictReader(text.splitlines()))


def list_methods(status: str | None = "done") -> list[Entry]:
    """Methods of one status, those that can be used if none is named; None lists all.

    Examples
    --------
    >>> [entry.where for entry in list_methods()][:2]
    ['DEC', 'IDEC']
    """
    if status is not None and status not in STATUS:
        raise ValueError(f"status must be one of {STATUS} or None, got {status!r}")
    return [entry for entry in catalog() if status in (None, entry.status)]


def as_table(entries: list[Entry]) -> str:
    """A Markdown table of entries."""
    head = ["| method | family | paper | data | what it does | here |", "|---|---|---|---|---|---|"]
    rows = []
    for entry in entries:
        here = entry.status if entry.status in ("next", "refused") else f"`{entry.where}`"
        here += f": {entry.note}" if entry.note else ""
        paper = entry.paper or "-"
        rows.append(f"| {entry.name} | {entry.family} | {paper} | {entry.data} | {entry.line} | {here} |")
    return "\n".join([*head, *rows]) + "\n"

"""What the tests of the command line share; its folder of points is a fixture of conftest."""

from __future__ import annotations

from fastdc import cli


def fails(capsys, *arguments: str) -> str:
    """The one line that a command which must fail prints."""
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("fastdc: ")
    return lines[0]


def same_partition(labels, true):
    pairs = set(zip(labels.tolist(), true.tolist()))
    return len(pairs) == len(set(labels.tolist())) == len(set(true.tolist()))

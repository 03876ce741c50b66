"""What each method says of itself: the class that the records of the files beside this one fill in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from fastdc._input import read_count
from fastdc.data import RowSource
from fastdc.planning.memory import Shape


@dataclass(frozen=True, kw_only=True)
class Work(ABC):
    """A method, its arguments as fields, and what it takes on the CPU with torch's threads.

    Bytes are anonymous memory, beside what the process and an array that is given to it hold already.
    """

    name: ClassVar[str]
    iterates: ClassVar[bool] = False  # operations and seconds are those of one of many iterations

    streamed: bool = False  # rows of a source are read a block at a time, or they and their copies lie in files

    def can_stream(self, shape: Shape) -> bool:
        """Whether rows of a source need not all be in memory."""
        return False

    def bytes(self, shape: Shape) -> int:
        """What a run adds at its peak, with rows that must be read into memory."""
        return self.added_bytes(shape) + (0 if self.streamed or shape.is_mapped else shape.n * shape.row_bytes)

    @abstractmethod
    def added_bytes(self, shape: Shape) -> int:
        """What a run adds at its peak to the rows."""

    @abstractmethod
    def flops(self, shape: Shape) -> float:
        """Additions and multiplications, about."""

    @abstractmethod
    def seconds(self, rows: RowSource) -> float:
        """From measurements on some of the rows."""

    def look_at(self, rows: RowSource) -> Work:
        """The same, with what some of the rows tell of its bytes; called once these may fit."""
        return self

    def check(self, shape: Shape) -> None:
        """Raise ValueError or TypeError where an argument is bad, or does not go with these rows."""
        if self.streamed and not self.can_stream(shape):
            raise ValueError(f"method {self.name} needs all rows in memory; leave streamed out")

    def instead(self, shape: Shape, available: int) -> Iterator[str]:
        """What would fit into so many bytes."""
        if not self.streamed and not shape.is_mapped:
            mapped = shape._replace(itemsize=4, is_mapped=True)
            if self.bytes(mapped) <= available:
                yield "the rows as a float32 .npy file, which is mapped and not read into memory"


@dataclass(frozen=True, kw_only=True)
class ClusterWork(Work):
    """A method that is told how many clusters there are."""

    n_clusters: int = 8

    def check(self, shape: Shape) -> None:
        super().check(shape)
        read_count(self.n_clusters, "n_clusters", high=shape.n, high_name="n_samples")

    def instead(self, shape: Shape, available: int) -> Iterator[str]:
        yield from super().instead(shape, available)
        most = most_that_fits(self, "n_clusters", shape, available)
        if most:
            yield f"at most {most:,} clusters"


def most_that_fits(work: Work, argument: str, shape: Shape, available: int) -> int:
    """The largest value from 1 to what an argument is now with which a run fits; 0 where none does."""
    low, high = 0, getattr(work, argument)
    while low < high:
        middle = (low + high + 1) // 2
        fits = replace(work, **{argument: middle}).bytes(shape) <= available
        low, high = (middle, high) if fits else (low, middle - 1)
    return low

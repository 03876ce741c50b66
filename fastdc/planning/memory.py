"""How many bytes are free, the shape that bytes follow from, and bytes as people read them."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from fastdc.data import RowSource
from fastdc.kernels import _copies

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
KERNEL_BYTES = 2 << 20  # scratch and what small calls leave with the allocator
LARGEST_KEPT = 1 << 25  # bytes of an array; glibc hands larger ones back when they are freed
KEPT = 2  # smaller ones that it keeps, measured


class Shape(NamedTuple):
    """Rows, as far as memory and time follow from them."""

    n: int
    d: int
    itemsize: int  # of the dtype that is computed in
    is_mapped: bool  # rows are seen where they lie, and need not be read into memory

    @classmethod
    def of(cls, rows: RowSource) -> Shape:
        return cls(*rows.shape, rows.dtype.itemsize, rows.view(0, 1) is not None)

    @property
    def row_bytes(self) -> int:
        return self.d * self.itemsize


def kept_bytes(array_bytes: int) -> int:
    """What the allocator keeps of freed arrays of such a size, while others of that size are made."""
    return KEPT * array_bytes if array_bytes < LARGEST_KEPT else 0


def copy_bytes(array_bytes: int, *, in_files: bool) -> int:
    """Memory that a copy of rows takes: none where it is large enough to go to a file."""
    return 0 if in_files and array_bytes >= _copies.LEAST_BYTES else array_bytes


def free_bytes() -> int:
    """Memory that can still be allocated on this machine, within the limit of its control group."""
    for line in _read(_MEMINFO).splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
            break
    else:  # not Linux
        return 1 << 62
    limit, used = _read(_CGROUP / "memory.max").strip(), _read(_CGROUP / "memory.current").strip()
    if not limit.isdecimal() or not used.isdecimal():  # no such group, or no limit
        return available
    return max(0, min(available, int(limit) - int(used)))


def readable(size: float) -> str:
    """Bytes with a unit, such as 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

"""Rows spread over the processes of ``torch.distributed``: what ranks tell each other.

A rank holds some rows of a matrix: all rows are those of rank 0, then those of rank 1, and so on.

An error on one rank must end all of them. So whatever can fail on one rank alone happens before a collective that
says whether it did: ``gather_numbers``, ``check`` and ``all_sum`` take the error, and all ranks raise.
"""

from __future__ import annotations

import gc
import importlib
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from fastdc.data import RowSource
from fastdc.kernels._group import check_group, gather_rows, shares_of

__all__ = ["PartRows", "Ranks", "own_rows", "save_rows", "torchrun_group"]


class Ranks:
    """The processes of a group, or this one alone, for which no collective is called.

    Parameters
    ----------
    group : None, "world" or torch.distributed.ProcessGroup
        None is this process alone, "world" all processes of ``torch.distributed.init_process_group``.

    Raises
    ------
    RuntimeError, TypeError
        If there is no such group, or this process is not in it.
    """

    def __init__(self, group: Any = None) -> None:
        if group == "world" and dist.is_available() and dist.is_initialized():
            group = dist.group.WORLD
        if dist.is_available() and isinstance(group, int) and group == dist.GroupMember.NON_GROUP_MEMBER:
            raise RuntimeError("this process does not belong to group; fit on its members only")
        check_group(group)
        self.group = group
        self.rank, self.size = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
        nccl = group is not None and dist.get_backend(group) == "nccl"
        self.device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")

    def gather_numbers(self, numbers: Sequence[int], error: BaseException | None = None) -> list[list[int]]:
        """The numbers (int64) of each rank, by rank. Where a rank comes with an error, all raise."""
        own = torch.tensor([error is not None, *numbers], dtype=torch.int64, device=self.device)
        if self.size == 1:
            told = [own]
        else:
            told = [torch.empty_like(own) for _ in range(self.size)]
            with self._answered():
                dist.all_gather(told, own, group=self.group)
        lists = torch.stack(told).tolist()
        failed = [rank for rank, (has_failed, *_) in enumerate(lists) if has_failed]
        if failed:
            self._raise(failed[0], error)
        return [values for _, *values in lists]

    def check(self, error: BaseException | None) -> None:
        """Raise on all ranks where one comes with an error."""
        self.gather_numbers([], error)

    def any(self, work: Callable[[], Any]) -> bool:
        """Whether ``work()`` is true on a rank; an error of one is raised on all."""
        if self.size == 1:
            return bool(work())
        answer, error = False, None
        try:
            answer = bool(work())
        except Exception as caught:  # noqa: BLE001 - raised by gather_numbers
            error = caught
        return any(value for (value,) in self.gather_numbers([answer], error))

    def from_first(self, work: Callable[[], bytes]) -> bytes:
        """What ``work()`` gives on rank 0, where alone it is called; an error of it is raised on all."""
        content, error = b"", None
        if self.rank == 0:
            try:
                content = work()
            except Exception as caught:  # noqa: BLE001 - raised by check
                error = caught
        self.check(error)
        return self._share(content, 0)

    def all_sum(self, numbers: Tensor, error: BaseException | None = None) -> Tensor:
        """Sum over the ranks of int64 numbers (m,): one all_reduce. Where a rank comes with an error, all raise."""
        flat = torch.cat([numbers, numbers.new_tensor([error is not None])]).to(self.device)
        if self.size > 1:
            with self._answered():
                dist.all_reduce(flat, group=self.group)
        if int(flat[-1]):
            self.check(error)
        return flat[:-1].to(numbers.device)

    def mean(self, values: Tensor) -> None:
        """Make floats, of one shape on all ranks, their means over the ranks, in place: one all_reduce."""
        if self.size > 1:
            here = values.to(self.device)
            with self._answered():
                dist.all_reduce(here, group=self.group)
            values.copy_(here.div_(self.size))

    def first(self, values: Tensor) -> Tensor:
        """The values of rank 0, on all ranks; all come with the same shape and dtype."""
        if self.size == 1:
            return values
        shared = values.to(self.device, copy=True).contiguous()
        with self._answered():
            dist.broadcast(shared, self._peer(0), group=self.group)
        return shared.to(values.device)

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all ranks, in the order of the ranks."""
        if self.size == 1:
            return rows
        with self._answered():
            here = rows.to(self.device)
            return gather_rows(here, shares_of(len(rows), self.group, self.device), self.group).to(rows.device)

    def exchange(self, outgoing: dict[int, Tensor], incoming: dict[int, Tensor]) -> None:
        """Send tensors to ranks, and fill those that come from ranks; each knows the shapes of both."""
        filled = {rank: torch.empty_like(tensor, device=self.device) for rank, tensor in incoming.items()}
        sent = {rank: tensor.to(self.device).contiguous() for rank, tensor in outgoing.items()}
        calls = [dist.P2POp(dist.isend, tensor, self._peer(rank), self.group) for rank, tensor in sent.items()]
        calls += [dist.P2POp(dist.irecv, tensor, self._peer(rank), self.group) for rank, tensor in filled.items()]
        if not calls:
            return
        with self._answered():
            for call in dist.batch_isend_irecv(calls):
                call.wait()
        for rank, tensor in incoming.items():
            tensor.copy_(filled[rank])

    def _share(self, content: bytes, source: int) -> bytes:
        """The bytes of one rank."""
        if self.size == 1:
            return content
        with self._answered():
            length = torch.tensor([len(content)], dtype=torch.int64, device=self.device)
            dist.broadcast(length, self._peer(source), group=self.group)
            shared = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
            if self.rank == source and content:
                shared.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
            dist.broadcast(shared, self._peer(source), group=self.group)
        return shared.cpu().numpy().tobytes()

    def _raise(self, first: int, error: BaseException | None) -> None:
        told = "" if error is None else f"{type(error).__name__}: {error}"
        told = self._share(told.encode(), first).decode()
        if error is not None:
            raise error
        raise RuntimeError(f"rank {first} of {self.size} failed: {told}")

    def _peer(self, rank: int) -> int:
        return dist.get_global_rank(self.group, rank)

    @contextmanager
    def _answered(self) -> Iterator[None]:
        """Around collectives: what torch raises where another process has ended, or hangs beyond the time-out."""
        try:
            yield
        except RuntimeError as error:
            first_line = str(error).strip().partition("\n")[0]
            raise RuntimeError(
                f"rank {self.rank} of {self.size} got no answer: another process has ended, or hung for longer than "
                f"the time-out of the group; look at what it printed ({first_line})"
            ) from error


class PartRows(RowSource):
    """Rows ``start`` to ``stop`` of another source; there may be none."""

    def __init__(self, source: RowSource, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= len(source):
            raise ValueError(f"start and stop must be in order within [0, {len(source)}], got {start} and {stop}")
        self.source, self.start = source, start
        self.shape, self.dtype, self.near = (stop - start, source.shape[1]), source.dtype, source.near

    def read(self, start: int, stop: int, out: np.ndarray) -> None:
        self.source.read(self.start + start, self.start + stop, out)

    def view(self, start: int, stop: int) -> np.ndarray | Tensor | None:
        return self.source.view(self.start + start, self.start + stop)

    def will_need(self, start: int, stop: int) -> None:
        self.source.will_need(self.start + start, self.start + stop)


def own_rows(source: RowSource, group: Any = "world") -> PartRows:
    """This rank's part of a source that every rank can read: as many rows for each, up to one.

    Parameters
    ----------
    source : RowSource
        The same on all ranks.
    group : "world", torch.distributed.ProcessGroup or None

    Examples
    --------
    >>> from fastdc.data import as_row_source
    >>> own_rows(as_row_source(np.zeros((5, 2))), group=None).shape
    (5, 2)
    """
    ranks = Ranks(group)
    start, stop = (len(source) * rank // ranks.size for rank in (ranks.rank, ranks.rank + 1))
    return PartRows(source, start, stop)


def save_rows(path: str | os.PathLike[str], rows: np.ndarray, group: Any = "world") -> None:
    """Write one ``.npy`` of the rows of all ranks, each by the rank that holds them; it appears whole or not at all.

    Parameters
    ----------
    path : path
        In a folder that all ranks see.
    rows : ndarray
        Of the same dtype on all ranks, and of the same shape but for their number.
    group : "world", torch.distributed.ProcessGroup or None
    """
    ranks = Ranks(group)
    counts = [count for (count,) in ranks.gather_numbers([len(rows)])]
    target = Path(path).resolve()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")

    def make() -> bytes:
        shape = (sum(counts), *rows.shape[1:])
        np.lib.format.open_memmap(temporary, "w+", rows.dtype, shape).flush()
        return str(temporary).encode()

    def put() -> bytes:
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
        return b""

    try:
        shared = ranks.from_first(make).decode()
        error = None
        try:
            if len(rows):
                start = sum(counts[: ranks.rank])
                whole = np.lib.format.open_memmap(shared, "r+")
                whole[start : start + len(rows)] = rows
                whole.flush()
        except Exception as caught:  # noqa: BLE001 - raised on all ranks
            error = caught
        ranks.check(error)
        ranks.from_first(put)
    finally:
        temporary.unlink(missing_ok=True)  # the other ranks have names of their own, which are not there


@contextmanager
def torchrun_group() -> Iterator[Any]:
    """ "world" in a process that ``torchrun`` started, with its group made and ended here; else None."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield "world" if dist.is_available() and dist.is_initialized() else None
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    # once there is a group, this module's defaults would hold it when torch imports it: threads of gloo that are alive
    # when the interpreter ends may abort the process
    importlib.import_module("torch.distributed.nn.functional")
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield "world"
    finally:
        dist.destroy_process_group()
        gc.collect()  # a group in a cycle would outlive the interpreter, and its threads abort the process

"""What the stages of one fit share: modules, data, order of the rows, processes, precision, history, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastdc.distributed import Ranks
from fastdc.training.batch import EMBED_ROWS, EMBED_ROWS_GPU, Batch, Views, embed
from fastdc.training.checkpoint import NO_CHECKPOINT, Checkpoint, Position
from fastdc.training.rows import SourceRows

Record = dict[str, Any]
AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Stage:
    """One step of a method: training, initialising a head, anything that works on a :class:`Trainer`.

    Attributes
    ----------
    memory : dict of str to Tensor
        What the stage leaves for later ones beside weights; checkpoints keep it.
    """

    memory: dict[str, Tensor]

    def run(self, trainer: Trainer) -> None:
        """Do it."""
        raise NotImplementedError(f"{type(self).__name__} must say what it does: def run(self, trainer)")

    def terms(self) -> list[nn.Module]:
        """The terms whose weights and memory a checkpoint must keep."""
        return []


@dataclass(kw_only=True)
class Settings:
    """How a fit goes through its data.

    Attributes
    ----------
    batch_size : int or None
        Most rows of a step, of all processes together; None is all rows. Batches of an epoch differ by at most one
        row. A batch of all rows stands in the order of the data.
    seed : int
        Of the order of the rows.
    amp : {None, "bfloat16", "float16"}
        Lower precision of networks in training, by ``torch.autocast``; float16 scales the loss.
    accumulate : int
        Parts of a batch that go through the networks one after the other before a step; losses that compare rows
        with each other then see those of a part.
    callbacks : sequence of callables
        Called with each record of the history; one that returns True ends the running stage.
    verbose : bool
        A progress bar for each stage, on standard error.
    group : None, "world" or torch.distributed.ProcessGroup
        Processes that share each batch. All hold all rows.
    """

    batch_size: int | None
    seed: int
    amp: str | None = None
    accumulate: int = 1
    callbacks: Sequence[Callable[[Record], Any]] = ()
    verbose: bool = False
    group: Any = None


@dataclass(eq=False)
class Trainer:
    """What the stages of one fit share.

    Attributes
    ----------
    network : nn.Module
        With ``encode``, and ``decode`` where a term asks for it, on the device of ``x``.
    x : Tensor or SourceRows of shape (n_samples, n_features)
    settings : Settings
    head : nn.Module or None
        What makes clusters of embeddings.
    history : list of dict
        A record for each epoch and each refresh.
    """

    network: nn.Module
    x: Tensor | SourceRows
    settings: Settings
    head: nn.Module | None = None
    history: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        settings = self.settings
        if settings.amp is not None and settings.amp not in AMP_DTYPES:
            raise ValueError(f"amp must be None or one of {tuple(AMP_DTYPES)}, got {settings.amp!r}")
        self.order = torch.Generator().manual_seed(settings.seed)
        self.ranks = Ranks(settings.group)
        self.scaler = torch.amp.GradScaler(self.x.device.type, enabled=settings.amp == "float16")
        if len(self.x) // self.steps_per_epoch < self.ranks.size:
            raise ValueError(
                f"batches of {len(self.x) // self.steps_per_epoch} rows leave some of {self.ranks.size} processes "
                "without any; raise batch_size or take fewer processes"
            )
        self._checkpoint: Checkpoint = NO_CHECKPOINT
        self._stages: Sequence[Stage] = ()
        self._position = Position()

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the data."""
        return -(-len(self.x) // (self.settings.batch_size or len(self.x)))

    @property
    def data(self) -> Tensor:
        """All rows in memory; those of a source are read."""
        return self.x[:]

    def run(self, stages: Sequence[Stage], checkpoint: Checkpoint = NO_CHECKPOINT) -> None:
        """Run the stages in order, from where the checkpoint stands to the end."""
        self._checkpoint, self._stages = checkpoint, stages
        self._position = checkpoint.restore(self, stages)
        for number in range(self._position.stage, len(stages)):
            stages[number].run(self)
            self._position = Position(number + 1)
            checkpoint.write(self, stages, self._position)

    def resumed(self) -> Position:
        """Where the running stage goes on; at its start if it has not been interrupted."""
        return self._position

    def keep(self, epoch: int, step: int, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """An epoch of the running stage is over: write a checkpoint if it is time."""
        position = Position(self._position.stage, epoch, step, [o.state_dict() for o in optimizers])
        self._checkpoint.write_if_due(self, self._stages, position)

    def epoch(self, views: Views | None = None, whole: bool = False) -> Iterator[Batch]:
        """All rows once, in a new random order; of each batch the rows of this process.

        ``whole`` is one batch of all rows, in the order of the data.
        """
        if whole:
            yield self._batch(self.data, torch.arange(len(self.x), device=self.x.device), 1.0, views)
            return
        if isinstance(self.x, SourceRows):
            for numbers, x in self.x.windows(self.order):
                for own, share in self._own_parts(torch.arange(len(x), device=x.device), len(x)):
                    yield self._batch(x[own], numbers[own], share, views)
            return
        n = len(self.x)
        if self.steps_per_epoch == 1:
            order = torch.arange(n, device=self.x.device)
        else:
            order = torch.randperm(n, generator=self.order).to(self.x.device)
        for own, share in self._own_parts(order, n):
            yield self._batch(self.x[own], own, share, views)

    def _own_parts(self, order: Tensor, n: int) -> Iterator[tuple[Tensor, float]]:
        """(rows of this process, their share) of each batch."""
        for rows in order.tensor_split(-(-n // (self.settings.batch_size or n))):
            own = rows.tensor_split(self.ranks.size)[self.ranks.rank]
            yield own, len(own) * self.ranks.size / len(rows)

    def _batch(self, x: Tensor, rows: Tensor, share: float, views: Views | None) -> Batch:
        batch = Batch(self.network, x, rows, self.x, views)
        batch.ranks, batch.share = self.ranks, share
        return batch

    def embed(self) -> Tensor:
        """Embedding of the whole data set, without dropout and the like; each process embeds its part."""
        part = self.x.embed if isinstance(self.x, SourceRows) else self._embed_part
        if self.ranks.size == 1:
            return part(self.network, 0, len(self.x))
        block = EMBED_ROWS.get(self.x.device.type, EMBED_ROWS_GPU)  # parts of whole blocks have the same bits
        n_blocks = -(-len(self.x) // block)
        start, stop = (n_blocks * rank // self.ranks.size * block for rank in (self.ranks.rank, self.ranks.rank + 1))
        stop = min(stop, len(self.x))
        if start < stop:
            return self.ranks.gather(part(self.network, start, stop))
        return self.ranks.gather(self.x.new_empty(0, *embed(self.network, self.x[:1]).shape[1:]))

    def _embed_part(self, network: nn.Module, start: int, stop: int) -> Tensor:
        assert isinstance(self.x, Tensor), "a source embeds its own parts"
        return embed(network, self.x[start:stop])

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Make tensors their means over the processes, in place, by one all_reduce."""
        if self.ranks.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        self.ranks.mean(flat)
        for tensor, mean in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(mean.view_as(tensor))

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of networks in training."""
        if self.settings.amp is None:
            return nullcontext()
        return torch.autocast(self.x.device.type, AMP_DTYPES[self.settings.amp])

    def record(self, **entry: Any) -> bool:
        """Add to the history and tell the callbacks; True if one of them asks to stop."""
        self.history.append(entry)
        answers = [callback(entry) for callback in self.settings.callbacks]
        return any(answer is True for answer in answers)


@contextmanager
def private_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators for modules that draw from them (dropout), and put them back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield

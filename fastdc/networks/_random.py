"""Weights drawn without touching the global random state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def fresh(generator: torch.Generator | None) -> torch.Generator:
    """The generator, or where there is none a new one of a fresh seed."""
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    return generator


@contextmanager
def drawn_from(generator: torch.Generator | None) -> Iterator[None]:
    """Within the block, modules draw their weights as torch does by default, but from ``generator``, on the CPU.

    None is a fresh seed.
    """
    generator = fresh(generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
        yield

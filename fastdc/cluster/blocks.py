"""Which rank works on which rows.

Blocks of rows are cut by the number of a row in the whole matrix, whoever holds it. A rank works on the blocks whose
first row it holds, and borrows once what lies of the last of them on the ranks that follow.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdc.distributed import Ranks
from fastdc.kernels._group import Shares


class Blocks(NamedTuple):
    """Blocks of ``size`` rows of the whole matrix, and the rows of a rank that hold and work on them."""

    shares: Shares
    size: int

    @property
    def lead(self) -> int:
        """Own rows that come before the first block that begins here: an earlier rank works on them."""
        held = self.shares.counts[self.shares.rank]
        return min(held, -self.shares.offset % self.size)

    @property
    def first(self) -> int:
        """Number of the first row that this rank works on."""
        return self.shares.offset + self.lead

    def loans(self) -> list[tuple[int, int, int]]:
        """(lender, borrower, number of rows) of all ranks, in the order of the rows."""
        found = []
        for rank in range(len(self.shares.counts)):
            lender = Blocks(self.shares._replace(rank=rank), self.size)
            if lender.lead:
                found.append((rank, self._holder(lender.shares.offset // self.size * self.size), lender.lead))
        return found

    def lend(self, lead: Tensor, ranks: Ranks) -> Tensor:
        """Given values of the own leading rows, those of the rows that follow the own ones in their last block."""
        rank, loans = self.shares.rank, self.loans()
        borrowed = {a: lead.new_empty((rows, *lead.shape[1:])) for a, b, rows in loans if b == rank}
        ranks.exchange({b: lead for a, b, _ in loans if a == rank}, borrowed)
        return torch.cat([*borrowed.values(), lead[:0]])

    def give_back(self, borrowed: Tensor, ranks: Ranks) -> Tensor:
        """The reverse: values of the own leading rows from those of borrowed ones."""
        rank, loans = self.shares.rank, self.loans()
        to = [(a, rows) for a, b, rows in loans if b == rank]
        parts = borrowed.split([rows for _, rows in to]) if to else ()
        lead = borrowed.new_empty((self.lead, *borrowed.shape[1:]))
        ranks.exchange({a: part for (a, _), part in zip(to, parts)}, {b: lead for a, b, _ in loans if a == rank})
        return lead

    def _holder(self, row: int) -> int:
        ends = np.cumsum(self.shares.counts)
        return int(np.searchsorted(ends, row, side="right"))

"""One kernel as it is built for one chip."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from bench._gpu_code import Costs
from bench._gpu_model import SIZES
from fastdc.kernels._calls import Size
from fastdc.kernels._testing import SHARED_BYTES


class Setting(NamedTuple):
    """How an operator is called."""

    size: Size = SIZES[0]
    dtype: str = "fp32"
    precision: str | None = None  # None is the chip's default
    strided: bool = False


@dataclass
class Configuration:
    """One kernel as it is built for one chip, and what came of it."""

    chip: str
    kernel: str
    call: str  # the first one that launches it
    setting: Setting
    products: str = ""  # precision of the products in it
    num_warps: int = 0
    registers: int = 0
    spills: int = 0
    shared_bytes: int = 0
    programs: int = 0  # that a multiprocessor holds at once
    warps: int = 0
    limited_by: str = ""
    matrix_instruction: str = ""
    mix: dict[str, int] = field(default_factory=dict)  # of the longest loop
    costs: Costs | None = None
    error: str = ""

    @property
    def fails(self) -> bool:
        return bool(self.error) or self.spills > 0 or self.shared_bytes > SHARED_BYTES[self.chip] or not self.programs

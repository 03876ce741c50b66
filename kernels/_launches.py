"""The launches of GPU kernels that a call would make on a chip, written down instead of made.

A call runs as it would on a GPU, on small tensors on the CPU and up to each launch: the launcher's own choice of
tiles, types, strides and constants is what is written down, so there is no second list of them to keep right.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from fastdc.kernels import _backend, _precision, _triton
from fastdc.kernels._calls import Material, Size, results, takes_precision

TYPES = {
    torch.float64: "fp64", torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16",
    torch.int64: "i64", torch.int32: "i32", torch.int8: "i8", torch.uint8: "u8", torch.bool: "i1",
}  # fmt: skip
CHIPS = {
    "sm_80": _triton.Chip(108, 80, 163 << 10),
    "sm_90": _triton.Chip(132, 90, 227 << 10),
    "sm_100": _triton.Chip(148, 100, 227 << 10),
    "gfx942": _triton.Chip(304, 0, 64 << 10),
}
SAMPLES = 300  # rows of a call; launchers choose by clusters and features, beyond some tiles not by rows
MOST_PROGRAMS = (2**31 - 1, 65535, 65535)  # along the axes of a grid
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


class Launch(NamedTuple):
    """One kernel as a launcher would start it: what a compiler must know, and the grid."""

    module: str
    kernel: str
    types: tuple[tuple[str, str], ...]  # of arguments at run time
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]  # pointers and integers that are multiples of 16
    options: tuple[tuple[str, int], ...]

    def load(self) -> Any:
        """The function under ``@triton.jit``."""
        return getattr(importlib.import_module(self.module), self.kernel)


def default_precision(chip: str) -> str:
    """Of products of float32 on a chip, where the caller names none."""
    return "bf16x6" if chip.startswith("gfx") else "tf32x3"


def launches(
    name: str, chip: str, size: Size, dtype: str = "fp32", precision: str | None = None, strided: bool = False
) -> list[Launch]:
    """All launches of a call of ``_calls.CALLS`` on a chip, in order, gradients included.

    Parameters
    ----------
    name : a key of ``CALLS``
    chip : {"sm_80", "sm_90", "sm_100", "gfx942"}
    size : Size
        Its n is not looked at: launchers choose by clusters and features.
    dtype : {"fp32", "bf16", "fp16", "fp64"}
        Of the rows.
    precision : str, optional
        Of products; None is the chip's default, and all that operators without this argument have.
    strided : bool
        Whether rows and centers are views of which no dimension is contiguous.
    """
    material = Material(size._replace(n=SAMPLES), DTYPES[dtype], strided=strided)
    options = {"precision": precision} if precision and takes_precision(name) and dtype != "fp64" else {}
    with recorded(chip) as found:
        results(name, material, backend="triton", **options)
    return found


@contextmanager
def recorded(chip: str) -> Iterator[list[Launch]]:
    """Calls on CPU tensors inside the block choose as on the chip; their launches are listed, results are zeros.

    Needs a process without TRITON_INTERPRET.

    Raises
    ------
    ValueError
        Inside the block, if a launch has more programs than a GPU takes.
    """
    from triton.runtime.jit import JITFunction

    found: list[Launch] = []

    def run(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        if any(size > most for size, most in zip(grid, MOST_PROGRAMS)):
            raise ValueError(f"{kernel.fn.__name__} wants {grid} programs, a GPU takes {MOST_PROGRAMS}")
        found.append(_launch(kernel, arguments, keywords))

    with ExitStack() as patches:
        patch = patches.enter_context
        patch(mock.patch.object(_triton, "INTERPRETER", CHIPS[chip]))
        patch(mock.patch.object(_precision, "INTERPRETER", default_precision(chip)))
        patch(mock.patch.object(_backend, "_hardware", _backend.Hardware(True, True, interprets_triton=True)))
        patch(mock.patch.object(JITFunction, "run", run))
        patch(mock.patch.object(torch, "empty", torch.zeros))  # what no kernel fills must be fit to go on with
        patch(mock.patch.object(torch, "empty_like", torch.zeros_like))
        patch(mock.patch.object(Tensor, "new_empty", Tensor.new_zeros))
        yield found


def _launch(kernel: Any, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Launch:
    """What Triton's own launcher would make of the arguments."""
    names = kernel.arg_names
    given = dict(zip(names, arguments)) | {name: value for name, value in keywords.items() if name in names}
    types: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aligned: list[str] = []
    for parameter in kernel.params:
        value = given.get(parameter.name, parameter.default)
        value = getattr(value, "value", value) if parameter.is_constexpr else value
        fixed_by_value = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or fixed_by_value:
            constants[parameter.name] = value
            continue
        types[parameter.name] = _type(value)
        number = value.data_ptr() if isinstance(value, Tensor) else value
        if isinstance(number, int) and number % 16 == 0 and not parameter.do_not_specialize:
            aligned.append(parameter.name)
    options = tuple((name, value) for name, value in keywords.items() if name not in names)
    module = kernel.fn.__module__
    return Launch(module, kernel.fn.__name__, tuple(types.items()), tuple(constants.items()), tuple(aligned), options)


def _type(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, bool):
        return "i1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"

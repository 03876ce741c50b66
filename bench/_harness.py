"""What a bench file looks like, and how one provider is called and checked.

A bench file is ``bench/bench_<anything>.py``. It is a module with one name the harness reads::

    BENCHES = [Bench(op="dec_loss", ...), ...]        # one entry an op

and everything about an op is in its :class:`Bench`. A *provider* is one way to compute the op: our own
backends, plain torch, torch.compile, a peer library. A *shape* is a dict of integers,
``{"n": 1000, "k": 10, "d": 10}``; its keys are the bench file's own, and they are passed as keyword arguments
to ``inputs``, ``cost`` and ``extra_bytes``. Importing a bench file must be cheap: import peers, numba and
kernels inside ``make``.

A complete bench file for an op without gradients::

    def inputs(n, k, dtype, device, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return {"labels": torch.randint(k, (n,), generator=generator).to(device), "n_clusters": k}

    def make_fastdc():                               # ImportError here means status "missing"
        from fastdc.kernels.room import histogram
        return histogram                             # called as histogram(labels=..., n_clusters=...)

    def truth(inputs, gradients):                    # exact, at every shape; chunk it, or return Rows
        return {"counts": torch.bincount(inputs["labels"], minlength=inputs["n_clusters"])}

    def cost(n, k, itemsize, mode):                  # what any implementation must do at least
        return Cost(flops=0, bytes_moved=8 * n + 8 * k)

    BENCHES = [
        Bench(
            op="histogram", shapes=[{"n": 10**6, "k": 10}], tiny={"n": 50, "k": 3}, inputs=inputs,
            outputs=("counts",), truth=truth, cost=cost,
            providers={"fastdc": Provider(make_fastdc), "numpy": Provider(make_numpy, devices=("cpu",))},
        )
    ]

Before a provider is timed its outputs (and gradients) are compared with ``truth`` on that very input.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

Shape = Mapping[str, int]
Inputs = dict[str, Any]
MODES = ("forward", "backward", "both")
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 1e-1}


class Cost(NamedTuple):
    """The least work of an op at a shape: operations of matrix products, bytes to and from main memory."""

    flops: float
    bytes_moved: float


class Rows(NamedTuple):
    """A truth known for some rows only, where all of them would take too long."""

    which: Tensor
    values: Tensor


def relative_error(got: Tensor, expected: Tensor, inputs: Inputs) -> float:
    """Largest absolute difference over the largest absolute expected value; infinite where got has a NaN."""
    if got.numel() == 0:
        return 0.0
    expected = expected.to(torch.float64)
    difference = (got.to(expected) - expected).abs().max()
    scale = expected.abs().max()
    error = float(difference / scale) if scale > 0 else float(difference)
    return error if error == error else float("inf")


def make_plain(function: Callable[..., Any]) -> Callable[..., Any]:
    """For ``Provider.make``: a plain form as it stands."""
    return function


def make_compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same through torch.compile."""
    return torch.compile(function)


def no_extra_bytes(*, itemsize: int, **shape: int) -> int:
    return 0


@dataclass(frozen=True)
class Provider:
    """One way to compute an op.

    Parameters
    ----------
    make : () -> run
        Imports what it needs and returns ``run(**inputs)``. An ImportError means that it is missing.
        ``run`` returns a tensor (or numpy array), or a tuple in the order of ``Bench.outputs``.
    extra_bytes : (**shape, itemsize) -> int
        Bytes held at the peak beyond inputs, outputs and gradients. Where they exceed 60 % of the free memory
        the provider is not run, and reported as out of memory.
    devices : tuple of str
        Where it can run, "cpu" and "cuda".
    prepare : (inputs) -> inputs, optional
        Converts the inputs to the provider's own types (numpy, an index, ...). Timed once, as ``prepare_ms``,
        and no part of the op's time.
    compiles_each_shape : bool
        Whether a new shape compiles anew, as torch.compile does.
    tolerance : float, optional
        The largest error of this provider, in place of ``Bench.tolerances``: for a plain form that is known
        to lose digits. The error stands beside its time.
    """

    make: Callable[[], Callable[..., Any]]
    extra_bytes: Callable[..., int] = no_extra_bytes
    devices: tuple[str, ...] = ("cpu", "cuda")
    prepare: Callable[[Inputs], Inputs] | None = None
    compiles_each_shape: bool = False
    tolerance: float | None = None


@dataclass(frozen=True)
class Bench:
    """All that the harness knows of an op.

    Parameters
    ----------
    op : str
        Its public name.
    shapes, tiny : shapes to measure, and one that takes milliseconds, for warm-up and tests
    inputs : (**shape, dtype, device, seed) -> dict
        Keyword arguments of every provider. An entry ``grad_output`` is not passed on: it is the gradient of
        the first output, needed where that output is not a scalar.
    outputs : tuple of str
        Names of what a provider returns.
    gradients : tuple of str
        Names of the inputs whose gradients are wanted; empty if the op has none. The gradient of ``x`` is the
        result ``grad_x``.
    truth : (inputs, gradients: bool) -> dict of Tensor or Rows
        Right results in float64, and ``grad_...`` too where ``gradients``; must fit in memory at every shape.
        What it leaves out is not checked.
    cost : (**shape, itemsize, mode) -> Cost
    providers : dict of Provider
    errors : dict of (got, expected, inputs) -> float
        How wrong a result is, for results where :func:`relative_error` does not say it (labels with ties).
    tolerances : dict of dtype -> float
        The largest error of a right result.
    """

    op: str
    shapes: Sequence[Shape]
    tiny: Shape
    inputs: Callable[..., Inputs]
    outputs: tuple[str, ...]
    truth: Callable[[Inputs, bool], Mapping[str, Tensor | Rows]]
    cost: Callable[..., Cost]
    providers: Mapping[str, Provider]
    gradients: tuple[str, ...] = ()
    errors: Mapping[str, Callable[[Tensor, Tensor, Inputs], float]] = field(default_factory=dict)
    tolerances: Mapping[torch.dtype, float] = field(default_factory=lambda: TOLERANCES)

    @property
    def modes(self) -> tuple[str, ...]:
        """Modes the op has: without gradients only "forward"."""
        return MODES if self.gradients else MODES[:1]


class Call:
    """One provider on one input, in each mode.

    "forward" runs without gradients; "both" computes outputs and gradients; "backward" is the part of "both"
    after the forward pass. An implementation may compute gradients in its forward pass, so "both" is the one
    figure that compares; the other two do not add up to it.
    """

    def __init__(self, bench: Bench, run: Callable[..., Any], inputs: Inputs) -> None:
        self.run = run
        self.outputs = bench.outputs
        self.gradients = bench.gradients
        self.grad_output = inputs.get("grad_output")
        self.plain = {name: value for name, value in inputs.items() if name != "grad_output"}
        self.leaves = self.plain | {name: inputs[name].detach().requires_grad_() for name in bench.gradients}

    def forward(self) -> Any:
        with torch.no_grad():
            return self.run(**self.plain)

    def with_graph(self) -> Any:
        return self.run(**self.leaves)

    def backward(self, outputs: Any) -> tuple[Tensor, ...]:
        return torch.autograd.grad(
            as_tuple(outputs)[0], [self.leaves[name] for name in self.gradients], self.grad_output
        )

    def both(self) -> tuple[Any, tuple[Tensor, ...]]:
        outputs = self.with_graph()
        return outputs, self.backward(outputs)

    def results(self, with_gradients: bool) -> dict[str, Tensor]:
        """Every result by name, detached."""
        outputs, grads = self.both() if with_gradients else (self.forward(), ())
        named = dict(zip(self.outputs, map(_as_tensor, as_tuple(outputs)), strict=True))
        named.update((f"grad_{name}", grad) for name, grad in zip(self.gradients, grads))
        return {name: value.detach() for name, value in named.items()}


def _as_tensor(value: Any) -> Tensor:
    """A tensor of any result; a Python float stays double."""
    return torch.as_tensor(value, dtype=torch.float64 if isinstance(value, float) else None)


def measure_errors(
    bench: Bench, got: Mapping[str, Tensor], truth: Mapping[str, Tensor | Rows], inputs: Inputs
) -> dict[str, float]:
    """The error of every result that ``truth`` knows; infinite where it is absent or has another shape."""
    errors = {}
    for name, expected in truth.items():
        value = got.get(name)
        if value is not None and isinstance(expected, Rows):
            value, expected = value[expected.which.to(value.device)], expected.values
        if value is None or value.shape != expected.shape:  # type: ignore[union-attr]
            errors[name] = float("inf")
        else:
            errors[name] = bench.errors.get(name, relative_error)(value, expected, inputs)  # type: ignore[arg-type]
    return errors


def all_benches() -> dict[str, Bench]:
    """Every op that a bench file here describes."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("bench_*.py")):
        for bench in importlib.import_module(f"bench.{path.stem}").BENCHES:
            found[bench.op] = bench
    return found


def parse_shape(text: str, keys: Iterable[str]) -> dict[str, int]:
    """``"n=1000,k=10"`` as a dict; the keys must be those of the op's own shapes."""
    try:
        shape = {name.strip(): int(value) for name, value in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise ValueError(f"a shape reads n=1000,k=10 with whole numbers, got {text!r}") from None
    if set(shape) != set(keys):
        raise ValueError(f"a shape of this op names {', '.join(keys)}, got {text!r}")
    return shape


def as_tuple(value: Any) -> tuple[Any, ...]:
    """Outputs of a provider as a tuple, also where it returns only one."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)

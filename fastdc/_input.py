"""Arrays in, tensors inside, arrays out: the one place where an estimator reads what a user passes.

What goes in comes out: torch tensors give torch tensors on the same device, all else gives NumPy arrays.

===========================================  ==============================================================
input                                        becomes
===========================================  ==============================================================
float32, float64                             itself, without a copy where rows are contiguous
float16, bfloat16, bool, (u)int8, (u)int16   float32, which holds every value
(u)int32, (u)int64                           float64
big-endian, misaligned, Fortran, strided     a contiguous native copy
read-only memmap                             a view; nothing is written to it
list of lists, DataFrame, objects of floats  through ``sklearn.utils.check_array``
tensor that requires grad                    detached
DLPack (CuPy, JAX)                           a view; results come back as NumPy arrays
sparse, masked, complex, text, dates         TypeError
===========================================  ==============================================================
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_array
from sklearn.utils.validation import validate_data
from torch import Tensor

_PROMOTED = {  # torch's side of the table above
    torch.float64: torch.float64,
    torch.int32: torch.float64,
    torch.int64: torch.float64,
    torch.uint32: torch.float64,
    torch.uint64: torch.float64,
    torch.float32: torch.float32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.bool: torch.float32,
    torch.uint8: torch.float32,
    torch.int8: torch.float32,
    torch.uint16: torch.float32,
    torch.int16: torch.float32,
}
_NUMPY = {torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


class ComplexInputError(TypeError, ValueError):
    """Complex numbers were passed. A TypeError by nature, a ValueError because scikit-learn says so."""


def read_points(
    X: Any,
    estimator: BaseEstimator | None = None,
    *,
    reset: bool = False,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    check_finite: bool = True,
    min_samples: int = 1,
) -> Tensor:
    """A contiguous 2-D float tensor of shape (n_samples, n_features) from anything of the table above.

    Parameters
    ----------
    X : array-like of shape (n_samples, n_features)
        Never written to. The tensor shares its memory where the table says so.
    estimator : BaseEstimator or None
        Whose ``n_features_in_`` and ``feature_names_in_`` are set (``reset=True``) or compared.
    dtype : torch.float32, torch.float64 or None
        None promotes as the table says. A value too large for the dtype is an error, never infinity.
    device : torch.device, str or None
        Where the tensor shall lie; None is :func:`choose_device`.
    check_finite : bool
        Raise on NaN and infinity, naming the first row and column. One pass and one synchronisation.
    min_samples : int
        Fewer rows are an error.

    Raises
    ------
    TypeError
        For sparse, masked, complex, text and date input.
    ValueError
        For other than two dimensions, too few rows or columns, another number of features than at fit,
        NaN, infinity, or a value too large.
    """
    device = choose_device(device, X)
    if not isinstance(X, Tensor) and not isinstance(X, np.ndarray) and hasattr(X, "__dlpack__"):
        X = torch.from_dlpack(X)
    if isinstance(X, Tensor):
        x = _from_tensor(X, dtype, min_samples, estimator)
    else:
        x = _from_array(X, dtype, min_samples, estimator)
    if estimator is not None:
        validate_data(estimator, X if hasattr(X, "shape") else x, reset=reset, skip_check_array=True)
    if check_finite:
        require_finite(x)
    return x.to(device)


def give_back(result: Tensor, X: Any) -> Any:
    """``result`` as the kind of array that ``X`` is: a tensor on the device of ``X``, or a NumPy array."""
    if isinstance(X, Tensor):
        return result.detach().to(X.device)
    return result.detach().cpu().numpy()


def choose_device(device: torch.device | str | None, X: Any = None) -> torch.device:
    """The device to compute on: the one asked for; else where a tensor lies; else the GPU if there is one.

    Raises
    ------
    RuntimeError
        If a GPU was asked for and torch sees none.
    """
    if device is None:
        if isinstance(X, Tensor):
            return X.device
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = torch.device(device)
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            f"device={str(device)!r} was asked for, but torch sees no GPU; pass device='cpu' or device=None, "
            "or install a CUDA or ROCm build of torch"
        )
    return wanted


def read_seed(random_state: Any) -> int:
    """A seed for ``torch.Generator`` from scikit-learn's ``random_state``; None is fresh entropy.

    Global random states are neither read nor changed; a ``RandomState`` or ``Generator`` advances one draw.
    """
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    if isinstance(random_state, (int, np.integer)) and not isinstance(random_state, bool) and random_state >= 0:
        return int(random_state)
    raise ValueError(
        f"random_state must be None, an integer >= 0, a numpy RandomState or Generator, got {random_state!r}"
    )


def read_count(value: Any, name: str, low: int = 1, high: int | None = None, high_name: str = "") -> int:
    """An integer parameter in [low, high]; True and 2.0 are no integers.

    Raises
    ------
    TypeError
        If it is no integer.
    ValueError
        If it is out of range, naming what bounds it.
    """
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    if high is not None and value > high:
        raise ValueError(f"{name}={value} must be at most {high_name}={high}")
    return int(value)


def read_sample_weight(sample_weight: Any, x: Any, *, signed: bool = False, may_be_zero: bool = False) -> Tensor | None:
    """Weights of the rows of ``x``, on its device and in its dtype: finite, not all 0, below 0 only if ``signed``.

    ``may_be_zero`` is for a part of the rows.
    """
    if sample_weight is None:
        return None
    if isinstance(sample_weight, Tensor):
        weight = sample_weight.detach().to(dtype=x.dtype, device=x.device)
    elif isinstance(sample_weight, (int, float, np.number)):
        weight = torch.full((len(x),), float(sample_weight), dtype=x.dtype, device=x.device)
    else:
        wanted = {"dtype": _NUMPY[x.dtype], "ensure_2d": False, "ensure_min_samples": 0 if may_be_zero else 1}
        array = check_array(sample_weight, **wanted, input_name="sample_weight")
        weight = as_tensor(array).to(x.device)
    if weight.ndim != 1:
        raise ValueError(f"Sample weights must be 1D array or scalar, got {weight.ndim} dimensions")
    if weight.shape != x.shape[:1]:
        raise ValueError(f"sample_weight.shape == {tuple(weight.shape)}, expected {(len(x),)}!")
    require_finite(weight, "sample_weight")
    if not signed and bool((weight < 0).any()):
        raise ValueError("Negative values in data passed to `sample_weight`")
    if not may_be_zero and not bool(weight.any()):
        raise ValueError("Sample weights must contain at least one non-zero number: all are zero.")
    return weight


def require_finite(x: Tensor, name: str = "X", first_row: int = 0) -> None:
    """Raise where ``x`` holds NaN or infinity. A finite sum proves that no entry does, and needs no copy.

    ``first_row`` is the number of its first row, where ``x`` is a part.
    """
    if bool(torch.isfinite(x.sum())):
        return
    bad = ~torch.isfinite(x)
    count = int(bad.sum())
    if count == 0:  # finite entries whose sum overflows
        return
    first = [int(i) for i in bad.nonzero()[0]]
    where = f"row {first_row + first[0]}" + (f", column {first[1]}" if len(first) > 1 else "")
    kind = "NaN" if bool(torch.isnan(x).any()) else f"infinity or a value too large for {_NUMPY[x.dtype]!r}"
    entries = "entry" if count == 1 else "entries"
    raise ValueError(
        f"Input {name} contains {kind}. {count} {entries}, the first in {where}; drop such rows "
        "or fill them in (sklearn.impute.SimpleImputer)."
    )


def _from_tensor(X: Tensor, dtype: torch.dtype | None, min_samples: int, estimator: Any) -> Tensor:
    if X.layout != torch.strided:
        raise TypeError(f"X is a sparse tensor ({X.layout}), dense data is required; use X.to_dense()")
    if X.is_complex():
        raise ComplexInputError(f"Complex data not supported: X is {X.dtype}")
    if X.dtype not in _PROMOTED:
        raise TypeError(f"X is {X.dtype}; pass floats, integers or booleans")
    check_shape(tuple(X.shape), min_samples, estimator)
    return X.detach().to(dtype or _PROMOTED[X.dtype]).contiguous()


def _from_array(X: Any, dtype: torch.dtype | None, min_samples: int, estimator: Any) -> Tensor:
    if isinstance(X, np.ma.MaskedArray):
        raise TypeError("X is a masked array, whose mask would be lost; fill it or drop its rows first")
    own = getattr(X, "dtype", None)
    if isinstance(own, np.dtype) and own.kind in "USMmV":
        raise TypeError(f"X has dtype {own}; pass numbers")
    if isinstance(own, np.dtype) and own.kind == "c":
        raise ComplexInputError(f"Complex data not supported: X is {own}")
    if dtype is not None:
        wanted = _NUMPY[dtype]
    else:
        numeric = isinstance(own, np.dtype) and own.kind in "fiub"
        # a long double has no torch type; float64 is the nearest
        wanted = min(np.result_type(own, np.float32), np.dtype(np.float64)) if numeric else np.dtype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # require_finite reports what overflows
        array = check_array(
            X,
            dtype=wanted,
            order="C",
            ensure_all_finite=False,
            ensure_min_samples=min_samples,
            estimator=estimator,
            input_name="X",
        )
    return as_tensor(np.require(array, requirements=["C", "A"]))


def check_shape(shape: tuple[int, ...], min_samples: int, estimator: Any) -> None:
    """The words of scikit-learn's ``check_array``."""
    if len(shape) != 2:
        raise ValueError(
            f"Expected 2D array, got {len(shape)}D array instead, of shape {shape}. Reshape your data either "
            "using X.reshape(-1, 1) if your data has a single feature or X.reshape(1, -1) if it contains a "
            "single sample."
        )
    by = f" by {type(estimator).__name__}" if estimator is not None else ""
    if shape[0] < min_samples:
        raise ValueError(
            f"Found array with {shape[0]} sample(s) (shape={shape}) while a minimum of {min_samples} is required{by}."
        )
    if shape[1] < 1:
        raise ValueError(f"Found array with 0 feature(s) (shape={shape}) while a minimum of 1 is required{by}.")


def as_tensor(array: np.ndarray) -> Tensor:
    """A tensor over the memory of ``array``, read-only memory too: nothing here writes to it."""
    if not array.flags.writeable:
        array = np.asarray(_WritableAlias(array))
    return torch.from_numpy(array)


class _WritableAlias:
    """NumPy's array interface over the same bytes, with the read-only flag taken off."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array  # keeps the memory alive
        interface = dict(array.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        self.__array_interface__ = interface

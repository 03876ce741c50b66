"""Saving and loading: one safetensors file that also holds a JSON description. Never pickle.

A file is written beside its place, flushed to the disk and renamed, so that whoever loads it finds the old
one or the new one, whole. It carries a SHA-256 over everything it says; a truncated, altered or foreign file
raises :class:`CheckpointError`. Nothing in a file is ever executed.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as pack_tensors
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from fastdc._files import atomic_write
from fastdc._version import __version__

FORMAT = 1


class CheckpointError(RuntimeError):
    """A file is damaged, was not written by fastdc, or does not fit what it is loaded into."""


def write_checkpoint(path: str | os.PathLike[str], tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write named tensors and a description of JSON values to ``path``, atomically.

    Raises
    ------
    TypeError
        If the description holds something that JSON cannot.
    """
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps({"format": FORMAT, "fastdc": __version__, **description}, sort_keys=True)
    content = pack_tensors(plain, metadata={"fastdc": text, "sha256": _digest(text, plain)})
    with atomic_write(path) as file:
        file.write(content)


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the description of a file of :func:`write_checkpoint`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    CheckpointError
        If it is truncated, altered, foreign, or of a later format.
    """
    return parse_checkpoint(Path(path).read_bytes(), path)


def parse_checkpoint(content: bytes, path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What :func:`read_checkpoint` returns, from the bytes of the file; errors name ``path``."""
    try:
        tensors = parse_tensors(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header.get("__metadata__") or {}
        text, digest = metadata["fastdc"], metadata["sha256"]
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is no checkpoint of fastdc, or a damaged one: {error}") from error
    if _digest(text, tensors) != digest:
        raise CheckpointError(f"{path} is damaged: its content does not match its checksum")
    description = json.loads(text)
    if description["format"] > FORMAT:
        raise CheckpointError(
            f"{path} has format {description['format']} (fastdc {description['fastdc']}); "
            f"fastdc {__version__} reads formats up to {FORMAT}; upgrade fastdc"
        )
    return tensors, description


class Saveable:
    """``save`` and ``load`` for an estimator: its parameters and every fitted attribute (``name_``).

    Numbers, text, lists and dicts go into the JSON part, arrays and tensors into the tensor part, weights of
    modules as their ``state_dict``, estimators of fastdc as what is said here. A module that the user passed as a
    parameter is not saved, only its weights: pass the like of it to ``load``. Callbacks, random generators and
    estimators of other libraries are not saved: as parameters they are None after ``load``.
    """

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator to ``path``, atomically: a crash leaves the old file or the new one."""
        check_is_fitted(self)
        tensors: dict[str, Tensor] = {}
        write_checkpoint(path, tensors, _describe(self, "", tensors))

    @classmethod
    def load(cls, path: str | os.PathLike[str], **parameters: Any) -> Any:
        """The estimator that ``save`` wrote.

        Parameters
        ----------
        path : path-like
            The file.
        **parameters
            Parameters to replace. The user's own modules (``autoencoder=``, ``encoder=``, ``decoder=``) must
            be given where the estimator was made with such; a copy of them gets the saved weights.

        Raises
        ------
        CheckpointError
            If the file is damaged, foreign, of another class, or does not fit the modules.
        """
        tensors, description = read_checkpoint(path)
        if description.get("class") != cls.__name__:
            raise CheckpointError(f"{path} holds a {description.get('class')}, not a {cls.__name__}")
        saved = description["parameters"]
        needed = [name for name, value in saved.items() if isinstance(value, dict) and "module" in value]
        if not set(needed) <= set(parameters):
            named = ", ".join(f"{name}=<{saved[name]['module']}>" for name in needed)
            raise CheckpointError(f"{path} was made with {named}; pass the like of it to load")
        estimator = cls(**({name: _revive(value) for name, value in saved.items()} | parameters))
        estimator._restore(description["fitted"], "", tensors)
        return estimator

    def _restore(self, fitted: dict[str, Any], prefix: str, tensors: dict[str, Tensor]) -> None:
        """Set the fitted attributes; ``prefix`` is how the names of their tensors begin."""
        weights: dict[str, dict[str, Tensor]] = {}
        for name, value in fitted.items():
            if isinstance(value, dict) and "module" in value:
                start = f"{prefix}{name}."
                inside = [key for key in tensors if key.startswith(start)]
                weights[name] = {key.removeprefix(start): tensors[key] for key in inside}
            else:
                setattr(self, name, _put_together(prefix + name, value, tensors))
        self._restore_modules(weights)

    def _restore_modules(self, weights: dict[str, dict[str, Tensor]]) -> None:
        """Build the modules among the fitted attributes and load their weights."""
        if weights:
            raise CheckpointError(f"{type(self).__name__} has no modules, the file holds {sorted(weights)}")


def plain(value: Any) -> Any:
    """A parameter as JSON holds it."""
    if isinstance(value, nn.Module):
        return {"module": type(value).__name__}
    if isinstance(value, BaseEstimator):
        parameters = {name: plain(item) for name, item in value.get_params(deep=False).items()}
        return {"estimator": type(value).__name__, "home": type(value).__module__, "parameters": parameters}
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        return value.item()
    if isinstance(value, tuple):
        return {"tuple": [plain(item) for item in value]}
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, (np.ndarray, Tensor)):
        kind = "torch" if isinstance(value, Tensor) else "numpy"
        return {"values": value.tolist(), "dtype": str(value.dtype).removeprefix("torch."), "array": kind}
    try:
        json.dumps(value)
    except TypeError:
        return None
    return value


def _revive(value: Any) -> Any:
    if isinstance(value, dict) and "tuple" in value:
        return tuple(_revive(item) for item in value["tuple"])
    if isinstance(value, dict) and "estimator" in value:
        return _estimator(value)
    if isinstance(value, dict) and "values" in value:
        array = np.array(value["values"], dtype=value["dtype"])
        return array if value["array"] == "numpy" else torch.from_numpy(array)
    return value


def _estimator(description: dict[str, Any]) -> Any:
    """An estimator of fastdc with its parameters; None for those of other libraries."""
    found = getattr(importlib.import_module("fastdc"), description["estimator"], None)
    if not (description["home"].startswith("fastdc.") and isinstance(found, type) and issubclass(found, Saveable)):
        return None
    return found(**{name: _revive(value) for name, value in description["parameters"].items()})


def _describe(estimator: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Class, parameters and fitted attributes, for JSON; arrays go into ``tensors`` under names with ``prefix``."""
    parameters = {name: plain(value) for name, value in estimator.get_params(deep=False).items()}
    fitted = {
        name: _take_apart(prefix + name, value, tensors)
        for name, value in vars(estimator).items()
        if name.endswith("_") and not name.startswith("_")
    }
    return {"class": type(estimator).__name__, "parameters": parameters, "fitted": fitted}


def _take_apart(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    """Move the arrays of a fitted attribute into ``tensors``; return the rest, for JSON."""
    if isinstance(value, nn.Module):
        tensors.update({f"{name}.{key}": tensor for key, tensor in value.state_dict().items()})
        return {"module": type(value).__name__}
    if isinstance(value, Saveable):
        return plain(value) | _describe(value, f"{name}.", tensors)
    if isinstance(value, BaseEstimator):
        raise TypeError(f"{name} is a {type(value).__name__}, no estimator of fastdc: only those can be saved")
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"array": "torch"}
    if isinstance(value, np.ndarray) and value.dtype.kind in "OU":
        return {"names": value.tolist()}
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(np.ascontiguousarray(value))
        return {"array": "numpy"}
    if isinstance(value, np.generic):
        return value.item()
    return value


def _put_together(name: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict) and "array" in value:
        return tensors[name].numpy() if value["array"] == "numpy" else tensors[name]
    if isinstance(value, dict) and "estimator" in value:
        estimator = _estimator(value)
        if estimator is None:
            raise CheckpointError(f"{name} is a {value['estimator']}, which this version of fastdc does not have")
        estimator._restore(value["fitted"], f"{name}.", tensors)
        return estimator
    if isinstance(value, dict) and "names" in value:
        return np.array(value["names"], dtype=object)
    return value


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over the description and each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

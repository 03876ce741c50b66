"""What ``fastdc cluster --method`` may name: an estimator, and the options of the command line that it takes.

A new method is a line of :data:`METHODS`. Options that the table does not give to a method are refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fastdc.catalog import list_methods
from fastdc.cli._options import check_at_least, read_init

COMMON = {"k": "n_clusters", "seed": "random_state", "device": "device"}
CENTERS = COMMON | {"init": "init", "n_init": "n_init", "max_iter": "max_iter"}
CENTERS_ONCE = {option: parameter for option, parameter in CENTERS.items() if option != "n_init"}
DEEP = COMMON | {
    "n_init": "n_init",
    "max_iter": "epochs",
    "tol": "tol",
    "batch_size": "batch_size",
    "pretrain_epochs": "pretrain_epochs",
}


class Method(NamedTuple):
    """An estimator of fastdc.

    ``options`` maps an option of the command line to the estimator's parameter; options of ``needed`` must be given.
    ``centers`` is the attribute that ``--centers`` writes. Such as read all rows ``whole`` are handed an array.
    Where ``is_planned``, :mod:`fastdc.planning` says whether the run fits in memory.
    """

    estimator: str
    options: Mapping[str, str]
    centers: str | None = "cluster_centers_"
    needed: tuple[str, ...] = ("k",)
    whole: bool = False
    is_planned: bool = False
    can_resume: bool = False
    takes_group: bool = False
    is_deep: bool = False


METHODS = {
    "kmeans": Method(
        "KMeans",
        CENTERS | {"tol": "tol", "deterministic": "deterministic"},
        is_planned=True,
        can_resume=True,
        takes_group=True,
    ),
    "minibatch": Method(
        "MiniBatchKMeans",
        CENTERS | {"batch_size": "batch_size", "deterministic": "deterministic"},
        is_planned=True,
        takes_group=True,
    ),
    "spherical": Method("SphericalKMeans", CENTERS | {"tol": "tol"}, whole=True),
    "balanced": Method("BalancedKMeans", CENTERS | {"tol": "tol", "capacity": "capacity"}),
    "bisecting": Method("BisectingKMeans", CENTERS | {"tol": "tol"}),
    "two-level": Method("TwoLevelKMeans", CENTERS_ONCE | {"tol": "tol", "memory": "memory"}),
    "gmm": Method(
        "GaussianMixture",
        {**COMMON, "k": "n_components", "init": "means_init", "n_init": "n_init", "max_iter": "max_iter", "tol": "tol"}
        | {"covariance": "covariance_type", "deterministic": "deterministic"},
        centers="means_",
        is_planned=True,
        can_resume=True,
        takes_group=True,
    ),
    "spectral": Method(
        "SpectralClustering",
        COMMON | {"n_init": "n_init", "neighbors": "n_neighbors", "metric": "metric"},
        centers=None,
        is_planned=True,
    ),
    "dbscan": Method(
        "DBSCAN",
        {"eps": "eps", "min_samples": "min_samples", "metric": "metric", "device": "device"},
        centers=None,
        needed=("eps", "min_samples"),
        is_planned=True,
    ),
    "density-peaks": Method("DensityPeaks", COMMON | {"neighbors": "n_neighbors", "metric": "metric"}, centers=None),
    "subspace": Method("SubspaceClustering", COMMON | {"n_init": "n_init", "tol": "tol"}, centers=None),
}
for _entry in list_methods():
    METHODS[_entry.where.lower()] = Method(_entry.where, DEEP, can_resume=True, takes_group=True, is_deep=True)
LEAST = {"k": 1, "seed": 0, "n_init": 1, "max_iter": 1, "batch_size": 1, "capacity": 1, "min_samples": 1}
LEAST |= {"neighbors": 1, "pretrain_epochs": 0}


def method_of(name: str) -> Method:
    """The line of the table."""
    if name not in METHODS:
        raise ValueError(f"--method must be one of {', '.join(METHODS)}, got {name!r}")
    return METHODS[name]


def parameters_of(name: str, given: Mapping[str, Any], settings: list[str]) -> dict[str, Any]:
    """Parameters of a method's estimator from the options that were given, and from ``--set NAME=VALUE``.

    Raises
    ------
    ValueError
        If the method does not take one of them or needs one that is missing, and for values out of range.
    """
    method = method_of(name)
    parameters: dict[str, Any] = {}
    for option, value in given.items():
        if option not in method.options:
            refuse(name, option, takers_of(option))
        if option in LEAST:
            check_at_least(LEAST[option], value, flag(option))
        if option == "init":
            value = read_init(value, names=method.options[option] == "init")
        parameters[method.options[option]] = value
    if method.is_deep:
        _check_taken(name, parameters, method)
    missing = [flag(option) for option in method.needed if option not in given]
    if missing:
        raise ValueError(f"--method {name} needs {' and '.join(missing)}")
    for setting in settings:
        parameter, value = _read_setting(setting, name)
        if parameter in parameters:
            raise ValueError(f"--set {parameter} gives what another option gives too; leave one of them out")
        parameters[parameter] = value
    return parameters


def _check_taken(name: str, parameters: Mapping[str, Any], method: Method) -> None:
    """Not every deep method has all parameters of the others."""
    import fastdc

    known = getattr(fastdc, method.estimator)._get_param_names()
    for option, parameter in method.options.items():
        if parameter in parameters and parameter not in known:
            raise ValueError(f"{flag(option)} is not for --method {name}: {method.estimator} has no {parameter}")


def refuse(name: str, option: str, who: list[str]) -> None:
    raise ValueError(f"{flag(option)} is for --method {', '.join(who)}, got --method {name}")


def takers(takes: Callable[..., bool]) -> list[str]:
    """Names of the methods that take something; the deep ones in three words."""
    named = [name for name, line in METHODS.items() if takes(line) and not line.is_deep]
    return [*named, *(["the deep methods"] if any(takes(line) and line.is_deep for line in METHODS.values()) else [])]


def takers_of(option: str) -> list[str]:
    """The methods that an option is for."""
    return takers(lambda line: option in line.options or (option == "memory" and line.is_planned))


def flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _read_setting(setting: str, name: str) -> tuple[str, Any]:
    """A parameter of the estimator and its value: JSON, or else text."""
    import fastdc

    parameter, equals, text = setting.partition("=")
    if not equals:
        raise ValueError(f"--set must be NAME=VALUE, got {setting!r}")
    known = getattr(fastdc, METHODS[name].estimator)._get_param_names()
    if parameter not in known:
        raise ValueError(
            f"--set {parameter}: {METHODS[name].estimator} has no such parameter; it has {', '.join(known)}"
        )
    try:
        return parameter, json.loads(text)
    except ValueError:
        return parameter, {"None": None, "True": True, "False": False}.get(text, text)

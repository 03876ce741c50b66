"""``fastdc plan``: what clustering the points of a file, or finding their neighbours, will take."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from fastdc.cli._methods import flag
from fastdc.cli._options import (
    AsJson,
    Columns,
    Header,
    Key,
    Points,
    Threads,
    check_at_least,
    open_points,
    read_bytes,
    use_threads,
)
from fastdc.cli._report import print_report

NEEDED = ("n_clusters", "eps", "min_samples")  # of those that a method takes
ARGUMENTS = {  # what fastdc.planning calls the options of the command line
    "k": "n_clusters",
    "batch_size": "batch_size",
    "covariance": "covariance_type",
    "eps": "eps",
    "min_samples": "min_samples",
    "neighbors": "n_neighbors",
    "metric": "metric",
    "algorithm": "algorithm",
}


def plan(
    file: Points,
    k: Annotated[int | None, typer.Option("--k", "-k", help="Number of clusters.")] = None,
    method: Annotated[str, typer.Option(help="kmeans, minibatch, gmm, spectral, dbscan or knn.")] = "kmeans",
    in_memory: Annotated[
        bool, typer.Option("--in-memory", help="K-means of rows that are loaded, not read a block at a time.")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(help="Rows of a step (minibatch).")] = None,
    covariance: Annotated[str | None, typer.Option(help="diag, spherical, tied or full (gmm).")] = None,
    eps: Annotated[float | None, typer.Option(help="Distance within which points are neighbours (dbscan).")] = None,
    min_samples: Annotated[int | None, typer.Option(help="Neighbours that make a point a core (dbscan).")] = None,
    neighbors: Annotated[
        int | None, typer.Option("--neighbors", "-n", help="Neighbours of each point (spectral, knn).")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="euclidean or cosine (dbscan, spectral, knn); inner_product (knn).")
    ] = None,
    algorithm: Annotated[str | None, typer.Option(help="auto, exact, lists, faiss or ivf (knn).")] = None,
    max_iter: Annotated[int, typer.Option(help="Iterations that the whole is reckoned for.")] = 100,
    memory: Annotated[
        str | None, typer.Option(help="Bytes that may be used; default: what is free, and 1G (knn).")
    ] = None,
    threads: Threads = None,
    key: Key = None,
    columns: Columns = None,
    header: Header = None,
    as_json: AsJson = False,
) -> None:
    """Say how many bytes and how long a run on the CPU will take, and refuse what cannot fit.

    Takes a few seconds: the method itself is measured on some of the rows. What grows faster than the rows do (dbscan,
    spectral, knn) is extrapolated.
    """
    from fastdc.planning import plan as make_plan
    from fastdc.planning import readable

    given = {
        "k": k,
        "batch_size": batch_size,
        "covariance": covariance,
        "eps": eps,
        "min_samples": min_samples,
        "neighbors": neighbors,
        "metric": metric,
        "algorithm": algorithm,
    }
    check_at_least(1, max_iter, "--max-iter")
    use_threads(threads)
    found = make_plan(
        open_points(file, key, columns, header),
        method,
        streamed=False if in_memory else None,
        memory=None if memory is None else read_bytes(memory, "--memory"),
        **arguments_of(method, given),
    )
    whole = found.seconds_per_iteration * (max_iter if found.iterates else 1)
    if as_json:
        typer.echo(json.dumps({"file": str(file), **found._asdict(), "seconds_at_most": whole}, indent=2))
        return
    report = {
        "file": str(file),
        "n_samples": found.n_samples,
        "n_features": found.n_features,
        "method": f"{found.method}, rows {'read a block at a time' if found.streamed else 'in memory'}",
        "peak memory": f"{readable(found.peak_bytes)}, {readable(found.available_bytes)} may be used",
    }
    if found.iterates:
        report["operations"] = f"{found.flops_per_iteration:.3g} an iteration"
        report["an iteration"] = f"{found.seconds_per_iteration:.3g} s"
        report[f"{max_iter} iterations"] = f"{whole:.3g} s"
    else:
        report["operations"] = f"{found.flops_per_iteration:.3g} at most"
        report["time"] = f"{whole:.3g} s"
    report["machine"] = f"{found.gemm_gflops:.0f} GFLOP/s, {found.copy_gbs:.1f} GB/s"
    print_report(report, as_json=False)


def arguments_of(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of :func:`fastdc.planning.plan` from the options of the command line that were given.

    Raises
    ------
    ValueError
        If the method does not take one of them, or needs one that is missing.
    """
    from fastdc.planning.plans import METHODS, options_of

    given = {option: value for option, value in given.items() if value is not None}
    if method not in METHODS:
        raise ValueError(f"--method must be one of {', '.join(METHODS)}, got {method!r}")
    for option in given:
        takers = [name for name in METHODS if ARGUMENTS[option] in options_of(name)]
        if method not in takers:
            raise ValueError(f"{flag(option)} is for --method {', '.join(takers)}, got --method {method}")
    needed = [option for option, name in ARGUMENTS.items() if name in NEEDED and name in options_of(method)]
    missing = [flag(option) for option in needed if option not in given]
    if missing:
        raise ValueError(f"--method {method} needs {' and '.join(missing)}")
    return {ARGUMENTS[option]: value for option, value in given.items()}

"""``fastdc cluster``: labels of the points of a file."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from fastdc.cli._methods import METHODS, Method, method_of, parameters_of, refuse, takers
from fastdc.cli._options import (
    RUN,
    AsJson,
    Columns,
    Device,
    Header,
    Key,
    Points,
    Quiet,
    Threads,
    check_target,
    open_points,
    read_bytes,
    use_threads,
)
from fastdc.cli._plan import ARGUMENTS
from fastdc.cli._report import print_report

METHOD = "Method"


def _option(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel=METHOD)


DEEP_IN_MEMORY = 4 << 30  # bytes of rows that deep methods read whole; more are shuffled by windows


def cluster(
    file: Points,
    k: Annotated[int | None, typer.Option("--k", "-k", help="Number of clusters.")] = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "kmeans",
    out: Annotated[Path, typer.Option(help="Labels, .npy or .csv.")] = Path("labels.npy"),
    centers: Annotated[Path | None, typer.Option(help="Also write the cluster centers here.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all random choices; default 0.")] = None,
    init: Annotated[str | None, _option("Where to start: kmeans++, kmeans||, random, or a file of centers.")] = None,
    n_init: Annotated[int | None, _option("Runs, of which the best counts.")] = None,
    max_iter: Annotated[int | None, _option("Most iterations, passes (minibatch) or epochs (deep methods).")] = None,
    tol: Annotated[float | None, _option("Change below which a run ends.")] = None,
    batch_size: Annotated[int | None, _option("Rows of a step (minibatch, deep methods).")] = None,
    capacity: Annotated[int | None, _option("Most rows of a cluster (balanced).")] = None,
    covariance: Annotated[str | None, _option("diag, spherical, tied or full (gmm).")] = None,
    eps: Annotated[float | None, _option("Distance within which points are neighbours (dbscan).")] = None,
    min_samples: Annotated[int | None, _option("Neighbours that make a point a core (dbscan).")] = None,
    neighbors: Annotated[int | None, _option("Neighbours of each point (spectral, density-peaks).")] = None,
    metric: Annotated[str | None, _option("euclidean or cosine (dbscan, spectral, density-peaks).")] = None,
    pretrain_epochs: Annotated[int | None, _option("Epochs that train the autoencoder first (deep methods).")] = None,
    settings: Annotated[
        list[str] | None, _option("NAME=VALUE: any other parameter of the estimator; may be repeated.", "--set")
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Bytes that may be used, such as 2G: what takes more is refused; default: what is free (kmeans, "
            "minibatch, gmm, spectral, dbscan). Of rows that are held at a time (two-level).",
            rich_help_panel=RUN,
        ),
    ] = None,
    threads: Threads = None,
    device: Device = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="The bits that any number of processes would find (kmeans, minibatch, gmm).",
            rich_help_panel=RUN,
        ),
    ] = False,
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Folder that keeps the state of the run (kmeans, gmm, deep methods).", rich_help_panel=RUN),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint, if there is one.", rich_help_panel=RUN)
    ] = False,
    key: Key = None,
    columns: Columns = None,
    header: Header = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Cluster the points of a file and write one label a sample.

    With kmeans, minibatch and gmm also by several processes: torchrun --nproc-per-node N -m fastdc cluster ...
    """
    chosen = method_of(method)
    if seed is None and "seed" in chosen.options:
        seed = 0
    given = {
        "k": k,
        "seed": seed,
        "init": init,
        "n_init": n_init,
        "max_iter": max_iter,
        "tol": tol,
        "batch_size": batch_size,
        "capacity": capacity,
        "covariance": covariance,
        "eps": eps,
        "min_samples": min_samples,
        "neighbors": neighbors,
        "metric": metric,
        "pretrain_epochs": pretrain_epochs,
        "device": device,
        "deterministic": deterministic or None,
    }
    most = None if memory is None else read_bytes(memory, "--memory")
    if most is not None and not chosen.is_planned:
        given["memory"] = most
    given = {option: value for option, value in given.items() if value is not None}
    parameters = parameters_of(method, given, settings or [])
    if centers is not None and chosen.centers is None:
        refuse(method, "centers", takers(lambda line: line.centers is not None))
    for target, option in ((out, "--out"), (centers, "--centers")):
        check_target(target, option, file)
    fit_options = _fit_options_of(method, checkpoint, resume)
    if chosen.is_deep:
        parameters["verbose"] = not quiet and sys.stderr.isatty()
    use_threads(threads)
    x = open_points(file, key, columns, header)
    if k is not None and k > len(x):
        raise ValueError(f"--k {k} asks for more clusters than {file} has rows ({len(x)}); choose a smaller --k")
    if chosen.is_planned:
        _check_fits(x, method, given, most)
    report = _run(method, x, parameters, fit_options, out, centers)
    if quiet or report is None:
        return
    about = {"file": str(file), "n_samples": x.shape[0], "n_features": x.shape[1]}
    print_report(about | report | ({} if seed is None else {"seed": seed}), as_json)


def _check_fits(x: Any, method: str, given: dict[str, Any], most: int | None) -> None:
    from fastdc.planning import check_fits

    options = {ARGUMENTS[option]: value for option, value in given.items() if option in ARGUMENTS}
    check_fits(x, method, memory=most, **options)


def _run(
    name: str, x: Any, parameters: dict[str, Any], fit_options: dict[str, Any], out: Path, centers: Path | None
) -> dict[str, Any] | None:
    """Fit, write, and what is to be said of it; None in processes that say nothing."""
    import fastdc
    from fastdc.data import save_array
    from fastdc.distributed import Ranks, own_rows, save_rows, torchrun_group

    method = METHODS[name]
    with torchrun_group() as group:
        started = time.perf_counter()
        if group is not None:
            if not method.takes_group:
                who = ", ".join(takers(lambda line: line.takes_group))
                raise ValueError(f"torchrun is for --method {who}, got --method {name}")
            if out.suffix.lower() != ".npy":
                raise ValueError(f"--out {out} must end in .npy, where every process writes its labels")
            parameters["group"] = group
        estimator = getattr(fastdc, method.estimator)(**parameters)
        is_shared = group is not None and not method.is_deep  # processes of a deep method see all rows
        labels = _fit(method, estimator, own_rows(x, group) if is_shared else x, fit_options)
        seconds = time.perf_counter() - started
        ranks = Ranks(group)
        sizes = _cluster_sizes(labels, parameters.get(method.options.get("k", "")), ranks if is_shared else Ranks(None))
        if is_shared:
            save_rows(out, labels, group)
        elif ranks.rank == 0:
            save_array(out, labels)
        if ranks.rank > 0:
            return None
        if centers is not None:
            assert method.centers is not None, "refused before"
            save_array(centers, getattr(estimator, method.centers))
    report = {"n_clusters": len(sizes) - 1, "cluster_sizes": _summary(sizes)}
    for attribute, kind in (("n_iter_", int), ("inertia_", float)):
        if hasattr(estimator, attribute):
            report[attribute.rstrip("_")] = kind(getattr(estimator, attribute))
    report |= {"method": name, "seconds": round(seconds, 3), "labels": str(out)}
    if ranks.size > 1:
        report["processes"] = ranks.size
    if centers is not None:
        report["centers"] = str(centers)
    return report


def _fit(method: Method, estimator: Any, rows: Any, fit_options: dict[str, Any]) -> Any:
    """Labels of the rows."""
    import numpy as np

    try:
        fits = rows.shape[0] * rows.shape[1] * rows.dtype.itemsize <= DEEP_IN_MEMORY
        whole = method.whole or (method.is_deep and fits)
        return estimator.fit_predict(np.asarray(rows) if whole else rows, **fit_options)
    except KeyboardInterrupt:
        folder = fit_options.get("checkpoint")
        if folder is not None and folder.is_dir() and any(folder.iterdir()):
            typer.echo(f"fastdc: {folder} holds the state of the run; --resume goes on with it", err=True)
        raise


def _fit_options_of(name: str, checkpoint: Path | None, resume: bool) -> dict[str, Any]:
    """Keyword arguments of ``fit`` from the options that were given."""
    if checkpoint is None:
        if resume:
            raise ValueError("--resume needs --checkpoint, the folder of the run to go on with")
        return {}
    if not METHODS[name].can_resume:
        refuse(name, "checkpoint", takers(lambda line: line.can_resume))
    if checkpoint.exists() and not checkpoint.is_dir():
        raise ValueError(f"--checkpoint {checkpoint} is a file; name a folder")
    return {"checkpoint": checkpoint, "resume": resume}


def _cluster_sizes(labels: Any, n_clusters: int | None, ranks: Any) -> Any:
    """Rows without a cluster (label -1), and those of each cluster, of all processes."""
    import numpy as np
    import torch

    least = 0 if n_clusters is None else n_clusters + 1
    return ranks.all_sum(torch.from_numpy(np.bincount(np.asarray(labels) + 1, minlength=max(1, least)))).numpy()


def _summary(sizes: Any) -> dict[str, int]:
    import numpy as np

    noise, of_clusters = int(sizes[0]), np.sort(sizes[1:])
    if len(of_clusters) == 0:
        return {"noise": noise}
    summary = {
        "smallest": int(of_clusters[0]),
        "median": int(np.median(of_clusters)),
        "largest": int(of_clusters[-1]),
        "empty": int((of_clusters == 0).sum()),
    }
    return summary | ({"noise": noise} if noise else {})

"""``fastdc plan``: what clustering the points of a file will take."""

from __future__ import annotations

import json
from typing import Annotated

import typer

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


def plan(
    file: Points,
    k: Annotated[int, typer.Option("--k", "-k", help="Number of clusters.")],
    method: Annotated[str, typer.Option(help="kmeans, minibatch or gmm.")] = "kmeans",
    in_memory: Annotated[
        bool, typer.Option("--in-memory", help="K-means of rows that are loaded, not read a block at a time.")
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Rows of a step (minibatch).")] = 1024,
    covariance: Annotated[str, typer.Option(help="diag, spherical, tied or full (gmm).")] = "diag",
    max_iter: Annotated[int, typer.Option(help="Iterations that the whole is reckoned for.")] = 100,
    memory: Annotated[str | None, typer.Option(help="Bytes that may be used; default: what is free.")] = None,
    threads: Threads = None,
    key: Key = None,
    columns: Columns = None,
    header: Header = None,
    as_json: AsJson = False,
) -> None:
    """Say how many bytes and how long a run on the CPU will take, and refuse what cannot fit.

    Takes a few seconds: the kernel is measured on some of the rows.
    """
    from fastdc.planning import plan as make_plan
    from fastdc.planning.plans import readable

    check_at_least(1, max_iter, "--max-iter")
    use_threads(threads)
    found = make_plan(
        open_points(file, key, columns, header),
        method,
        k,
        streamed=False if in_memory else None,
        batch_size=batch_size,
        covariance_type=covariance,
        memory=None if memory is None else read_bytes(memory, "--memory"),
    )
    seconds = max_iter * found.seconds_per_iteration
    if as_json:
        typer.echo(json.dumps({"file": str(file), **found._asdict(), "seconds_at_most": seconds}, indent=2))
        return
    report = {
        "file": str(file),
        "n_samples": found.n_samples,
        "n_features": found.n_features,
        "method": f"{found.method}, rows {'read a block at a time' if found.streamed else 'in memory'}",
        "peak memory": f"{readable(found.peak_bytes)}, {readable(found.available_bytes)} may be used",
        "operations": f"{found.flops_per_iteration:.3g} an iteration",
        "an iteration": f"{found.seconds_per_iteration:.3g} s",
        f"{max_iter} iterations": f"{seconds:.3g} s",
        "machine": f"{found.gemm_gflops:.0f} GFLOP/s, {found.copy_gbs:.1f} GB/s",
    }
    print_report(report, as_json=False)

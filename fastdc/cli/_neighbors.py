"""``fastdc knn``: the nearest points of each point of a file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fastdc.cli._options import (
    RUN,
    AsJson,
    Columns,
    Device,
    Header,
    Key,
    Points,
    Quiet,
    Seed,
    Threads,
    check_target,
    open_points,
    read_bytes,
    use_threads,
)
from fastdc.cli._report import print_report


def knn(
    file: Points,
    neighbors: Annotated[int, typer.Option("--neighbors", "-n", help="Neighbours of each point.")] = 15,
    metric: Annotated[str, typer.Option(help="euclidean, cosine or inner_product.")] = "euclidean",
    algorithm: Annotated[
        str,
        typer.Option(
            help="auto, exact, lists (approximate), or FAISS's faiss (all pairs), hnsw and ivf (approximate)."
        ),
    ] = "auto",
    recall: Annotated[
        float, typer.Option(help="Share of the true neighbours that lists, hnsw and ivf shall find, on a sample.")
    ] = 0.95,
    queries: Annotated[
        Path | None, typer.Option(help="A file of other points, whose neighbours in FILE are sought.")
    ] = None,
    out: Annotated[Path, typer.Option(help=".npz: arrays indices and distances; .npy: indices alone.")] = Path(
        "graph.npz"
    ),
    seed: Seed = 0,
    memory: Annotated[
        str, typer.Option(help="Bytes that an exact search may take beside mapped files.", rich_help_panel=RUN)
    ] = "1G",
    threads: Threads = None,
    device: Device = None,
    key: Key = None,
    columns: Columns = None,
    header: Header = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the nearest points of each point, a block of rows at a time.

    Points may be more than fit in memory; what does not fit all the same is refused. Of an approximate algorithm the
    share of true neighbours that it found is measured on a sample.
    """
    from fastdc.neighbors import save_knn
    from fastdc.planning import check_fits

    for source in (file, queries):
        if source is not None:
            check_target(out, "--out", source, (".npz", ".npy"))
    use_threads(threads)
    most = read_bytes(memory, "--memory")
    points = open_points(file, key, columns, header)
    asked = None if queries is None else open_points(queries, key, columns, header)
    n_queries = None if asked is None else len(asked)
    check_fits(
        points,
        "knn",
        n_neighbors=neighbors,
        metric=metric,
        algorithm=algorithm,
        search_memory=most,
        n_queries=n_queries,
    )
    saved = save_knn(
        points,
        out,
        neighbors,
        queries=asked,
        metric=metric,
        algorithm=algorithm,
        min_recall=recall,
        memory=most,
        device=device,
        random_state=seed,
        verbose=not quiet and sys.stderr.isatty(),
    )
    if quiet:
        return
    report = {
        "file": str(file),
        "n_queries": saved.n_queries,
        "n_neighbors": saved.n_neighbors,
        "metric": metric,
        "algorithm": saved.algorithm,
        "recall": saved.recall,
        "seconds": round(saved.seconds, 3),
        "rows_a_second": round(saved.n_queries / saved.seconds),
        "out": str(saved.path),
    }
    print_report(report, as_json)

"""The command ``fastdc``: cluster a file, compare labels, run the demo, look at the installation.

Results go to stdout, progress and warnings to stderr. The exit status is 0, or 2 with one line on stderr
that says what was wrong and how to repair it. Nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from fastdc._version import __version__

# Typer brings its own copy of click from version 0.20 on: take the base of its errors from what it exports.
_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="fastdc",
    help="Fast deep clustering.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Method(NamedTuple):
    """What ``--method`` builds: an estimator of fastdc, and what it calls the most passes over the data."""

    estimator: str
    limit: str
    is_deep: bool


METHODS = {
    "kmeans": Method("KMeans", "max_iter", is_deep=False),
    "dec": Method("DEC", "epochs", is_deep=True),
    "idec": Method("IDEC", "epochs", is_deep=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; ``arguments`` are those of the process by default."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    show_traceback = "--traceback" in argv
    before, warnings.showwarning = warnings.showwarning, _show_warning
    try:
        return int(app(argv, prog_name="fastdc", standalone_mode=False) or 0)
    except _USAGE_ERROR as error:
        # The help that a bare `fastdc` prints arrives here too, without a message.
        return _fail(error.format_message())  # type: ignore[attr-defined]
    except typer.Abort:
        return _fail("interrupted", status=130)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError, ArithmeticError) as error:
        if show_traceback:
            raise
        return _fail(" ".join(str(error).split()) or type(error).__name__)
    finally:
        warnings.showwarning = before


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastdc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="Show the traceback of an error.")] = False,
) -> None:
    pass


@app.command()
def cluster(
    file: Annotated[
        Path,
        typer.Argument(
            help="Points, one sample a row: .npy, .npz, CSV, parquet, Arrow, zarr, HDF5 (file.h5:dataset), or a "
            "folder of such files."
        ),
    ],
    k: Annotated[int, typer.Option("--k", "-k", help="Number of clusters.")],
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "kmeans",
    out: Annotated[Path, typer.Option(help="Labels, .npy or .csv.")] = Path("labels.npy"),
    centers: Annotated[Path | None, typer.Option(help="Also write the cluster centers here.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
    max_iter: Annotated[int | None, typer.Option(help="Most iterations (k-means) or epochs (deep methods).")] = None,
    pretrain_epochs: Annotated[
        int | None, typer.Option(help="Epochs that train the autoencoder first (deep methods).")
    ] = None,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="The bits that any number of processes would find (k-means).")
    ] = False,
    checkpoint: Annotated[Path | None, typer.Option(help="Folder that keeps the state of the run (k-means).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint, if there is one.")] = False,
    key: Annotated[str | None, typer.Option(help="Which array of an .npz, zarr or HDF5 file.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Columns of CSV (by name or number from 0: a,b,7), parquet and Arrow.")
    ] = None,
    header: Annotated[
        bool | None, typer.Option("--header/--no-header", help="Whether the first CSV row holds names.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Cluster the points of a file and write one label a sample.

    With k-means also by several processes: torchrun --nproc-per-node N -m fastdc cluster ...
    """
    from fastdc.data import open_rows, save_array
    from fastdc.distributed import Ranks, own_rows, save_rows, torchrun_group

    verbose = not quiet and sys.stderr.isatty()
    options = _options_of(method, max_iter, pretrain_epochs, verbose)
    _check_at_least_one(k, "--k")
    if seed < 0:
        raise ValueError(f"--seed must be at least 0, got {seed}")
    for target, option in ((out, "--out"), (centers, "--centers")):
        _check_target(target, option, file)
    fit_options = _fit_options_of(method, checkpoint, resume)
    if deterministic:
        _check_is_kmeans(method, "--deterministic")
        options["deterministic"] = True
    x = open_rows(file, key=key, columns=columns.split(",") if columns else None, header=header)
    if k > len(x):
        raise ValueError(f"--k {k} asks for more clusters than {file} has rows ({len(x)}); choose a smaller --k")
    with torchrun_group() as group:
        started = time.perf_counter()
        if group is not None:
            _check_is_kmeans(method, "torchrun")
            if out.suffix.lower() != ".npy":
                raise ValueError(f"--out {out} must end in .npy, where every process writes its labels")
            options["group"] = group
        estimator = _build(method, k, seed, options)
        own = x if group is None else own_rows(x, group)
        try:
            labels = estimator.fit_predict(own, **fit_options)  # of the methods, kmeans reads the rows a part at a time
        except KeyboardInterrupt:
            if checkpoint is not None and checkpoint.is_dir() and any(checkpoint.iterdir()):
                typer.echo(f"fastdc: {checkpoint} holds the state of the run; --resume goes on with it", err=True)
            raise
        seconds = time.perf_counter() - started
        ranks = Ranks(group)
        sizes = _cluster_sizes(labels, k, ranks)
        if group is None:
            save_array(out, labels)
        else:
            save_rows(out, labels, group)
        if ranks.rank > 0:
            return
        if centers is not None:
            save_array(centers, estimator.cluster_centers_)
    if quiet:
        return
    report = _cluster_report(file, x.shape, estimator, sizes)
    report |= {"method": method, "seed": seed, "seconds": round(seconds, 3), "labels": str(out)}
    if ranks.size > 1:
        report["processes"] = ranks.size
    if centers is not None:
        report["centers"] = str(centers)
    _print_report(report, as_json)


@app.command()
def evaluate(
    labels_true: Annotated[Path, typer.Argument(help="True labels: .npy, .npz or CSV.")],
    labels: Annotated[Path, typer.Argument(help="Cluster labels: .npy, .npz or CSV.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare cluster labels with true ones: accuracy, NMI, ARI and more."""
    from fastdc.data import load_labels
    from fastdc.metrics import evaluate as compare

    true, predicted = load_labels(labels_true), load_labels(labels)
    if len(true) != len(predicted):
        raise ValueError(
            f"{labels_true} has {len(true)} labels and {labels} has {len(predicted)}; both need one a sample"
        )
    _print_report({name: float(value) for name, value in compare(true, predicted).items()}, as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("fastdc-demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Digits only and fewer epochs, in half a minute.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of all random choices.")] = 0,
) -> None:
    """Cluster handwritten digits with k-means, DEC and IDEC: a table, labels and pictures."""
    from fastdc.demo import run

    run(out, quick=quick, random_state=seed)


@app.command()
def doctor(
    warm: Annotated[bool, typer.Option("--warm", help="Compile every kernel into the cache.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Report versions, devices, threads, the cache, and which backends work here."""
    from fastdc import doctor as clinic

    report = clinic.examine(warm=warm)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        clinic.show(report)
    if not clinic.is_healthy(report):
        raise typer.Exit(1)


def _build(method: str, n_clusters: int, seed: int, options: dict[str, Any]) -> Any:
    import fastdc

    return getattr(fastdc, METHODS[method].estimator)(n_clusters, random_state=seed, **options)


def _options_of(method: str, max_iter: int | None, pretrain_epochs: int | None, verbose: bool) -> dict[str, Any]:
    """Keyword arguments of the estimator from the options that were given."""
    if method not in METHODS:
        raise ValueError(f"--method must be one of {', '.join(METHODS)}, got {method!r}")
    options: dict[str, Any] = {}
    if max_iter is not None:
        _check_at_least_one(max_iter, "--max-iter")
        options[METHODS[method].limit] = max_iter
    if METHODS[method].is_deep:
        options["verbose"] = verbose
    if pretrain_epochs is not None:
        if not METHODS[method].is_deep:
            raise ValueError(f"--pretrain-epochs is for deep methods, --method is {method}")
        if pretrain_epochs < 0:
            raise ValueError(f"--pretrain-epochs must be at least 0, got {pretrain_epochs}")
        options["pretrain_epochs"] = pretrain_epochs
    return options


def _fit_options_of(method: str, checkpoint: Path | None, resume: bool) -> dict[str, Any]:
    """Keyword arguments of ``fit`` from the options that were given."""
    if checkpoint is None:
        if resume:
            raise ValueError("--resume needs --checkpoint, the folder of the run to go on with")
        return {}
    _check_is_kmeans(method, "--checkpoint")
    if checkpoint.exists() and not checkpoint.is_dir():
        raise ValueError(f"--checkpoint {checkpoint} is a file; name a folder")
    return {"checkpoint": checkpoint, "resume": resume}


def _check_is_kmeans(method: str, option: str) -> None:
    if method != "kmeans":
        raise ValueError(f"{option} is for --method kmeans, got --method {method}")


def _cluster_sizes(labels: Any, k: int, ranks: Any) -> Any:
    """Samples of each cluster, of all processes."""
    import numpy as np
    import torch

    return ranks.all_sum(torch.from_numpy(np.bincount(np.asarray(labels), minlength=k))).numpy()


def _cluster_report(file: Path, shape: tuple[int, ...], estimator: Any, sizes: Any) -> dict[str, Any]:
    import numpy as np

    sizes = np.sort(sizes)
    report: dict[str, Any] = {
        "file": str(file),
        "n_samples": shape[0],
        "n_features": shape[1],
        "n_clusters": len(sizes),
    }
    report["cluster_sizes"] = {
        "smallest": int(sizes[0]),
        "median": int(np.median(sizes)),
        "largest": int(sizes[-1]),
        "empty": int((sizes == 0).sum()),
    }
    for name in ("n_iter_", "inertia_"):
        if hasattr(estimator, name):
            value = getattr(estimator, name)
            report[name.rstrip("_")] = int(value) if name == "n_iter_" else float(value)
    return report


def _print_report(report: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    width = max(len(name) for name in report)
    for name, value in report.items():
        if isinstance(value, dict):
            value = ", ".join(f"{inner} {number}" for inner, number in value.items())
        elif isinstance(value, float):
            value = f"{value:.4g}" if abs(value) >= 1 else f"{value:.4f}"
        typer.echo(f"{name.replace('_', ' '):<{width}}  {value}")


def _check_at_least_one(value: int, option: str) -> None:
    if value < 1:
        raise ValueError(f"{option} must be at least 1, got {value}")


def _check_target(target: Path | None, option: str, source: Path) -> None:
    """Refuse a place that cannot be written before hours of work, and the input itself."""
    if target is None:
        return
    if target.resolve() == source.resolve():
        raise ValueError(f"{option} {target} would overwrite the input; choose another name")
    if target.is_dir():
        raise ValueError(f"{option} {target} is a folder; name a file")
    if not target.resolve().parent.is_dir():
        raise ValueError(f"{option} {target}: there is no folder {target.parent}; make it first")
    if target.suffix.lower() not in (".npy", ".csv", ".txt") and not target.exists():
        raise ValueError(f"{option} {target} must end in .npy, .csv or .txt")


def _fail(message: str, status: int = 2) -> int:
    if message:
        typer.echo(f"fastdc: {message}", err=True)
    return status


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"fastdc: warning: {' '.join(str(message).split())}", err=True)

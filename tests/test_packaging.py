"""kernels/ is fastdc.kernels in a wheel, an editable install and a plain checkout, each file exactly once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OURS = (
    "fastdc",
    "kernels",
    "bench",
    "tests",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)
LOCATE = (
    "import fastdc, fastdc.kernels, fastdc.kernels._backend as b;"
    "print(fastdc.__file__, fastdc.kernels.__file__, b.__file__, sep='\\n')"
)

pytestmark = pytest.mark.skipif(not (ROOT / "kernels").is_dir(), reason="runs in a checkout only")


def run(*command: str | os.PathLike[str], cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command where only ``path`` is added to the modules that this environment has."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_"))}
    environment |= {"PYTHONPATH": str(path)} if path else {}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


def succeed(*command: str | os.PathLike[str], cwd: Path, path: Path | None = None) -> str:
    done = run(*command, cwd=cwd, path=path)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def sources(folder: Path) -> set[str]:
    """Python files below a folder, without caches and without following links."""
    found = set()
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name != "__pycache__"]
        found |= {str((Path(parent) / name).relative_to(folder)) for name in files if name.endswith(".py")}
    return found


def copy_tree(target: Path, *, with_link: bool = True) -> Path:
    target.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "results", ".*")
    for name in OURS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, target / name)
    link = target / "fastdc" / "kernels"
    assert link.is_symlink()
    if not with_link:
        link.unlink()
    return target


def build(tree: Path, kind: str, out: Path) -> Path:
    succeed(sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out, tree, cwd=tree)
    (made,) = out.iterdir()
    return made


def check_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    counts = Counter(names)
    assert max(counts.values()) == 1
    packaged = {name.removeprefix("fastdc/kernels/") for name in names if name.startswith("fastdc/kernels/")}
    assert {name for name in packaged if name.endswith(".py")} == sources(ROOT / "kernels")
    face = {name.removeprefix("fastdc/") for name in names if name.startswith("fastdc/") and name.endswith(".py")}
    assert {name for name in face if not name.startswith("kernels/")} == sources(ROOT / "fastdc")
    assert "fastdc/py.typed" in names
    assert "fastdc/kernels/README.md" in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"fastdc", next(top for top in tops if top.endswith(".dist-info"))}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout."""
    return copy_tree(tmp_path_factory.mktemp("checkout") / "fastdc-tree")


@pytest.fixture(scope="module")
def sdist_wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that is built from the sdist, as a package index serves it."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build(tree, "sdist", folder / "dist")) as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # older Pythons lack it
        archive.extractall(folder, **safely)
    (unpacked,) = (path for path in folder.iterdir() if path.name != "dist")
    assert not (unpacked / "fastdc" / "kernels").is_symlink()
    return build(unpacked, "wheel", folder / "wheel")


def test_wheel_of_an_sdist_holds_every_file_once(sdist_wheel):
    check_wheel(sdist_wheel)


def test_wheel_of_a_checkout_holds_every_file_once(tree, tmp_path):
    check_wheel(build(tree, "wheel", tmp_path / "wheel"))


def test_wheel_of_a_tree_without_the_link_holds_every_file_once(tmp_path):
    tree = copy_tree(tmp_path / "no-link", with_link=False)
    check_wheel(build(tree, "wheel", tmp_path / "wheel"))


def test_installed_wheel_imports_outside_the_checkout(sdist_wheel, tmp_path):
    site = tmp_path / "site"
    succeed(
        *(
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--no-index",
            "--target",
            site,
            sdist_wheel,
        ),
        cwd=tmp_path,
    )
    files = succeed(sys.executable, "-c", LOCATE, cwd=tmp_path, path=site).split()
    expected = ["fastdc/__init__.py", "fastdc/kernels/__init__.py", "fastdc/kernels/_backend.py"]
    assert [Path(file) for file in files] == [site / name for name in expected]
    assert not (site / "kernels").exists()
    version = succeed(sys.executable, "-m", "fastdc", "--version", cwd=tmp_path, path=site)
    assert version.startswith("fastdc ")
    script = (site / "bin" / "fastdc").read_text() if os.name == "posix" else "fastdc.cli"
    assert "fastdc.cli" in script


# The tests may themselves run from an editable install, whose finder of the same name would be found first.
FORGET_EDITABLES = """
import site, sys
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in getattr(f, "__module__", "")]
for name in [name for name in sys.modules if name.startswith("__editable__")]:
    del sys.modules[name]
sys.path.insert(0, sys.argv[1])
site.addsitedir(sys.argv[1])
"""


@pytest.mark.parametrize("with_link", [True, False], ids=["link", "no-link"])
def test_editable_install_imports_the_checkout(tmp_path, with_link):
    tree = copy_tree(tmp_path / "tree", with_link=with_link)
    site = tmp_path / "site"
    # The editable wheel is what `pip install -e` asks the build for; unpacked, it is what pip installs.
    make = "import sys, setuptools.build_meta as b; b.build_editable(sys.argv[1])"
    succeed(sys.executable, "-c", make, tmp_path, cwd=tree)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    files = succeed(sys.executable, "-c", FORGET_EDITABLES + LOCATE, site, cwd=tmp_path).split()
    assert [Path(file).resolve() for file in files] == [
        tree / "fastdc" / "__init__.py",
        tree / "kernels" / "__init__.py",
        tree / "kernels" / "_backend.py",
    ]


def test_uninstalled_checkout_imports(tree):
    files = succeed(sys.executable, "-c", LOCATE, cwd=tree).split()
    assert files[0] == str(tree / "fastdc" / "__init__.py")
    assert Path(files[1]).resolve() == tree / "kernels" / "__init__.py"


def test_kernels_under_its_bare_name_is_refused(tree):
    done = run(sys.executable, "-c", "import kernels", cwd=tree)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: the folder kernels/ is the package fastdc.kernels")
    assert "write `import fastdc.kernels`" in last


def test_import_fastdc_loads_nothing_heavy(tree):
    code = "import sys, fastdc; dir(fastdc); print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(succeed(sys.executable, "-c", code, cwd=tree).split())
    assert "fastdc" in loaded
    assert not loaded & {
        "torch",
        "numba",
        "sklearn",
        "scipy",
        "numpy",
        "triton",
        "faiss",
        "matplotlib",
        "typer",
    }


def test_import_of_the_command_line_loads_nothing_heavy(tree):
    code = "import sys, fastdc.cli; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = set(succeed(sys.executable, "-c", code, cwd=tree).split())
    assert not loaded & {"torch", "numba", "sklearn", "scipy", "numpy", "triton", "faiss", "matplotlib"}


def test_every_public_name_loads(run_python):
    assert run_python("import fastdc; [getattr(fastdc, name) for name in fastdc.__all__]; print('all')") == "all"


def test_unknown_names_are_attribute_errors(run_python):
    code = "import fastdc\ntry: fastdc.KMean\nexcept AttributeError as e: print(e)"
    assert run_python(code) == "module 'fastdc' has no attribute 'KMean'"

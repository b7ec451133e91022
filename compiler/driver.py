"""compile: the whole pipeline, readable top to bottom. The one file that names the backends."""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import __version__
from ..backends.c.backend import Backend as CBackend
from ..backends.c.backend import Lowered as CLowered
from ..backends.c.emulation import emulator, replay
from ..backends.c.forms import link
from ..backends.c.program import Program
from ..backends.xla.backend import Backend as XlaBackend
from ..backends.xla.backend import Lowered as XlaLowered
from ..errors import InfercError
from ..ir.graph import IRError, Module
from ..ir.target import Target
from ..ir.text import print_module
from ..ir.types import DTYPES, Type
from ..runtime.artifact import ArtifactWriter, machine
from ..runtime.text import MEMBER, TEMPLATE_MEMBER
from . import emit, hub
from . import golden as golden_logits
from .frontends import open_source
from .frontends.language import Source as LanguageSource
from .frontends.language import share, without_head
from .frontends.quantizing import quantized
from .mapped import give_back, let_go_of_code
from .pipeline import run_passes
from .slabs import prepared
from .source import Source
from .text.patterns import Unsupported
from .text.tables import text_tables

SOURCE_FILES = (".json", ".jinja", ".safetensors")  # what a folder's artifact is made of
# What the matrices of a function may be rounded to; with all but bf16 the activations become int8 as it runs.
FUNCTION_QUANTS = ("bf16", "q8_0", "q6_k", "q5_k", "q4_k")
CACHES = {"c": ("f16", "q8_0"), "xla": ("f16", "bf16", "f32", "q8_0")}  # dtypes of the KV cache, by backend


@dataclass(frozen=True)
class Options:
    """What may be chosen about a compilation.

    `backend` is a name in `BACKENDS`; `target` names CPUs as `backends.c.target.choose` reads them. `context` is the
    most positions a session may hold, at most and by default the model's own; `chunk` the most tokens that one
    evaluation takes; `kv` the dtype of the cache, one of the backend's `CACHES`. `tuning` is a file that `inferc tune`
    wrote, `dump_ir` a folder for the graph after every pass. All symbols of the generated code begin with `prefix`.
    `quant` rounds matrices of floats: those of a language model to a format of `quantizing.QUANTS`, and those that a
    function multiplies with to one of `FUNCTION_QUANTS`. `emit` is the form of the output, of `emit.KINDS`; of all but
    "inferc", the `weights` are inside or beside it (`emit.WEIGHTS`). `embeddings` asks a language model for hidden
    states in place of logits.

    For XLA: `platforms` are those that the artifact may run on, `compute` is the dtype that products multiply in,
    `slots` the most sessions at once, and `mesh` the devices that share a model and its replicas, as in `tp=2,dp=4`.
    """

    backend: str = "c"
    target: str = "native"
    context: int | None = None
    chunk: int = 512
    kv: str = "f16"
    tuning: Path | None = None
    dump_ir: Path | None = None
    prefix: str = "model"
    quant: str | None = None
    platforms: str = "cpu,cuda,tpu"
    compute: str = "f32"
    slots: int = 1
    mesh: str = ""
    emit: str = "inferc"
    weights: str = "embed"
    embeddings: bool = False


class Lowered(Protocol):
    """A module in a backend's own form. `weight_order` has (name, offset, bytes) of each weight in the weights file."""

    @property
    def weight_order(self) -> Sequence[tuple[str, int, int]]: ...
    @property
    def weight_bytes(self) -> int: ...

    def facts(self) -> dict[str, Any]:
        """The manifest's part that is known before anything is built."""
        ...

    def stored(self, name: str, offset: int, type: Type, array: np.ndarray) -> Iterable[tuple[int, np.ndarray]]:
        """(offset, bytes) of what the weights file holds of a weight, as the interpreter holds it, from `offset` on."""
        ...

    def files(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """The artifact's members of this backend by name, and what building them adds to the manifest."""
        ...


class Backend(Protocol):
    """A backend with its options chosen; `ir` is what it says of itself to the passes."""

    @property
    def ir(self) -> Target: ...

    def check(self) -> None:
        """Raises InfercError where something that building needs is missing, so that it is said before any work."""
        ...

    def lower(self, module: Module, *, name: str, prefix: str, context: int, chunk: int, vocabulary: int,
              share: Callable[[int], Module]) -> Lowered:  # fmt: skip
        """A module after the passes; `vocabulary` counts the tokens of a model that takes some and gives no logits,
        else it is 0; `share(n)` is the module of each of n devices that share the model. Raises IRError for what the
        backend cannot express, InfercError for devices that cannot share."""
        ...


def _c_backend(options: Options) -> Backend:
    return CBackend.choose(options.target, options.tuning)


def _xla_backend(options: Options) -> Backend:
    return XlaBackend.choose(options.platforms, options.compute, options.kv, options.slots, options.mesh)


BACKENDS: Mapping[str, Callable[[Options], Backend]] = {"c": _c_backend, "xla": _xla_backend}


@dataclass(frozen=True)
class Plan:
    """A model lowered by a backend: everything but what the backend builds, and the packed weights."""

    source: Source
    options: Options
    module: Module
    lowered: Lowered
    context: int
    chunk: int

    @property
    def program(self) -> Program:
        """The C program of a plan for the C backend."""
        if not isinstance(self.lowered, CLowered):
            raise InfercError(f"the backend {self.options.backend} makes no C program: use the backend c")
        return self.lowered.program


@dataclass(frozen=True)
class Report:
    """What was compiled."""

    output: Path
    target: str
    seconds: float
    notes: tuple[str, ...]


def choose_backend(options: Options) -> Backend:
    """The backend that the options name. Raises InfercError for an unknown one, or a target or tuning it refuses."""
    if options.backend not in BACKENDS:
        raise InfercError(f"there is no backend {options.backend!r}: choose one of {', '.join(BACKENDS)}")
    return BACKENDS[options.backend](options)


def plan(source: Source, options: Options) -> Plan:
    """Tracing, passes and lowering of a model.

    Raises InfercError for a bad tuning, an unknown backend, target, cache dtype or context, and where the backend
    cannot compile the model.
    """
    context = options.context or source.trained
    if source.kind == "language" and not 1 <= context <= source.trained:
        raise InfercError(
            f"{source.path or source.name}: the context must be 1 to {source.trained}, what the model was trained for, "
            f"not {context}"
        )
    chunk = min(options.chunk, context)
    source = _giving(source, options)
    backend = choose_backend(options)
    if options.kv not in (caches := CACHES[options.backend]):
        raise InfercError(f"a cache cannot be {options.kv!r}: choose one of {', '.join(caches)}")
    try:
        passes_for = replace(backend.ir, cache=DTYPES[options.kv], rounded=_function_quant(source, options))

        def built(source: Source, dump: Path | None = None) -> Module:
            return run_passes(source.build(context, chunk), passes_for, dump)

        def shared(devices: int) -> Module:
            assert isinstance(source, LanguageSource)  # backends share steps of language models alone
            return built(share(source, devices))

        module = built(source, options.dump_ir)
        columns = source.kind == "language" and not options.embeddings  # of logits: they count the tokens
        vocabulary = 0 if columns else source.facts().get("vocab_size", 0)
        lowered = backend.lower(module, name=source.name, prefix=options.prefix, context=context, chunk=chunk,
                                vocabulary=vocabulary, share=shared)  # fmt: skip
    except IRError as error:
        raise InfercError(f"{source.path or source.name}: cannot be compiled for {options.target}: {error}") from error
    except OSError as error:
        raise InfercError(f"cannot write the graph to {options.dump_ir}: {error.strerror}") from error
    return Plan(source, options, module, lowered, context, chunk)


def _function_quant(source: Source, options: Options) -> str:
    """The format that the matrices of a function are rounded to, "" for none. Raises InfercError for one that functions
    do not have."""
    if options.quant is None or source.kind == "language":
        return ""
    if options.quant not in FUNCTION_QUANTS:
        raise InfercError(f"{source.name}: the matrices of a function cannot be {options.quant!r:.30}: choose one of "
                          f"{', '.join(FUNCTION_QUANTS)}")  # fmt: skip
    if options.backend != "c":
        raise InfercError(f"{source.name}: a function is rounded to {options.quant} by the backend c alone; with xla "
                          "say compute=\"bf16\"")  # fmt: skip
    return options.quant


def open_model(path: Path, quant: str | None = None) -> Source:
    """The model at `path`, the float matrices of a language model in the format `quant` where one is named.

    Raises InfercError as its front end does, and for a quantisation that is unknown.
    """
    source = open_source(path)
    return quantized(source, quant) if quant is not None and isinstance(source, LanguageSource) else source


def _giving(source: Source, options: Options) -> Source:
    """The source as the options want its output. Raises InfercError for embeddings of what cannot give them."""
    if not options.embeddings:
        return source
    if not isinstance(source, LanguageSource):
        what = source.path or source.name
        raise InfercError(f"{what} is a function: only language models can be asked for embeddings")
    if options.backend != "c" or options.emit == "wasm":
        raise InfercError("embeddings are given by the backend c, in all forms but wasm: leave --embeddings out")
    return without_head(source)


def plan_model(path: Path, **options: Any) -> Plan:
    """The plan of the model at `path`; `options` are the fields of `Options`. Raises InfercError as `plan` does, and
    for a bad file or an unknown architecture."""
    chosen = Options(**options)
    return plan(open_model(path, chosen.quant), chosen)


def compile_model(source: str, output: Path, *, progress: hub.Progress | None = None, **options: Any) -> Report:
    """Compiles the model that `source` names (as `hub.pull` understands it) into the artifact `output`.

    `options` are the fields of `Options`. Raises InfercError as `plan_model` and `compile_source` do.
    """
    report = progress or (lambda what, done, total: None)
    path = hub.pull(source, report)
    chosen = Options(**options)
    _check_emit(chosen)
    return compile_source(open_model(path, chosen.quant), output, chosen, report)


def compile_source(source: Source, output: Path, options: Options, progress: hub.Progress | None = None) -> Report:
    """Compiles an opened model into the artifact `output`, which appears whole or not at all.

    Raises InfercError, as `plan` does, and for a missing or failing C compiler or a full disk.
    """
    started = time.monotonic()
    report = progress or (lambda what, done, total: None)
    _check_emit(options)
    planned = plan(source, options)
    let_go_of_code("/jaxlib/")  # 60 MB that traced the model
    if options.emit != "inferc":
        return _emit(planned, output, started, report)
    lowered = planned.lowered
    with ThreadPoolExecutor(3) as pool, ArtifactWriter(output) as artifact:
        building = pool.submit(lowered.files)
        hashing = pool.submit(_file_facts, source.path)
        telling = pool.submit(_text_members, planned)
        weights_sha256 = artifact.write_stream("weights", lowered.weight_bytes, packed_weights(planned, report))
        tokenizer, text_members = telling.result()
        give_back()  # what packing and tables took, before the weights are mapped
        files, built = building.result()
        for name, data in files.items():
            artifact.write(name, data)
        artifact.write("ir.txt", print_module(planned.module).encode())
        for name, data in text_members.items():
            artifact.write(name, data)
        described = describe(planned)
        with tempfile.TemporaryDirectory(prefix="inferc-") as scratch:
            library = artifact.view(lowered.library) if isinstance(lowered, CLowered) and lowered.runs_here else None
            golden = _golden(planned, described, Path(scratch), library, artifact.view("weights"))
        manifest = described | built | {
            "source": hashing.result(),
            "weights": {"file": "weights", "bytes": lowered.weight_bytes, "sha256": weights_sha256},
            "tokenizer": tokenizer,
            "files": artifact.hashes(),
            "golden": golden,
        }  # fmt: skip
        artifact.write_manifest(manifest)
    return Report(Path(output), manifest["target"], time.monotonic() - started, tuple(manifest["notes"]))


def _check_emit(options: Options) -> None:
    """Raises InfercError for a form that is unknown or that the backend or the target does not have."""
    choices = ("form", options.emit, emit.KINDS), ("place for weights", options.weights, emit.WEIGHTS)
    for what, chosen, known in choices:
        if chosen not in known:
            raise InfercError(f"there is no {what} {chosen!r}: choose one of {', '.join(known)}")
    backend = choose_backend(options)
    if options.emit != "inferc" and (options.emit == "pjrt") != (options.backend == "xla"):
        right = "xla" if options.emit == "pjrt" else "c"
        raise InfercError(f"--emit {options.emit} is a form of the backend {right}, not of {options.backend}")
    if isinstance(backend, CBackend):
        backend.check({"inferc": "so", "c": "a"}.get(options.emit, options.emit))
    else:
        backend.check()


def _emit(planned: Plan, output: Path, started: float, progress: hub.Progress) -> Report:
    """Writes the plan in a form that people build into their programs, and its manifest."""
    lowered, options = planned.lowered, planned.options
    assert isinstance(lowered, (CLowered, XlaLowered))
    with emit.Publication(output, options.emit) as publication:
        with tempfile.TemporaryDirectory(prefix=".inferc-", dir=output.parent) as scratch:
            weights = Path(scratch) / "weights"
            digest = emit.write_weights(weights, lowered.weight_bytes, packed_weights(planned, progress))
            described = describe(planned)
            golden = _golden(planned, described, Path(scratch), None, golden_logits.mapped(weights))
            text, lacks = _text_file(planned.source, Path(scratch) / "text")
            compiler = lowered.emit(options.emit, weights, publication.folder, name=output.name, text=text,
                                    embed=options.weights == "embed", facts=described)  # fmt: skip
        manifest = described | {
            "emit": options.emit,
            "source": _file_facts(planned.source.path),
            "compiler": compiler,
            "weights": {"place": options.weights, "bytes": lowered.weight_bytes, "sha256": digest},
            "text": lacks or "built in",
            "golden": golden,
        }
        manifest["notes"] = [*manifest["notes"], *([lacks] if lacks else [])]
        publication.publish(manifest)
    return Report(Path(output), manifest["target"], time.monotonic() - started, tuple(manifest["notes"]))


def _text_members(planned: Plan) -> tuple[str | None, dict[str, bytes]]:
    """The artifact's member that is its tokenizer, and all that belong to it: text tables for the C library with the
    chat template, or a `tokenizer.json` where there is no such library, or no table expresses the tokenizer."""
    tokenizer = planned.source.tokenizer()
    if tokenizer is None:
        return None, {}
    template = tokenizer["chat_template"]
    if isinstance(planned.lowered, CLowered):
        try:
            members = {MEMBER: text_tables(tokenizer).data}
            return MEMBER, members if template is None else members | {TEMPLATE_MEMBER: template.encode()}
        except Unsupported:
            pass
    return "tokenizer.json", {"tokenizer.json": json.dumps(tokenizer, ensure_ascii=False).encode()}


def _text_file(source: Source, path: Path) -> tuple[Path | None, str]:
    """Writes the tables of a model's tokenizer and chat format; None where it has none that tables express. With it the
    reason why these, or the chat format in them, are missing, or ""."""
    tokenizer = source.tokenizer()
    if tokenizer is None:
        return None, "the model has no tokenizer: the program takes and gives token ids"
    try:
        tables = text_tables(tokenizer)
    except Unsupported as reason:
        return None, f"the program takes and gives token ids: {reason}"
    path.write_bytes(tables.data)
    return path, f"the program has no chat format: {tables.no_chat}" if tables.no_chat else ""


def _golden(planned: Plan, manifest: Mapping[str, Any], folder: Path, library: np.ndarray | None,
            weights: np.ndarray) -> list[dict[str, Any]]:  # fmt: skip
    """What the model answers, asked with the C library given, or one that is built for it in an empty folder. All
    targets of C give the same bits. Nothing for other backends, and for what is no language model."""
    if not isinstance(planned.lowered, CLowered) or planned.source.kind != "language":
        return []
    if library is None:
        planned.lowered.for_host(folder / "library")
        library = golden_logits.mapped(folder / "library")
    return golden_logits.ask(golden_logits.parts(planned.source.path or folder, manifest, library, weights))


def asking(path: Path, manifest: Mapping[str, Any]) -> list[str]:
    """The command that runs an artifact that is a program or a package, with an emulator where it is for another
    machine; empty where this computer runs it in no way."""
    kind, system = manifest["emit"], manifest["system"]
    if kind == "wasm":
        return replay(path)
    here = manifest["machine"] == machine()
    if kind != "exe" or system != platform.system().lower() or not (here or emulator(manifest["machine"])):
        return []
    return [*(() if here else emulator(manifest["machine"])), str(path.resolve())]


def rebuilt(path: Path, manifest: Mapping[str, Any], output: Path) -> None:
    """Makes a shared library of an artifact's sources or static library, for this computer. Raises InfercError where no
    C compiler is found or it fails."""
    link(path, manifest, output)


def packed_weights(planned: Plan, progress: hub.Progress) -> Iterator[tuple[int, np.ndarray]]:
    """(offset, bytes) of every weight in the order of the weights file; only a part of one is in memory at a time."""
    for name, offset, size in planned.lowered.weight_order:
        for first, type, array in prepared(planned.module, name):
            yield from planned.lowered.stored(name, offset + first, type, array)
        progress("packing weights", offset + size, planned.lowered.weight_bytes)


def _file_facts(path: Path | None) -> dict[str, Any] | None:
    """Name, hash and size of the file that was compiled, or of each in a folder; None for a function in memory."""
    if path is None:
        return None
    if path.is_dir():
        found = [f for f in sorted(path.rglob("*")) if f.suffix in SOURCE_FILES and f.is_file()]
        files = {f.relative_to(path).as_posix(): emit.sha256(f) for f in found}
        return {"file": path.name, "files": files}
    return {"file": path.name, "sha256": emit.sha256(path), "bytes": path.stat().st_size}


def describe(planned: Plan) -> dict[str, Any]:
    """The part of an artifact's manifest that is known before anything is built and the weights are packed."""
    source = planned.source
    return {
        "producer": f"inferc {__version__}",
        "name": source.name,
        "kind": source.kind,
        "architecture": source.architecture,
        "context": planned.context,
        "chunk": planned.chunk,
        "kv": planned.options.kv,
        "notes": _recoded(planned.module),
        **source.facts(),
        **planned.lowered.facts(),
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

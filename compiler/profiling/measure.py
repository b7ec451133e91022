"""Runs an artifact's model with a clock around every op: the same program, compiled again with observers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from ctypes import Structure, c_int64, c_void_p
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ...backends.c import observe, program, toolchain
from ...backends.c.target import CTarget, get
from ...backends.c.tuning import from_data
from ...errors import InfercError
from ...ir.graph import Graph, Module, Node
from ...ir.parse import parse_module
from ...runtime.artifact import Artifact
from ...runtime.session import Engine, Session
from ..tune import Rebuilt

# `observed_event` in backends/c/observe_times.h; times are in nanoseconds.
EVENT = np.dtype([("begin", "i8"), ("end", "i8"), ("busy", "i8"), ("point", "i4"), ("worker", "i4"), ("pieces", "i4"),
                  ("reserved", "i4")])  # fmt: skip
OP, REGION = -1, -2  # workers of events that are whole calls and whole regions


class _Log(Structure):
    _fields_ = [("events", c_void_p), ("capacity", c_int64), ("count", c_int64)]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: `tokens` after `position` others, when it began and ended (ns), and what was logged in it."""

    phase: str
    tokens: int
    position: int
    begin: int
    end: int
    events: np.ndarray


@dataclass(frozen=True)
class Measured:
    """All evaluations of an observed program. `points` are its nodes by number, `plain` has the seconds that the same
    phases took without observers."""

    name: str
    target: CTarget
    threads: int
    module: Module
    points: tuple[Node, ...]
    evaluations: tuple[Evaluation, ...]
    plain: dict[str, float]

    def seconds(self, phase: str) -> float:
        return sum(e.end - e.begin for e in self.evaluations if e.phase == phase) / 1e9


def measure(path: Path, *, prompt: int, generate: int, depth: int = 0, threads: int | None = None,
            target: str | None = None) -> Measured:  # fmt: skip
    """Evaluates `prompt` tokens, then `generate` more one at a time, once `depth` are in the cache, with and without
    observers.

    Raises InfercError for an artifact that is no language model in C, or that another compiler made, and for more
    tokens than its context holds.
    """
    artifact = Artifact(path)
    manifest = artifact.manifest
    if manifest.get("backend") != "c" or manifest.get("kind", "language") != "language":
        raise InfercError(f"{path}: only language models compiled to C can be profiled")
    if depth + prompt + generate > manifest["context"]:
        raise InfercError(f"{path} has a context of {manifest['context']} positions: ask for fewer tokens")
    plain_engine = Engine(artifact, threads, target)
    name, threads = plain_engine.target, plain_engine.threads
    chosen = get(name)
    tuned = manifest.get("tuning", {}).get("targets", {}).get(name)
    if tuned is not None:
        chosen = replace(chosen, ir=replace(chosen.ir, tuning=from_data(path, name, tuned)))
    module = parse_module(artifact.read("ir.txt").decode())
    observed = observe.Observed(observe.times)
    built = _built(module, chosen, artifact, observed)
    with tempfile.TemporaryDirectory(prefix="inferc-profile-") as folder:
        library = Path(folder) / "library.so"
        toolchain.compile_program(built, library)
        engine = Engine(Rebuilt(path, library), threads, name)
        try:
            plain = _phases(plain_engine, prompt, generate, depth, None)
            evaluations = _phases(engine, prompt, generate, depth, _Log.in_dll(engine.loaded, "inferc_observed"))
        finally:
            engine.close()
            plain_engine.close()
    times = {e.phase: 0.0 for e in plain}
    for e in plain:
        times[e.phase] += (e.end - e.begin) / 1e9
    return Measured(manifest["name"], chosen, threads, module, tuple(observed.points), tuple(evaluations), times)


def _built(module: Module, target: CTarget, artifact: Artifact, observed: observe.Observed) -> program.Program:
    """The observed program, once it is sure that without observers it is the artifact's."""
    manifest = artifact.manifest
    facts = {"prefix": manifest["prefix"], "context": manifest["context"], "chunk": manifest["chunk"],
             "name": manifest["name"]}  # fmt: skip
    plain = program.build(module, [target], **facts)
    source = f"{manifest['prefix']}_{target.name}.c"
    if artifact.read(f"c/{source}").decode() != plain.sources[source]:
        raise InfercError(f"{artifact.path} was compiled by another inferc ({manifest['producer']}): compile it again")
    return program.build(module, [target], **facts, lowerings=observed.lowerings)


def _phases(engine: Engine, prompt: int, generate: int, depth: int, log: _Log | None) -> list[Evaluation]:
    """Every evaluation of both phases, each phase once unlogged before, so that caches are warm."""
    ids = np.random.default_rng(0).integers(0, engine.vocab_size, engine.context, np.int32)
    session = engine.session()
    found: list[Evaluation] = []
    for phase, count, step in (("prompt", prompt, engine.chunk), ("generation", generate, 1)):
        if not count:
            continue
        for logged in (False, True):
            if session.position < depth or session.rewind(depth) != depth:
                session.rewind(0)
                _advance(session, ids, depth, engine.chunk, "", None)
            made = _advance(session, ids, depth + count, step, phase, log if logged else None)
            found += made if logged else []
    return found


def _advance(session: Session, ids: np.ndarray, end: int, step: int, phase: str, log: _Log | None) -> list[Evaluation]:
    made = []
    while (at := session.position) < end:
        tokens = ids[at : min(end, at + step)]
        events = np.zeros(1 << 16 if log is not None else 0, EVENT)
        if log is not None:
            log.events, log.capacity, log.count = events.ctypes.data, len(events), 0
        begin = time.time_ns()
        session.eval(tokens.tolist())
        finished = time.time_ns()
        if log is not None:
            if log.count > len(events):
                raise InfercError(f"one evaluation has {log.count} events, more than {len(events)} are not kept")
            events = events[: log.count].copy()
            log.events, log.capacity = None, 0
        made.append(Evaluation(phase, len(tokens), at, begin, finished, events))
    return made


def layer_names(module: Module) -> dict[Graph, Sequence[str]]:
    """For each graph that the step calls, the calls' origins in their order."""
    names: dict[Graph, list[str]] = {}
    for node in module.entries["step"].nodes():
        if node.op.name == "call":
            names.setdefault(node.attr("graph"), []).append(node.origin.path)
    return {graph: tuple(found) for graph, found in names.items()}

"""A model compiled for XLA: its programs, weights on devices, and sessions whose caches are updated in place.

The same interface as `session.Engine` and `session.Session`, for artifacts of the backend "xla". jax is imported here.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ..errors import InfercError
from . import xla_call
from .artifact import Artifact
from .xla_call import TensorType, jax
from .xla_devices import Group, find, groups, laid_out

WASTE = 4  # a bucket is taken that holds up to so many times the tokens, rather than several smaller ones


class Weights:
    """The weights of an artifact on the devices of a group, laid out as its programs for a platform take them."""

    def __init__(self, artifact: Artifact, group: Group, platform: str = "") -> None:
        """Raises InfercError where the devices have too little memory, states included, before anything is there."""
        self.group, self.inputs, self._platform = group, artifact.manifest["inputs"], platform
        group.check_memory(self._needed(), artifact.path)
        data = artifact.view(artifact.manifest["weights"]["file"])
        self.arrays = [a for i in self.inputs if i["role"] == "weight" for a in self._upload(i, data)]

    def types(self, role: str, own: bool = False) -> list[TensorType]:
        """The tensors of all inputs of a role: whole, or what each device has of them."""
        return [(self.group.part(t["shape"], axis if own else None), t["element"])
                for i in self.inputs if i["role"] == role for t, axis in zip(i["tensors"], i["sharding"])]  # fmt: skip

    def places(self, role: str) -> list[Any]:
        """Where each of them lies."""
        return [p for i in self.inputs if i["role"] == role for p in self._placed(i)]

    def zeros(self, role: str) -> list[Any]:
        """Arrays of zeros like them."""
        return [jax.make_array_from_callback(tuple(shape), place, partial(_zeros_of, shape, xla_call.dtype_of(element)))
                for (shape, element), place in zip(self.types(role), self.places(role))]  # fmt: skip

    def _needed(self) -> int:
        """Bytes on each device: its part of the weights and caches."""
        types = [*self.types("weight", own=True), *self.types("state", own=True)]
        return sum(int(np.prod(s, dtype=np.int64)) * xla_call.dtype_of(element).itemsize for s, element in types)

    def _placed(self, i: dict[str, Any]) -> list[Any]:
        return [laid_out(self.group.place(axis, len(t["shape"])), t.get("layouts", {}).get(self._platform))
                for t, axis in zip(i["tensors"], i["sharding"])]  # fmt: skip

    def _upload(self, i: dict[str, Any], data: np.ndarray) -> list[Any]:
        found = []
        for tensor, place in zip(i["tensors"], self._placed(i)):
            dtype, shape = xla_call.dtype_of(tensor["element"]), tuple(tensor["shape"])
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            array = data[tensor["offset"] : tensor["offset"] + size].view(dtype).reshape(shape)
            found.append(jax.make_array_from_callback(shape, place, array.__getitem__))
        return found


class Replica:
    """A group of devices with the weights, the caches of its slots, and its programs compiled as they are needed."""

    def __init__(self, artifact: Artifact, group: Group, platform: str) -> None:
        """Raises InfercError as `Weights` does."""
        self.artifact, self.group, self.platform = artifact, group, platform
        self.building_seconds = 0.0  # compiling programs, or bringing them from the cache
        self._weights = Weights(artifact, group, platform)
        self.state = self._weights.zeros("state")
        self.free = list(range(artifact.manifest["slots"]))
        self._programs: dict[str, Any] = {}

    def types(self, program: dict[str, Any], own: bool = False) -> tuple[list[TensorType], list[TensorType]]:
        """The tensors that a program takes and gives: all of them, or what each device has of them."""
        tokens, rows = program["T"], program["R"]
        if program["kind"] == "greedy":
            greedy = self.artifact.manifest["greedy"]
            args: list[TensorType] = [((1,), "i32"), ((1,), "i32"), ((), "i32"), ((greedy["ends"],), "i32")]
            results: list[TensorType] = [((), "i32"), ((greedy["most"],), "i32")]
        else:
            args = [((tokens,), "i32")] * 3 + [((rows,), "i32")]
            results = [((rows, self.artifact.manifest["vocab_size"]), "f32")]
        weights, states = (self._weights.types(role, own) for role in ("weight", "state"))
        return args + weights + states, results + states

    def _compile(self, program: dict[str, Any]) -> Any:
        """The program as this platform has it; the one for all platforms where a device refuses its own kernels."""
        own = program.get("variants", {}).get(self.platform)
        if own:
            try:
                return self._built(program, own)
            except jax.errors.JaxRuntimeError as error:
                reason = str(error).splitlines()[0]
                warnings.warn(f"{self.group.devices[0]} does not take the kernels of {own}, so that a slower program "
                              f"is used: {reason}", stacklevel=2)  # fmt: skip
        return self._built(program, program["file"])

    def _built(self, program: dict[str, Any], file: str) -> Any:
        """A program that donates the states, compiled."""
        inputs, outputs = self.types(program)
        code = self.artifact.read(file)
        whole = self.group.place()
        weights, states = self._weights.places("weight"), self._weights.places("state")
        placed = [whole] * (len(inputs) - len(weights) - len(states)) + weights + states
        results = [whole] * (len(outputs) - len(states)) + states
        call = xla_call.exported(code, *self.types(program, own=True), self.platform).call
        donated = tuple(range(len(inputs) - len(states), len(inputs)))
        function = jax.jit(self.group.on_each(call, placed, results), donate_argnums=donated,
                           in_shardings=tuple(placed), out_shardings=tuple(results))  # fmt: skip
        lowered = function.lower(*xla_call.structs(inputs, placed))
        return lowered.compile(compiler_options=xla_call.options(self.platform))

    def compiled(self, name: str) -> Any:
        """The program whose file's name begins so, as jax compiled it: its HLO and memory can be asked for."""
        program = next(p for p in self.artifact.manifest["programs"] if p["file"].startswith(f"xla/{name}"))
        if program["file"] not in self._programs:
            self._programs[program["file"]] = self._compile(program)
        return self._programs[program["file"]]

    def run(self, program: dict[str, Any], arguments: Sequence[np.ndarray]) -> list[Any]:
        """Evaluates a program: the results before the new states, which replace the old."""
        file = program["file"]
        if file not in self._programs:
            started = time.perf_counter()
            self._programs[file] = self._compile(program)
            self.building_seconds += time.perf_counter() - started
        given: list[Any] = list(arguments)
        if len(self.group.devices) > 1:
            place = self.group.place()
            given = [jax.make_array_from_callback(a.shape, place, a.__getitem__) for a in arguments]
        results = self._programs[file](*given, *self._weights.arrays, *self.state)
        count = len(results) - len(self.state)
        self.state = list(results[count:])
        return list(results[:count])


@jax.jit
def _likeliest(logits: Any) -> Any:
    return jax.numpy.argmax(logits, axis=-1)


def _zeros_of(shape: Sequence[int], dtype: Any, index: tuple[slice, ...]) -> np.ndarray:
    size = [len(range(*s.indices(n))) for s, n in zip(index, shape)]
    return np.zeros(size, dtype)


class Engine:
    """A model on devices; `target` is the platform that it runs on. Not for two threads at once."""

    def __init__(self, artifact: Artifact, threads: int | None = None, target: str | None = None) -> None:
        """`target` names a platform of the artifact; `threads` is XLA's own affair.

        Raises InfercError for an unknown version of jax, a platform that is not here, or too little memory.
        """
        xla_call.check_version()
        xla_call.keep_compiled()
        manifest = artifact.manifest
        self.artifact = artifact
        self.output, self.output_width = "logits", manifest["vocab_size"]
        self.vocab_size, self.context, self.chunk = (manifest[k] for k in ("vocab_size", "context", "chunk"))
        self.slots: int = manifest["slots"]
        self.target, devices = find(manifest["platforms"], target, artifact.path)
        shape = manifest["mesh"]
        self.threads = threads or len(devices)
        self.replicas = [
            Replica(artifact, group, self.target)
            for group in groups(devices, shape["tp"], shape["dp"], artifact.path)
            if any(d.process_index == jax.process_index() for d in group.devices)
        ]
        programs = manifest["programs"]
        self._steps = [p for p in programs if p["kind"] == "step" and p["form"] == "one"]
        self._batches = sorted((p for p in programs if p["form"] == "each"), key=lambda p: p["span"])
        self._mixed = sorted((p for p in programs if p["form"] == "mixed"), key=lambda p: p["T"])
        self._greedy = sorted((p for p in programs if p["kind"] == "greedy"), key=lambda p: p["span"])

    @property
    def building_seconds(self) -> float:
        """Seconds that compiling programs has taken, or bringing them from the cache on disk."""
        return sum(r.building_seconds for r in self.replicas)

    def session(self) -> Session:
        """A new, empty session, in the replica with the most free slots. Raises InfercError where none is left."""
        replica = max(self.replicas, key=lambda r: len(r.free))
        if not replica.free:
            raise InfercError(f"all {self.slots} slots have a session: compile with more --slots")
        return Session(self, replica, replica.free.pop(0))

    def close(self) -> None:
        """Frees weights and caches. Sessions must not be used after it."""
        self.replicas = []

    def bucket(self, count: int, position: int) -> int:
        """How many tokens the program for the next of `count` ids has: at least that many where the waste is small,
        and never so many that padding would lie outside the context."""
        sizes = sorted({p["T"] for p in self._steps if p["T"] <= self.context - position})
        above = [t for t in sizes if t >= count]
        if above and (above[0] < WASTE * count or above[0] == sizes[0]):
            return above[0]
        return max(t for t in sizes if t <= count)

    def step(self, tokens: int, rows: int, end: int) -> dict[str, Any]:
        """The program for a bucket that reads at least `end` positions."""
        fitting = [p for p in self._steps if p["T"] == tokens and p["R"] == rows and not 0 < p["span"] < end]
        return min(fitting, key=lambda p: p["span"])

    def decode(self, items: Sequence[tuple[Session, int]]) -> np.ndarray:
        """Evaluates one id for each of several sessions of one replica at once: f32[len(items), vocab_size].

        Raises InfercError where the artifact has one slot, a context is full, or sessions are of several replicas.
        """
        return np.asarray(self._each(items))[[s.slot for s, _ in items]]

    def likeliest(self, items: Sequence[tuple[Session, int]]) -> list[int]:
        """The likeliest id after each of `decode`'s, found on the device: no logits come to the host."""
        ids = np.asarray(_likeliest(self._each(items)))
        return [int(ids[s.slot]) for s, _ in items]

    def _each(self, items: Sequence[tuple[Session, int]]) -> Any:
        """The logits on the device, [slots, vocab_size]."""
        self._check_batch([(s, [i]) for s, i in items])
        tokens, position = np.zeros((2, self.slots), np.int32)
        sequence = np.full(self.slots, self.slots, np.int32)
        for session, id in items:
            slot = session.slot
            tokens[slot], sequence[slot], position[slot] = id, slot, session.position
        end = 1 + max(s.position for s, _ in items)
        program = next(p for p in self._batches if p["span"] >= end)
        rows = np.arange(self.slots, dtype=np.int32)
        (logits,) = items[0][0].replica.run(program, (tokens, sequence, position, rows))
        for session, _ in items:
            session.advance(1)
        return logits

    def mixed(self, items: Sequence[tuple[Session, Sequence[int]]]) -> np.ndarray:
        """Evaluates ids of several sessions of one replica in one call, prompts and single tokens together: the logits
        after each session's last, f32[len(items), vocab_size]. Raises InfercError as `decode` does, and for more ids
        than the largest program takes."""
        self._check_batch(items)
        count = sum(len(ids) for _, ids in items)
        program = next((p for p in self._mixed if p["T"] >= count), None)
        if program is None:
            raise InfercError(f"{count} ids are more than one call takes: give fewer at once")
        tokens, position = np.zeros((2, program["T"]), np.int32)
        sequence, rows = np.full(program["T"], self.slots, np.int32), np.zeros(self.slots, np.int32)
        at = 0
        for row, (session, ids) in enumerate(items):
            here = slice(at, at + len(ids))
            tokens[here], sequence[here] = ids, session.slot
            position[here] = np.arange(session.position, session.position + len(ids))
            at += len(ids)
            rows[row] = at - 1
        (logits,) = items[0][0].replica.run(program, (tokens, sequence, position, rows))
        for session, ids in items:
            session.advance(len(ids))
        return np.asarray(logits)[: len(items)]

    def _check_batch(self, items: Sequence[tuple[Session, Sequence[int]]]) -> None:
        if self.slots < 2:
            raise InfercError(f"{self.artifact.path} has one slot: compile with --slots N for batches")
        if len({id(s.replica) for s, _ in items}) > 1 or len({s.slot for s, _ in items}) < len(items):
            raise InfercError("a batch must be of different sessions of one replica")
        for session, ids in items:
            session.check(ids)

    def greedy_program(self, end: int) -> dict[str, Any] | None:
        """The program that generates on the device and reads at least `end` positions."""
        return next((p for p in self._greedy if p["span"] >= end), None)


class Session:
    """One sequence: a slot of a replica's caches."""

    def __init__(self, engine: Engine, replica: Replica, slot: int) -> None:
        self._engine, self.replica, self.slot = engine, replica, slot
        self.position = 0
        self._furthest = 0  # positions that the caches hold, forgotten ones included

    def advance(self, count: int) -> None:
        """Says that a call has evaluated `count` ids more."""
        self.position += count
        self._furthest = max(self._furthest, self.position)

    def rewind(self, position: int) -> int:
        """Forgets what was evaluated from `position` on and returns the new position.

        That is 0 where the model attends to a window and no longer holds the one before `position`.
        """
        slack = self._engine.artifact.manifest.get("rewind")
        if position > self.position:
            raise InfercError(f"a session at position {self.position} cannot be taken to {position}")
        if slack is not None and self._furthest - position > slack:
            position = self._furthest = 0
        self.position = position
        return position

    def check(self, ids: Sequence[int]) -> None:
        """Raises InfercError for ids that cannot be evaluated next."""
        engine = self._engine
        if self.position + len(ids) > engine.context:
            raise InfercError(f"the context of {engine.context} positions is full: shorten the prompt, or compile the "
                              "model with a larger `--context`")  # fmt: skip
        if len(ids) > engine.chunk:
            raise InfercError(f"{len(ids)} ids are more than the {engine.chunk} that one evaluation takes")
        if wrong := [i for i in ids if not 0 <= i < engine.vocab_size]:
            raise InfercError(f"{wrong[0]} is no token id of this model, which has 0 to {engine.vocab_size - 1}")

    def eval(self, ids: Sequence[int], rows: int = 1) -> np.ndarray:
        """Evaluates at most `chunk` ids after those before; the logits f32[rows, V] of the last `rows` of them.

        On InfercError (the context is full, an id outside the vocabulary) the position is as before.
        """
        self.check(ids)
        found = []
        first, at = len(ids) - rows, 0
        while at < len(ids):
            tokens = self._engine.bucket(len(ids) - at, self.position)
            piece = ids[at : at + tokens]
            wanted = max(0, at + len(piece) - max(at, first))
            found.append(self._piece(piece, tokens, wanted))
            at += len(piece)
        return found[-1] if len(found) == 1 else np.concatenate(found)

    def _piece(self, ids: Sequence[int], tokens: int, wanted: int) -> np.ndarray:
        engine, count = self._engine, len(ids)
        padded = np.zeros(tokens, np.int32)
        padded[:count] = ids
        sequence = np.full(tokens, engine.slots, np.int32)
        sequence[:count] = self.slot
        position = np.arange(self.position, self.position + tokens, dtype=np.int32)
        one = wanted <= 1
        rows = np.array([count - 1], np.int32) if one else np.arange(tokens, dtype=np.int32)
        program = engine.step(tokens, 1 if one else tokens, self.position + tokens)
        (logits,) = self.replica.run(program, (padded, sequence, position, rows))
        self.advance(count)
        if one:
            return np.asarray(logits)[:wanted]
        return np.asarray(logits)[count - wanted : count]

    def greedy(self, id: int, count: int, ends: Sequence[int]) -> list[int]:
        """Evaluates `id` and then, on the device, the likeliest id after each: at most `count` made, fewer where the
        context is full or one of `ends` is made, and at least one.

        All but the last of what it gives are evaluated. Empty where the artifact has no such program, or more ends than
        it takes.
        """
        engine = self._engine
        most, most_ends = (engine.artifact.manifest["greedy"][k] for k in ("most", "ends"))
        count = min(count, most, engine.context - self.position)
        program = engine.greedy_program(self.position + count) if count > 0 else None
        if program is None or len(ends) > most_ends:
            return []
        self.check([id])
        stops = np.full(most_ends, -1, np.int32)
        stops[: len(ends)] = list(ends)
        arguments = (np.array([id], np.int32), np.array([self.position], np.int32), np.array(count, np.int32), stops)
        made, ids = self.replica.run(program, arguments)
        length = int(made)
        self.advance(length)
        return np.asarray(ids)[:length].tolist()

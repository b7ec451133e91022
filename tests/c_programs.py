"""Hand-made modules for tests of whole C programs, and a ctypes view of the compiled ones."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Mapping, Sequence
from ctypes import byref, c_char_p, c_int32, c_size_t, c_void_p
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from inferc.backends.c import program, target, toolchain
from inferc.ir import ops
from inferc.ir.graph import Graph, Module, Node, Origin, Value, Weight, make, make_input
from inferc.ir.interpret import interpret, prepare_weights
from inferc.ir.types import Type, f16, f32, i32, symbol

VOCABULARY, WIDTH, HEADS, KV_HEADS, HEAD = 40, 32, 4, 2, 8
OK, INVALID, CPU, WEIGHTS, SYSTEM, SIZE, CONTEXT, EVICTED = range(8)
FOLDER = Path(tempfile.mkdtemp(prefix="inferc-programs-"))


def emit(name: str, *operands: Value, origin: str = "", **attrs: object) -> Value:
    return make(ops.OPS[name], *operands, origin=Origin(origin), **attrs)[0]


def layer(chunk: int, context: int, window: int) -> Graph:
    """A layer without matrices: h = rms_norm(x); q, k, v are slices of it; x + attention."""
    T, S, C = symbol("T", 1, chunk), symbol("S", 1, 1 << 16), symbol("C", 1, context)
    x = make_input("x", "arg", Type((T, WIDTH), f32))
    sequence, position = (make_input(n, "arg", Type((T,), i32)) for n in ("sequence", "position"))
    norm = make_input("norm", "weight", Type((WIDTH,), f32))
    k, v = (make_input(n, "state", Type((S, KV_HEADS, C, HEAD), f16)) for n in ("k", "v"))
    h = emit("rms_norm", x[0], norm[0], eps=1e-5, origin="layers.norm")
    half = KV_HEADS * HEAD

    def part(start: int) -> Value:
        columns = emit("slice", h, start=(0, start), limit=(T, start + half), stride=(1, 1), origin="layers.part")
        return emit("reshape", columns, shape=(T, KV_HEADS, HEAD))

    keys = emit("cache_write", k[0], part(0), sequence[0], position[0], window=window, origin="layers.k")
    values = emit("cache_write", v[0], part(half), sequence[0], position[0], window=window, origin="layers.v")
    q = emit("reshape", h, shape=(T, HEADS, HEAD))
    mixed = emit("cached_attention", q, keys, values, sequence[0], position[0], scale=0.4, window=window,
                 origin="layers.attention")  # fmt: skip
    out = emit("add", x[0], emit("reshape", mixed, shape=(T, WIDTH)), origin="layers.residual")
    return Graph("layer", (x, sequence, position, norm, k, v), (out, keys, values), ("x", "k", "v"))


def language_model(chunk: int = 64, context: int = 512, windows: tuple[int, ...] = (0, 0)) -> Module:
    """A step with the interface of a language model, one layer for each window; equal windows share a function."""
    T, R, S, C = symbol("T", 1, chunk), symbol("R", 1, chunk), symbol("S", 1, 1 << 16), symbol("C", 1, context)
    tokens, sequence, position = (make_input(n, "arg", Type((T,), i32)) for n in ("tokens", "sequence", "position"))
    rows = make_input("rows", "arg", Type((R,), i32))
    table = make_input("token_embd.weight", "weight", Type((VOCABULARY, WIDTH), f32))
    norms = [make_input(f"blk.{i}.norm.weight", "weight", Type((WIDTH,), f32)) for i in range(len(windows))]
    states = [make_input(f"layers.{i}.{n}", "state", Type((S, KV_HEADS, C, HEAD), f16))
              for i in range(len(windows)) for n in "kv"]  # fmt: skip
    graphs = {window: layer(chunk, context, window) for window in windows}
    index = emit("reshape", tokens[0], shape=(T, 1))
    x = emit("gather", table[0], index, offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,),
             slice_sizes=(1, WIDTH), mode="clip", origin="embedding")  # fmt: skip
    new: list[Value] = []
    for i, window in enumerate(windows):
        k, v = states[2 * i : 2 * i + 2]
        node = make(ops.OPS["call"], x, sequence[0], position[0], norms[i][0], k[0], v[0], graph=graphs[window],
                    origin=Origin(f"layers.{i}"))  # fmt: skip
        x = node[0]
        new += node.values[1:]
    wanted = emit("take_rows", x, rows[0], origin="rows")
    logits = emit("dot_general", wanted, table[0], contracting=((1,), (1,)), batch=((), ()), origin="head")
    graph = Graph("step", (tokens, sequence, position, rows, table, *norms, *states), (logits, *new),
                  ("logits", *(n.attr("name") for n in states)))  # fmt: skip
    return Module({"step": graph}, weights_for((table, *norms)))


def weights_for(nodes: Sequence[Node]) -> dict[str, Weight]:
    rng = np.random.default_rng(7)
    made = {n.attr("name"): (n.types[0], rng.standard_normal(n.types[0].shape).astype(np.float32)) for n in nodes}
    return {name: Weight(name, t, lambda array=array: array) for name, (t, array) in made.items()}


def reference_logits(ids: Sequence[int], windows: tuple[int, ...] = (0, 0)) -> np.ndarray:
    """The interpreter's logits of every token of one sequence, evaluated at once."""
    module, count = language_model(len(ids), len(ids), windows), len(ids)
    states = module.entries["step"].inputs_of("state")
    return interpret(module, {
        "tokens": np.array(ids, np.int32), "sequence": np.zeros(count, np.int32),
        "position": np.arange(count, dtype=np.int32), "rows": np.arange(count, dtype=np.int32),
        **{n.attr("name"): np.zeros((1, KV_HEADS, count, HEAD), np.float16) for n in states},
    })["logits"]  # fmt: skip


class OpenOptions(ctypes.Structure):
    _fields_ = [("size", c_size_t), ("weights", c_void_p), ("weights_bytes", c_size_t), ("threads", c_int32),
                ("pin", c_int32), ("target", c_char_p), ("parallel_for", c_void_p), ("pool", c_void_p),
                ("unchecked", c_int32)]  # fmt: skip


class Item(ctypes.Structure):
    _fields_ = [("session", c_void_p), ("ids", c_void_p), ("id_count", c_int32), ("rows_wanted", c_int32),
                ("logits", c_void_p)]  # fmt: skip


def aligned(size: int, fill: int = 0xFF) -> np.ndarray:
    """Memory at a multiple of 64 that holds NaNs (or another byte)."""
    raw = np.full(size + 64, fill, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:size]


@dataclass
class Library:
    """A compiled program with its weights, opened."""

    built: program.Program
    path: Path
    weights: np.ndarray
    threads: int = 1
    c: ctypes.CDLL = field(init=False)
    model: c_void_p = field(init=False)

    def __post_init__(self) -> None:
        self.c = ctypes.CDLL(str(self.path))
        for name in ("session_bytes", "workspace_bytes"):
            if hasattr(self.c, f"model_{name}"):
                getattr(self.c, f"model_{name}").restype = c_size_t
        self.c.model_message.restype = c_char_p
        self.model = c_void_p()
        assert self.open(self.weights, self.threads, self.model) == OK

    def open(self, weights: np.ndarray, threads: int, out: c_void_p, **options: object) -> int:
        address = weights.ctypes.data if weights.nbytes else None
        options = OpenOptions(ctypes.sizeof(OpenOptions), address, weights.nbytes, threads, **options)
        return self.c.model_open(byref(options), byref(out))

    def close(self) -> None:
        self.c.model_close(self.model)

    def session(self, positions: int) -> Session:
        return Session(self, aligned(self.c.model_session_bytes(positions)))

    def eval(self, *items: tuple[Session, Sequence[int], int], workspace: int | None = None) -> list[np.ndarray] | int:
        """The logits of (session, ids, rows) items in one call, or the status where it is not OK."""
        made, kept = [], []
        for session, ids, rows in items:
            numbers, logits = np.array(ids, np.int32), np.full((max(rows, 0), VOCABULARY), np.nan, np.float32)
            kept.append((numbers, logits))
            made.append(Item(session.handle, numbers.ctypes.data, len(ids), rows, logits.ctypes.data))
        tokens, rows = sum(len(i) for _, i, _ in items), sum(r for _, _, r in items)
        need = self.c.model_workspace_bytes(self.model, tokens, rows) if workspace is None else workspace
        memory = aligned(max(need, 64))
        status = self.c.model_eval(self.model, c_void_p(memory.ctypes.data), c_size_t(need), (Item * len(made))(*made),
                                   c_size_t(len(made)))  # fmt: skip
        return [logits for _, logits in kept] if status == OK else status


class Session:
    """A session with its memory."""

    def __init__(self, library: Library, memory: np.ndarray) -> None:
        self.library, self.memory = library, memory
        self.handle = c_void_p()
        status = library.c.model_session_init(library.model, c_void_p(memory.ctypes.data), c_size_t(memory.nbytes),
                                              byref(self.handle))  # fmt: skip
        assert status == OK

    @property
    def position(self) -> int:
        return self.library.c.model_position(self.handle)

    def rewind(self, position: int) -> int:
        return self.library.c.model_rewind(self.handle, position)

    def feed(self, ids: Sequence[int], chunk: int) -> np.ndarray:
        """Logits of all ids, `chunk` at a time."""
        pieces = []
        for i in range(0, len(ids), chunk):
            part = ids[i : i + chunk]
            result = self.library.eval((self, part, len(part)))
            assert not isinstance(result, int), self.library.c.model_message(result)
            pieces.append(result[0])
        return np.concatenate(pieces)


def build(module: Module, target_name: str, *, context: int = 512, chunk: int = 64,
          prefix: str = "model") -> program.Program:  # fmt: skip
    return program.build(module, target.choose(target_name), prefix=prefix, context=context, chunk=chunk, name="toy")


def packed_weights(module: Module, built: program.Program) -> np.ndarray:
    """The weights file."""
    data = aligned(built.weight_bytes, 0)
    arrays = {name: array for name, _, array in prepare_weights(module)}
    for name, offset, size in built.weight_order:
        data[offset : offset + size] = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
    return data


def compile_library(module: Module, target_name: str, *, threads: int = 1, flags: tuple[str, ...] = (),
                    **options: int) -> Library:  # fmt: skip
    built = build(module, target_name, **options)
    path = FOLDER / f"{len(list(FOLDER.iterdir()))}.so"
    toolchain.compile_program(built, path, extra=("-Werror", *flags))
    return Library(built, path, packed_weights(module, built), threads)


@cache
def toy(target_name: str = "native", threads: int = 1, chunk: int = 64, context: int = 512,
        windows: tuple[int, ...] = (0, 0)) -> tuple[Module, Library]:  # fmt: skip
    """A language model and its library, compiled once."""
    module = language_model(chunk, context, windows)
    if threads == 1:
        return module, compile_library(module, target_name, chunk=chunk, context=context)
    one = toy(target_name, 1, chunk, context, windows)[1]
    return module, Library(one.built, one.path, one.weights, threads)


def run_function(library: Library, name: str, dims: Mapping[str, int], arrays: Sequence[np.ndarray],
                 results: Sequence[np.ndarray]) -> int:  # fmt: skip
    """Calls PREFIX_NAME with exactly the workspace it asks for; its status."""
    size_of = getattr(library.c, f"model_{name}_workspace_bytes")
    size_of.restype = c_size_t
    numbers = [c_int32(v) for v in dims.values()]
    need = size_of(library.model, *numbers)
    memory = aligned(max(need, 64))
    pointers = [c_void_p(a.ctypes.data) for a in (*arrays, *results)]
    return getattr(library.c, f"model_{name}")(
        library.model, c_void_p(memory.ctypes.data), c_size_t(need), *numbers, *pointers
    )



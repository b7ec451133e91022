"""Every distinct op that the lowered modules of tiny models hold, with its operands and results as interpreted.

`record(model, types)` runs a model's step three times: a full chunk; two sequences, the second across a border of cache
pages, beside a token of padding; one token. `given` is a run as C sees it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from inferc.backends.c import target as c_target
from inferc.backends.c.cache import cache_kind
from inferc.backends.c.kernels import Call
from inferc.backends.c.lower import is_silent, lower_node
from inferc.compiler.frontends import gguf, language
from inferc.compiler.pipeline import run_passes
from inferc.ir.graph import Node
from inferc.ir.interpret import Arrays, Dims, interpret, prepare_weights
from inferc.ir.ops.cache import STATE_USES
from inferc.ir.types import evaluate, numpy_dtype

from .c_harness import Region
from .tiny_models import MODELS, VOCABULARY, write_model

MIXED = {"attn_v": "q6_k", "ffn_down": "q5_k", "attn_k": "q5_0", "token_embd": "q6_k", "": "q4_k"}
CASES: dict[str, tuple[str, str | Mapping[str, str]]] = {name: (name, "q4_1") for name in MODELS}
CASES |= {f"{name} mixed": (name, MIXED) for name in ("llama", "gemma3", "qwen2")}
TYPES = ("f32", "f16", "bf16", "q4_0", "q5_1", "q8_0", "q2_k", "q3_k")
CASES |= {f"llama {dtype}": ("llama", dtype) for dtype in TYPES}

CONTEXT, CHUNK, SLOTS, PAGE = 512, 16, 2, 256
# (sequence, position) of each token of a run, and its wanted rows. Sequence SLOTS is padding.
RUNS: tuple[tuple[list[tuple[int, int]], list[int]], ...] = (
    ([(0, p) for p in range(CHUNK)], [3, 14, 15]),
    ([*((1, p) for p in range(252, 259)), (SLOTS, 0), *((0, p) for p in range(CHUNK, CHUNK + 5))], [0, 12]),
    ([(1, 259)], [0]),
)


@dataclass(frozen=True)
class Run:
    """One evaluation of a node: the values of symbols, and its arrays."""

    dims: Mapping[str, int]
    operands: tuple[np.ndarray, ...]
    results: tuple[np.ndarray, ...]


@dataclass
class Recorded:
    """A node, the model it was first seen in, and its evaluations."""

    node: Node
    case: str
    runs: list[Run] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.node.op.name} at {self.node.origin} of {self.case}"

    @property
    def state_uses(self) -> Mapping[int, str]:
        """"read" or "write" by the operands that are states."""
        return STATE_USES.get(self.node.op.name, {})

    def lowered(self, target: str) -> Call:
        return lower_node(self.node, c_target.get(target).ir)


def _key(node: Node) -> object:
    kind = cache_kind(node) if STATE_USES.get(node.op.name, {}).get(0) == "write" else ""
    return node.op.name, tuple(v.type for v in node.inputs), node.attrs, kind


def record(case: str) -> dict[object, Recorded]:
    """The distinct nodes that C computes, calls' inner ones included, of one of CASES."""
    model, types = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "tiny.gguf", model, types, tokenizer="bpe",
                           metadata={"context_length": CONTEXT})  # fmt: skip
        module = run_passes(language.build_module(gguf.load(path), CONTEXT, CHUNK), c_target.get("generic").ir)
        weights = {name: array for name, _, array in prepare_weights(module)}
    step, rng = module.entries["step"], np.random.default_rng(11)
    states = {}
    for node in step.inputs_of("state"):
        shape = [evaluate(d, {"S": SLOTS}) for d in node.types[0].shape]
        states[node.attr("name")] = rng.standard_normal(shape).astype(numpy_dtype(node.types[0].dtype))
    found: dict[object, Recorded] = {}
    for number, (tokens, rows) in enumerate(RUNS):
        dims = {"T": len(tokens), "R": len(rows), "S": SLOTS, "C": CONTEXT}

        def observe(node: Node, operands: Arrays, results: Arrays, number: int = number, dims: Dims = dims) -> None:
            if node.op.name == "call" or is_silent(node):
                return
            runs = found.setdefault(_key(node), Recorded(node, case)).runs
            if len(runs) == number:
                runs.append(Run(dims, operands, results))

        ids = {
            "tokens": rng.integers(3, VOCABULARY, len(tokens)),
            "sequence": [s for s, _ in tokens], "position": [p for _, p in tokens], "rows": rows,
        }  # fmt: skip
        arguments = {name: np.array(values, np.int32) for name, values in ids.items()}
        results = interpret(step, arguments | weights | states, observer=observe)
        assert np.isfinite(results["logits"]).all()
        states = {name: results[name] for name in states}
    return found


@cache
def recorded_ops(cases: tuple[str, ...] = tuple(CASES)) -> tuple[Recorded, ...]:
    """The distinct nodes of many models, each from the first that has it."""
    found: dict[object, Recorded] = {}
    for case in cases:
        found = record(case) | found
    return tuple(found.values())


# ---- what C is given ------------------------------------------------------------------------------------------------


def caches(recorded: Recorded, run: Run, values: Mapping[int, np.ndarray],
           only: Collection[tuple[int, int]] | None = None) -> tuple[dict[int, Region], list[np.ndarray]]:  # fmt: skip
    """Regions of cache operands, and the memory of each session, in which every byte that holds no value is 0xFF.

    `values` are arrays [S, heads, rows, size] by operand: of all positions that they hold, or of `only` these
    (sequence, position) pairs.
    """
    node, (sequence, position) = recorded.node, run.operands[-2:]
    window = node.attr("window")
    pages = 1 if window else CONTEXT // PAGE
    writes = 0 in recorded.state_uses
    regions, start = {}, 64
    sizes = {i: v.shape[1] * PAGE * v.shape[3] * 2 for i, v in values.items()}
    for i, size in sizes.items():
        regions[i] = Region(start, sum(sizes.values()), pages if window else 0)
        start += size
    memories = [np.full(64 + pages * sum(sizes.values()), 0xFF, np.uint8) for _ in range(SLOTS)]
    for i, value in values.items():
        kind, rows = cache_kind(node) if writes else "kv"[i - 1], value.shape[2]
        for s, memory in enumerate(memories):
            end = max((int(p) + 1 for q, p in zip(sequence, position) if q == s), default=0)
            for p in range(max(0, end - rows), end):
                if only is None or (s, p) in only:
                    _place(memory, regions[i], kind, p, value[s, :, p % rows if window else p])
    return regions, memories


def _place(memory: np.ndarray, region: Region, kind: str, position: int, rows: np.ndarray) -> None:
    """Puts the f16 rows [heads, size] of one position where C has them."""
    heads, size = rows.shape
    page, at = position // PAGE, position % PAGE
    start = region.base + (page % region.pages if region.pages else page) * region.page_bytes
    held = memory[start : start + heads * PAGE * size * 2].view(np.uint16)
    if kind == "k":
        held.reshape(heads, 16, size, 16)[:, at // 16, :, at % 16] = rows.view(np.uint16)
    else:
        held.reshape(heads, PAGE, size)[:, at] = rows.view(np.uint16)


@dataclass(frozen=True)
class Given:
    """A run as C is given it: operands (regions in the place of caches), sessions, and what must come of them.

    `results` are what is written through pointers, `written` the sessions' memory afterwards.
    """

    operands: tuple[np.ndarray | Region, ...]
    sessions: tuple[np.ndarray, ...]
    results: tuple[np.ndarray, ...]
    written: tuple[np.ndarray, ...]


def given(recorded: Recorded, run: Run) -> Given:
    """A run as C is given it.

    A write starts with memory of 0xFF only, so that `written` says that it changes its own positions and no other.
    """
    uses = recorded.state_uses
    if not uses:
        return Given(run.operands, (), run.results, ())
    if "write" in uses.values():
        pairs = {(int(s), int(p)) for s, p in zip(*run.operands[-2:])}
        regions, after = caches(recorded, run, {0: run.results[0]}, pairs)
        before, results = [np.full_like(memory, 0xFF) for memory in after], ()
    else:
        regions, before = caches(recorded, run, {i: run.operands[i] for i in uses})
        after, results = [memory.copy() for memory in before], run.results
    operands = tuple(regions.get(i, operand) for i, operand in enumerate(run.operands))
    return Given(operands, tuple(before), results, tuple(after))

"""Each linear kernel against its roofline: every weight dtype, one token and many, for each number of threads.

    python benchmarks/kernels.py [--target native] [--threads 1 2] [--types q4_0 q4_k] [--out PREFIX]

A product y[T, N] = x[T, K] · W[N, K] of a 1B model's shape is compiled alone for each dtype that kernels compute with
(`ir.quant.DIRECT`). One token is bound by reading the packed weights: each run is paired with a read of the same bytes
by as many threads, both after other memory went through the caches. Many tokens are bound by the peak of the dot
product's instruction, measured before and after each run. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from ctypes import byref, c_char_p, c_int32, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

from inferc.backends.c import program, target, toolchain
from inferc.benchmarks.costs import AMX_OF, PEAK_OF
from inferc.benchmarks.machine import described, manifest
from inferc.benchmarks.roofline import ALIGNMENT, STREAMS, Roofline
from inferc.ir.graph import Graph, Module, Node, Weight, make, make_input
from inferc.ir.numerics.linear import quantize
from inferc.ir.ops import OPS
from inferc.ir.quant import DIRECT, packed_bytes
from inferc.ir.types import DTYPES, Type, f32, symbol

K, N, TOKENS = 2048, 8192, (1, 512)
T = symbol("T", 1, max(TOKENS))
WAKE = "wake"  # a product that is run just before another: threads that sleep are no part of a kernel
EVICTION = 600 << 20  # bytes read before each run of one token: more than caches hold


class OpenOptions(ctypes.Structure):
    """`model_open_options` (runtime/c/abi.h); the fields after `threads` stay zero."""

    _fields_ = [("size", c_size_t), ("weights", c_void_p), ("weights_bytes", c_size_t), ("threads", c_int32),
                ("pin", c_int32), ("target", c_char_p), ("parallel_for", c_void_p), ("pool", c_void_p)]  # fmt: skip


def aligned(size: int) -> np.ndarray:
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    return memory[-memory.ctypes.data % ALIGNMENT :][:size]


def module_of(types: Sequence[str], chosen: target.CTarget) -> Module:
    """One entry for each weight dtype, product_DTYPE, and a small product_wake."""
    entries, weights = {}, dict[str, Weight]()
    for name, dtype, rows in [(WAKE, DTYPES["q8_0"], N // 16), *((name, DTYPES[name], N) for name in types)]:
        w = make_input(f"{name}.weight", "weight", Type((rows, K), dtype, chosen.ir.weight_layout))
        x: Node = make_input("x", "arg", Type((T, K), chosen.ir.activation(dtype) or f32))
        entries[f"product_{name}"] = Graph(f"product_{name}", (x, w), make(OPS["linear"], x[0], w[0]).values, ("y",))
        weights[f"{name}.weight"] = Weight(f"{name}.weight", w.types[0], lambda: np.empty(0, np.uint8))
    return Module(entries, weights)


class Kernels:
    """The compiled products of some dtypes, with weights of random bits."""

    def __init__(self, types: Sequence[str], chosen: target.CTarget) -> None:
        self.module = module_of(types, chosen)
        built = program.build(self.module, [chosen], context=max(TOKENS), chunk=max(TOKENS), name="kernels")
        with tempfile.TemporaryDirectory(prefix="inferc-kernels-") as folder:
            path = Path(folder) / "kernels.so"
            toolchain.compile_program(built, path)
            self.c = ctypes.CDLL(str(path))
        # Bytes that are no exponent of an infinity or a subnormal in any float format: scales take them too.
        self.weights = aligned(built.weight_bytes)
        self.weights[:] = np.random.default_rng(0).integers(0x20, 0x60, built.weight_bytes, np.uint8)
        self.where = {name.removesuffix(".weight"): (offset, size) for name, offset, size in built.weight_order}
        self.models = dict[int, c_void_p]()

    def open(self, threads: int) -> c_void_p:
        if threads not in self.models:
            options = OpenOptions(ctypes.sizeof(OpenOptions), self.weights.ctypes.data, self.weights.nbytes, threads)
            self.models[threads] = c_void_p()
            if status := self.c.model_open(byref(options), byref(self.models[threads])):
                raise OSError(f"the library does not open: status {status}")
        return self.models[threads]

    def packed(self, name: str) -> np.ndarray:
        offset, size = self.where[name]
        return self.weights[offset : offset + size]

    def runner(self, name: str, tokens: int, threads: int) -> Any:
        """A function that does one product and returns its seconds."""
        model, function = self.open(threads), getattr(self.c, f"model_product_{name}")
        size_of = getattr(self.c, f"model_product_{name}_workspace_bytes")
        size_of.restype = c_size_t
        workspace = aligned(size_of(model, c_int32(tokens)) + ALIGNMENT)
        x_type = self.module.entries[f"product_{name}"].inputs_of("arg")[0].types[0]
        x = np.random.default_rng(1).standard_normal((tokens, K), np.float32)
        x = np.ascontiguousarray(x if x_type.dtype == f32 else quantize(x, x_type.dtype))
        y = np.empty((tokens, N), np.float32)
        arguments = (model, c_void_p(workspace.ctypes.data), c_size_t(workspace.nbytes), c_int32(tokens),
                     c_void_p(x.ctypes.data), c_void_p(y.ctypes.data))  # fmt: skip
        kept = workspace, x, y

        def run() -> float:
            assert kept
            started = time.perf_counter()
            status = function(*arguments)
            seconds = time.perf_counter() - started
            if status:
                raise OSError(f"{name} with {tokens} tokens fails: status {status}")
            return seconds

        return run


def cold_reads(roofline: Roofline, data: np.ndarray, elsewhere: np.ndarray, threads: int) -> Iterator[float]:
    """The bandwidth of a read of `data` in one stream a thread and in four, each after other memory, in bytes/s."""
    for streams in STREAMS:
        roofline.read_streams(elsewhere, threads, 1)
        yield roofline.read_streams(data, threads, streams)


def measure(kernels: Kernels, name: str, tokens: int, threads: int, roofline: Roofline, elsewhere: np.ndarray,
            rounds: int) -> dict[str, Any]:  # fmt: skip
    """One row: seconds, and the part of the limit that was measured beside it."""
    run, wake = kernels.runner(name, tokens, threads), kernels.runner(WAKE, 1, threads)
    packed, peak = kernels.packed(name), PEAK_OF.get(name, "int8_dot")
    run()
    seconds, limits, amx = list[float](), list[float](), list[float]()
    for _ in range(rounds):
        if tokens == 1:
            roofline.read_streams(elsewhere, threads, 1)
            wake()
            seconds.append(run())
            limits.append(packed.nbytes / max(cold_reads(roofline, packed, elsewhere, threads)))
            continue
        before = roofline.peak(peak, threads)
        seconds.append(run())
        after = roofline.peak(peak, threads)
        limits.append(tokens * N * K * 2 / (before + after) if before and after else math.nan)
        if tiles := roofline.peak(AMX_OF.get(peak, ""), threads):
            amx.append(tokens * N * K / tiles)
    took, limit = statistics.median(seconds), statistics.median(limits)
    row = {"kernel": "linear", "type": name, "n": N, "k": K, "tokens": tokens, "threads": threads, "seconds": took,
           "min": min(seconds), "max": max(seconds), "bytes": packed.nbytes, "gbs": packed.nbytes / took / 1e9,
           "gmacs": tokens * N * K / took / 1e9, "limit_seconds": limit, "fraction": limit / took}  # fmt: skip
    return row | ({"amx_fraction": statistics.median(amx) / took} if amx else {})


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Markdown lines: a row for each dtype, columns for tokens and threads."""
    cases = list(dict.fromkeys((row["tokens"], row["threads"]) for row in rows))
    heads = []
    for tokens, threads in cases:
        unit = "GB/s" if tokens == 1 else "GMAC/s"
        heads.append(f"{tokens} token{'s' * (tokens > 1)}, {threads} thread{'s' * (threads > 1)}: {unit} (of limit)")
    yield f"| type | bits a weight | {' | '.join(heads)} |"
    yield "|---" * (2 + len(cases)) + "|"
    for name in dict.fromkeys(row["type"] for row in rows):
        here = {(row["tokens"], row["threads"]): row for row in rows if row["type"] == name}
        cells = []
        for case in cases:
            row = here[case]
            tiles = f", {100 * row['amx_fraction']:.0f} % of AMX" if row.get("amx_fraction", 0) > 0.08 else ""
            speed = row["gbs"] if case[0] == 1 else row["gmacs"]
            cells.append(f"{speed:.{1 if case[0] == 1 else 0}f} ({100 * row['fraction']:.0f} %{tiles})")
        bits = 8 * packed_bytes(Type((N, K), DTYPES[name])) / N / K
        yield f"| {name} | {bits:.2f} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="native")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--types", nargs="+", default=list(DIRECT), choices=DIRECT)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, help="prefix of the files to write")
    arguments = parser.parse_args()
    chosen, roofline = target.get(arguments.target), Roofline()
    if chosen not in target.supported():
        sys.exit(f"this CPU cannot run {chosen.name}: choose one of {', '.join(t.name for t in target.supported())}")
    about = manifest(roofline, arguments.threads) | {"target": chosen.name}
    kernels, elsewhere = Kernels(arguments.types, chosen), aligned(EVICTION)
    elsewhere[:: 1 << 12] = 1
    rows = [measure(kernels, name, tokens, threads, roofline, elsewhere, arguments.rounds)
            for name in arguments.types for tokens in TOKENS for threads in arguments.threads]  # fmt: skip
    text = "\n".join([f"# Linear kernels, {N} rows of {K}\n", described(about), "", *table(rows)])
    print(text)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        Path(f"{arguments.out}.json").write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n")
        Path(f"{arguments.out}.md").write_text(text + "\n")


if __name__ == "__main__":
    main()

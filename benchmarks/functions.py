"""Plain functions beside onnxruntime and torch: median time of a call, the same weights and inputs, interleaved.

    python benchmarks/functions.py [--models MLP,MiniLM] [--batch 1,8] [--matrices f32|bf16|int8] [--json FILE]

Every engine has two threads. Each first runs the model once, and results further than a bound from those of JAX in f32
are an error. Then each engine in turn is called for at least `--seconds`, in `--rounds` rounds. Printed are
the median of all calls, the spread of the rounds' medians, ours as a multiple of each, and the share of the peak of
fused multiply-adds, measured before and after, that our best call reached.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import jax
import numpy as np
import onnxruntime
import torch
import torch._inductor.config as inductor
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch.utils.flop_counter import FlopCounterMode

from functions_models import MODELS, Model  # isort: skip
from inferc.backends.c import program, target, toolchain
from inferc.benchmarks.roofline import Roofline
from inferc.compiler.pipeline import run_passes
from inferc.compiler.tracing import Input, trace
from inferc.ir.graph import Module, Weight
from inferc.ir.interpret import prepare_weights
from inferc.ir.types import Type, f32, i32

ENGINES = ("inferc", "onnxruntime", "torch", "torch.compile")


@dataclass(frozen=True)
class Matrices:
    """What matrices are multiplied in: `quant` as `inferc.compile` takes it, the engines that can, and how far from f32
    a result may be, as a part of the greatest."""

    quant: str
    engines: tuple[str, ...]
    tolerance: float


MATRICES = {
    "f32": Matrices("", ENGINES, 1e-4),
    "bf16": Matrices("bf16", ("inferc", "torch", "torch.compile"), 0.1),  # onnxruntime has no bf16 on CPUs
    "int8": Matrices("q8_0", ("inferc", "onnxruntime"), 0.1),  # torch quantises its Linear modules alone
}
PEAK, PEAK_SECONDS = "fp32_fma", 0.1
SLEEP = 0.5  # seconds after which the threads of the engine before have stopped spinning
Call = Callable[[], np.ndarray]


class OpenOptions(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("weights", ctypes.c_void_p), ("weights_bytes", ctypes.c_size_t),
                ("threads", ctypes.c_int32), ("pin", ctypes.c_int32), ("target", ctypes.c_char_p),
                ("parallel_for", ctypes.c_void_p), ("pool", ctypes.c_void_p)]  # fmt: skip


def aligned(size: int) -> np.ndarray:
    raw = np.zeros(size + 64, np.uint8)
    return raw[-raw.ctypes.data % 64 :][:size]


def ours(model: Model, weights: dict[str, np.ndarray], inputs: list[np.ndarray], threads: int, want: np.ndarray,
         folder: Path, quant: str = "") -> Call:  # fmt: skip
    """The function compiled for this CPU, called through its C interface."""
    function, names = model.jax_function(), list(weights)
    kinds = {np.dtype(np.int32): i32, np.dtype(np.float32): f32}
    given = [Input(f"x{i}", "arg", Type(x.shape, kinds[x.dtype])) for i, x in enumerate(inputs)]
    given += [Input(n, "weight", Type(a.shape, f32)) for n, a in weights.items()]
    count = len(inputs)
    graph, made = trace(lambda *a: [function(dict(zip(names, a[count:])), *a[:count])], given, name="compute")
    made |= {n: Weight(n, Type(a.shape, f32), lambda a=a: a) for n, a in weights.items()}
    chosen = target.get("native")
    module = run_passes(Module({"compute": graph}, made), replace(chosen.ir, rounded=quant))
    built = program.build(module, (chosen,), context=1, chunk=1, name="function")
    path = folder / "library.so"
    toolchain.compile_program(built, path)
    data, arrays = aligned(built.weight_bytes), {name: array for name, _, array in prepare_weights(module)}
    for name, offset, size in built.weight_order:
        data[offset : offset + size] = np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8)
    library = ctypes.CDLL(str(path))
    library.model_compute_workspace_bytes.restype = ctypes.c_size_t
    handle = ctypes.c_void_p()
    options = OpenOptions(ctypes.sizeof(OpenOptions), data.ctypes.data, data.nbytes, threads)
    if status := library.model_open(ctypes.byref(options), ctypes.byref(handle)):
        raise RuntimeError(f"model_open: status {status}")
    size = library.model_compute_workspace_bytes(handle)
    workspace, result = aligned(max(size, 64)), np.empty_like(want)
    arguments = [ctypes.c_void_p(workspace.ctypes.data), ctypes.c_size_t(size),
                 *(ctypes.c_void_p(a.ctypes.data) for a in (*inputs, result))]  # fmt: skip

    def call() -> np.ndarray:
        status = library.model_compute(handle, *arguments)
        if status:
            raise RuntimeError(f"model_compute: status {status}")
        return result

    call.kept = data, inputs, workspace  # type: ignore[attr-defined]
    return call


def peers(model: Model, weights: dict[str, np.ndarray], inputs: list[np.ndarray], threads: int,
          folder: Path, matrices: str) -> dict[str, Call]:  # fmt: skip
    """The same module in onnxruntime (exported by torch, in int8 by its dynamic quantisation with a scale for each
    output), in torch and in torch.compile with its weights frozen (all of it in bf16 where matrices are)."""
    torch.set_num_threads(threads)
    module, given = model.torch_module(weights).eval(), model.torch_inputs(inputs)
    path = folder / "model.onnx"
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, tuple(given), str(path), dynamo=False, opset_version=17)
    if matrices == "int8":
        quantize_dynamic(path, path := folder / "quantized.onnx", per_channel=True, weight_type=QuantType.QInt8)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {i.name: t.numpy() for i, t in zip(session.get_inputs(), given)}
    if matrices == "bf16":
        module, given = module.bfloat16(), [t.bfloat16() if t.is_floating_point() else t for t in given]
    inductor.freezing = True
    torch._dynamo.reset()
    compiled = torch.compile(module)

    def in_torch(function: Callable[..., torch.Tensor]) -> Call:
        def call() -> np.ndarray:
            with torch.no_grad():
                return function(*given).float().numpy()

        return call

    return {"onnxruntime": lambda: session.run(None, feed)[0], "torch": in_torch(module),
            "torch.compile": in_torch(compiled)}  # fmt: skip


def timed(calls: dict[str, Call], rounds: int, seconds: float) -> dict[str, list[list[float]]]:
    """The times of all calls in ms, by engine and round; engines take turns."""
    times: dict[str, list[list[float]]] = {engine: [] for engine in calls}
    for _ in range(rounds):
        for engine, call in calls.items():
            time.sleep(SLEEP)
            call()
            times[engine].append([])
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(times[engine][-1]) < 3:
                start = time.perf_counter()
                call()
                times[engine][-1].append((time.perf_counter() - start) * 1e3)
    return times


def multiply_adds(model: Model, weights: dict[str, np.ndarray], inputs: list[np.ndarray]) -> int:
    """Multiply-adds of the model's products, as torch counts them."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):  # whose LSTM is one op that is not counted
            model.torch_module(weights).eval()(*model.torch_inputs(inputs))
    return int(counter.get_total_flops()) // 2


def measure(name: str, batch: int, threads: int, rounds: int, seconds: float, engines: Sequence[str],
            matrices: str = "f32") -> dict[str, Any]:  # fmt: skip
    """Times of one model in ms, by engine: all calls, and the median of each round."""
    model = MODELS[name]
    weights, inputs = model.weights(), model.arrays(batch)
    want = np.asarray(jax.jit(model.jax_function())(weights, *inputs))
    with tempfile.TemporaryDirectory(prefix="inferc-functions-") as place:
        folder = Path(place)
        calls = {"inferc": ours(model, weights, inputs, threads, want, folder, MATRICES[matrices].quant)}
        calls |= peers(model, weights, inputs, threads, folder, matrices)
        calls, refused = {engine: calls[engine] for engine in engines}, {}
        for engine in engines:
            try:
                calls[engine]()
            except RuntimeError as error:  # such as torch's LSTM in bf16 on some CPUs
                if engine == "inferc":
                    raise
                refused[engine] = str(error).splitlines()[0]
                del calls[engine]
        scale = float(np.abs(want).max())
        apart = {engine: float(np.abs(call() - want).max()) / scale for engine, call in calls.items()}
        for engine, distance in apart.items():
            if not distance <= MATRICES[matrices].tolerance:
                raise RuntimeError(f"{name}: {engine} is {distance:.1e} of the greatest result away from JAX")
        roofline = Roofline()
        peaks = [roofline.peak(PEAK, threads, PEAK_SECONDS)]
        times = timed(calls, rounds, seconds)
        peaks.append(roofline.peak(PEAK, threads, PEAK_SECONDS))
    return {"model": name, "batch": batch, "threads": threads, "matrices": matrices, "apart": apart, "refused": refused,
            "multiply_adds": multiply_adds(model, weights, inputs), "peak": max((p for p in peaks if p), default=None),
            "ms": {e: median(t for r in rs for t in r) for e, rs in times.items()},
            "best": {e: min(t for r in rs for t in r) for e, rs in times.items()},
            "rounds": {e: [median(r) for r in rs] for e, rs in times.items()}}  # fmt: skip


def table(results: list[dict[str, Any]], engines: Sequence[str]) -> str:
    """The results as Markdown: ms (spread of rounds), how many times as fast ours is as each peer, and how far each
    is from JAX in f32, as a part of the greatest result."""
    others = [e for e in engines if e != "inferc"]
    head = ["model", "batch", *(f"{e}, ms" for e in engines), *(f"× {e}" for e in others), "of the f32 peak",
            *(f"{e}, apart" for e in engines)]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---|" * (len(head) - 1)]
    for r in results:
        times, ours, rounds = r["ms"], r["ms"]["inferc"], r["rounds"]
        cells = [f"{times[e]:.3g} ({min(rounds[e]):.3g}–{max(rounds[e]):.3g})" if e in times else "–" for e in engines]
        ratios = [f"{times[e] / ours:.2f}" if e in times else "–" for e in others]
        share = f"{r['multiply_adds'] / (r['best']['inferc'] * 1e-3) / r['peak']:.0%}" if r["peak"] else "–"
        apart = [f"{r['apart'][e]:.1g}" if e in times else "–" for e in engines]
        lines.append("| " + " | ".join([r["model"], str(r["batch"]), *cells, *ratios, share, *apart]) + " |")
    means = [f"{geometric_mean(r['ms'][e] / r['ms']['inferc'] for r in results if e in r['ms']):.2f}"
             if any(e in r["ms"] for r in results) else "–" for e in others]  # fmt: skip
    lines.append("| " + " | ".join(["geometric mean", "", *([""] * len(engines)), *means, *([""] * (len(engines) + 1))])
                 + " |")  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--matrices", choices=MATRICES, default="f32", help="what both sides multiply matrices in")
    parser.add_argument("--engines", help="by default all that can")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each engine in each round")
    parser.add_argument("--json", type=Path, help="adds the results to this file, replacing those of equal models")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    engines = options.engines.split(",") if options.engines else MATRICES[options.matrices].engines
    kept = json.loads(options.json.read_text()) if options.json and options.json.exists() else []
    if any(r["matrices"] != options.matrices for r in kept):
        parser.error(f"{options.json} has results with other matrices than {options.matrices}")
    done = {(r["model"], r["batch"]): r for r in kept}
    for batch in map(int, options.batch.split(",")):
        for name in options.models.split(","):
            result = measure(name, batch, options.threads, options.rounds, options.seconds, engines, options.matrices)
            done[name, batch] = result
            print(table([result], engines).splitlines()[2], *map(": ".join, result["refused"].items()), flush=True)
            if options.json:
                options.json.write_text(json.dumps(list(done.values()), indent=1) + "\n")
    results = sorted(done.values(), key=lambda r: (r["batch"], list(MODELS).index(r["model"])))
    print(text := table(results, engines))
    if options.markdown:
        options.markdown.write_text(text)


if __name__ == "__main__":
    main()

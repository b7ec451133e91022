"""What XLA makes of programs for an accelerator that is not here: python tests/xla_aot.py cuda|rocm|tpu OUTPUT.json

jax's plugins compile for a described device without one: `jax-cuda13-plugin` for an H100, `jax-rocm7-plugin` for an
MI300X, `libtpu` for a TPU v5e. For each case it writes bytes of temporaries, of what is aliased, the kernels, copies
beside other work, and for a TPU estimated cycles. A process of its own: a plugin can be loaded once, and libtpu looks
for its device otherwise.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from typing import Any
from unittest import mock

# What XLA asks of an H100 (SXM): NVIDIA's published numbers, and CUDA's limits for compute capability 9.0.
H100 = """
gpu_device_info {
  name: "NVIDIA H100" cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  core_count: 132 fpus_per_core: 128 threads_per_warp: 32 clock_rate_ghz: 1.98
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  l2_cache_size: 52428800 memory_bandwidth: 3352320000000 device_memory_size: 84942979072
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0" dnn_version: "9.10.0"
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } device_description_str: "NVIDIA H100"
"""
# And of an MI300X: AMD's numbers.
MI300X = """
gpu_device_info {
  name: "AMD Instinct MI300X" rocm_compute_capability { gcn_arch_name: "gfx942:sramecc+:xnack-" }
  core_count: 304 fpus_per_core: 128 threads_per_warp: 64 clock_rate_ghz: 2.1
  threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 1024
  shared_memory_per_block: 65536 shared_memory_per_block_optin: 65536 shared_memory_per_core: 65536
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  l2_cache_size: 4194304 memory_bandwidth: 5300000000000 device_memory_size: 206141652992
  driver_version: "7.0.0" runtime_version: "7.0.0" compile_time_toolkit_version: "7.0.0" dnn_version: "3.4.0"
}
platform_name: "ROCM" dnn_version_info { major: 3 minor: 4 } device_description_str: "AMD Instinct MI300X"
"""
GPUS = {"cuda": H100, "rocm": MI300X}
FORMATS = ("q4_0", "q5_1", "q8_0", "q4_k", "q6_k", "mxfp4", "f16")  # one of each kind of scale, and of plane
BOOKS = ("mxfp4", "iq4_nl", "iq3_s")  # formats of code books, one for each way to compute codes on TPUs
TOKENS = (1, 8, 32)
EXPERTS, USED = 16, 4
ROWS, WIDTH = 1024, 2048
KINDS = "fusion|custom-call|dot|convolution|reduce|copy|convert|sort|gather|scatter"
MORE = "|while|transpose|pad|dynamic-slice|dynamic-update-slice|concatenate|select|broadcast"  # in no fusion, on TPUs
KERNEL = {p: re.compile(rf" ({KINDS}{MORE if p == 'tpu' else ''})\(") for p in (*GPUS, "tpu")}
COLLECTIVE = re.compile(r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(")
NONE = ('custom_call_target="ConcatBitcast"', 'custom_call_target="AllocateBuffer"')  # do nothing, on TPUs
CONTEXT, LAYERS = 4096, (2, 3)


@dataclass(frozen=True)
class Case:
    """A program; `layouts` are those of its inputs as a manifest has them, `axes` those along which devices share them,
    `states` how many of the last are states. What it takes and gives are one device's parts."""

    name: str
    text: str
    inputs: list
    outputs: list
    layouts: list[Mapping[str, Any] | None]
    states: int = 0
    devices: int = 1
    axes: Sequence[int | None] = ()


def described(platform: str) -> Sequence[Any]:
    """Two devices that only compile."""
    from jax.experimental import topologies

    if platform == "tpu":
        return topologies.get_topology_desc("v5e:2x2x1", "tpu").devices[:2]
    import jax

    jax.devices()  # jax finds its plugins then
    return topologies.get_topology_desc("", platform, target_config=GPUS[platform], topology="1x1x2").devices


def forms() -> Iterator[Case]:
    """Products with a weight of each format, as it is stored, and on TPUs with experts'."""
    from inferc.backends.xla import tpu
    from inferc.backends.xla.context import Context, Facts
    from inferc.backends.xla.lower import lower
    from inferc.backends.xla.target import target
    from inferc.compiler.passes import quantize
    from inferc.ir.graph import Module, Weight
    from inferc.ir.types import DTYPES
    from tests.ir_build import graph, inputs, op

    def case(name: str, kind: str, sizes: str, tokens: int, **ids: str) -> Case:
        values = inputs(x=f"f32[{tokens}, {WIDTH}]", w=f"weight {sizes}", **ids)
        weights = {"w": Weight("w", values[1].type, lambda: None)}
        module = quantize.run(Module({"step": graph(op(kind, *values), order=values)}, weights), target("bf16"))
        g = module.entries["step"]
        context = Context({}, Facts(), DTYPES["bf16"], sys.argv[1])
        (given, weight, *more) = (context.held(n.types[0]) for n in g.inputs)
        results = [context.held(v.type) for v in g.outputs]
        own = tpu.layouts(g.inputs[1].types[0], [s for s, _ in weight]) if sys.argv[1] == "tpu" else None
        layouts = [None, *(own or [None] * len(weight)), *[None] * len(more)]
        return Case(name, lower(context, g), [*given, *weight, *chain(*more)], results[0], layouts)

    for dtype in (*FORMATS, *BOOKS):
        for tokens in TOKENS if dtype in FORMATS else TOKENS[:1]:
            yield case(f"{dtype} {tokens}", "linear", f"{dtype}[{ROWS}, {WIDTH}]", tokens)
    for tokens in (1, 8) if sys.argv[1] == "tpu" else ():
        sizes = f"mxfp4[{EXPERTS}, {ROWS}, {WIDTH}]"
        yield case(f"experts {tokens}", "expert_linear", sizes, tokens, ids=f"i32[{tokens}, {USED}]")


def models(folder: Path) -> Iterator[Case]:
    """Steps of Llamas of the 1B's layers, for one token and, with 32 slots, for a token of each; for TPUs also for
    eight tokens, and for 64 of any slots. Those of one token and of 32 also for two devices that share the model."""
    from dataclasses import replace

    import numpy as np

    from inferc.benchmarks import random_gguf
    from inferc.compiler.driver import plan_model
    from tests.xla_run import tensors

    def zeros(_: Any, dims: tuple[int, int], kind: Any) -> np.ndarray:  # nothing is computed with them
        return np.zeros(random_gguf.quant_shape_to_byte_shape(dims, kind), np.uint8)

    for layers in LAYERS:
        path = folder / f"{layers}.gguf"
        shape = replace(random_gguf.SHAPES["llama-3.2-1b"], layers=layers, vocabulary=4096)
        with mock.patch.object(random_gguf, "random_matrix", zeros):
            random_gguf.write(path, shape, "q4_0")
        for slots, devices in product((1, 32), (1, 2)):
            plan = plan_model(path, backend="xla", context=CONTEXT, chunk=64, compute="bf16", slots=slots,
                              mesh=f"tp={devices}")  # fmt: skip
            program, facts = plan.lowered.program, plan.lowered.facts()
            held = [t.get("layouts", {}).get(sys.argv[1]) for i in facts["inputs"] for t in i["tensors"]]
            steps = [("one", 1), ("one", 8)] if slots == 1 else [("each", 32), ("mixed", 64)]
            every = sys.argv[1] == "tpu" and devices == 1
            wanted = {f"{t}": (form, t, "step") for form, t in (steps if every else steps[:1])}
            if every and slots == 1:
                wanted["greedy"] = ("one", 1, "greedy")
            for of, kind in wanted.items():
                spec = next(s for s in program.specs if (s.facts.form, s.dims["T"], s.kind) == kind
                            and s.facts.span in (CONTEXT, 0))  # fmt: skip
                inputs, outputs, states = tensors(program, spec)
                arguments = [None] * (len(inputs) - len(held))
                axes = [*arguments, *(axis for i in facts["inputs"] for axis in i["sharding"])]
                name = f"llama {layers} {of}{' shared' if devices > 1 else ''}"
                text = program.text(spec, sys.argv[1])
                yield Case(name, text, inputs, outputs, [*arguments, *held], states, devices, axes)


def compiled(case: Case, on: Sequence[Any], platform: str) -> dict[str, Any]:
    import jax
    import numpy as np

    from inferc.backends.xla.portable import serialize
    from inferc.runtime import xla_call
    from inferc.runtime.xla_devices import Group, laid_out

    inputs, states = case.inputs, case.states
    group = Group(tuple(on[: case.devices]))
    axes = case.axes or [None] * len(inputs)
    given = [laid_out(group.place(axis, len(s)), layout) for (s, _), axis, layout in zip(inputs, axes, case.layouts)]
    made_at = [group.place()] * (len(case.outputs) - states) + given[len(inputs) - states :]
    whole = [([n * case.devices if i == axis else n for i, n in enumerate(s)], e) for (s, e), axis in zip(inputs, axes)]
    call = group.on_each(xla_call.exported(serialize(case.text), inputs, case.outputs, platform).call, given, made_at)
    donated = tuple(range(len(inputs) - states, len(inputs)))
    function = jax.jit(call, donate_argnums=donated, out_shardings=tuple(made_at))
    traced = function.trace(*xla_call.structs(whole, given))
    options = dict(xla_call.OPTIONS.get(platform, {}))
    made = traced.lower(lowering_platforms=(platform,)).compile(compiler_options=options)
    memory, hlo = made.memory_analysis(), made.as_text()
    summed = [line for line in hlo.splitlines() if COLLECTIVE.search(line)]
    lines = [line.strip() for line in hlo[hlo.index("\nENTRY") :].splitlines()]
    # XLA's estimate of each operation, for TPUs, and copies that run beside others.
    estimates = re.findall(r'"estimated_cycles":"(\d+)"', "\n".join(lines))
    size = {e: xla_call.dtype_of(e).itemsize for _, e in inputs}
    return {
        "temporary": memory.temp_size_in_bytes, "alias": memory.alias_size_in_bytes,
        "states": sum(int(np.prod(s)) * size[e] for s, e in inputs[len(inputs) - states :]) if states else 0,
        "collectives": len(summed), "cycles": sum(map(int, estimates)),
        "copies": [n.strip() for n in hlo.splitlines() if " copy-start(" in n],
        "kernels": [n for n in lines if KERNEL[platform].search(n) and not any(none in n for none in NONE)],
    }  # fmt: skip


def main(platform: str, output: str, only: str = "") -> None:
    """Writes what came of the cases whose names begin with `only`."""
    os.environ |= {"JAX_PLATFORMS": "cpu"}
    if platform == "cuda":
        import nvidia.cu13

        flags = f"--xla_gpu_cuda_data_dir={next(iter(nvidia.cu13.__path__))} --xla_gpu_autotune_level=0"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    elif platform == "tpu":
        os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "TPU_WORKER_ID": "0",
                       "TPU_WORKER_HOSTNAMES": "localhost"}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        if platform == "rocm":
            import jax_plugins.xla_rocm7

            from tests import rocm_stubs

            plugin = Path(jax_plugins.xla_rocm7.__path__[0]) / "xla_rocm_plugin.so"
            rocm_stubs.load(plugin, Path(folder))
            os.environ["PJRT_NAMES_AND_LIBRARY_PATHS"] = f"rocm:{plugin}"
        on = described(platform)
        cases = chain(forms(), models(Path(folder)))
        found = {}
        for case in cases:
            if case.name.startswith(only):
                found[case.name] = compiled(case, on, platform)
                Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])

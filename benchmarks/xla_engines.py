"""What `xla_gpu.py` measures: the limits of a device, our engine and others, each as a function that gives figures."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from inferc.benchmarks import random_gguf
from inferc.errors import InfercError

ROUNDS = 5
DISTINCT = 256  # rows of a matrix that differ

Leg = tuple[str, str, str, int]  # engine, shape ("" for the file that was given), weight type, batch
Figure = tuple[str, float, float]  # what was measured, tokens per second, and bytes that a step of decoding must read


def median_seconds(run: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Of several runs after one that is not counted; `run` waits for what it computes."""
    run()
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


# --- The device ---


def bandwidth(device: Any, size: int) -> float:
    """GB/s of finding the highest of `size` bytes of f32, or of reading and writing them, whichever is higher."""
    import jax
    import jax.numpy as jnp

    x = jax.device_put(jnp.ones(size // 4, jnp.float32), device)
    read, copy = jax.jit(jnp.max), jax.jit(lambda x: x + 1)
    reading = median_seconds(lambda: read(x).block_until_ready())
    copying = median_seconds(lambda: copy(x).block_until_ready())
    return max(size / reading, 2 * size / copying) / 1e9


def matmul_peak(device: Any, size: int, dtype: str) -> float:
    """TFLOP/s of a product of square matrices of random values."""
    import jax

    x = jax.device_put(jax.random.normal(jax.random.key(0), (size, size), dtype), device)
    product = jax.jit(lambda x: x @ x)
    return 2 * size**3 / median_seconds(lambda: product(x).block_until_ready()) / 1e12


def device_facts(options: argparse.Namespace) -> dict[str, Any]:
    """The device and its limits. Raises InfercError where jax has none of the platform."""
    import jax

    try:
        device = jax.devices(options.platform)[0]
    except RuntimeError as error:
        raise InfercError(f"jax has no device of {options.platform} here: nothing is measured") from error
    large = options.platform != "cpu"
    dtype = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}[options.compute]
    rate = bandwidth(device, 1 << (31 if large else 28))
    peak = matmul_peak(device, 8192 if large else 1024, dtype)
    return {"device": device.device_kind, "jax": jax.__version__, "compute": options.compute, "gb_per_second": rate,
            "tflops": peak}  # fmt: skip


# --- Engines ---


class InMemory:
    """What `Engine` asks of an artifact: a plan's programs, and random weights of its types."""

    def __init__(self, plan: Any) -> None:
        from inferc.compiler.driver import describe

        self.path = plan.source.path
        self.manifest = describe(plan) | {"weights": {"file": "weights"}}
        self._files, _ = plan.lowered.files()
        self._program = plan.lowered.program

    def read(self, name: str) -> bytes:
        return self._files[name]

    def view(self, name: str) -> np.ndarray:
        """The weights file: of each matrix a few rows, again and again."""
        from gguf import GGMLQuantizationType

        from inferc.backends.xla.parts import split
        from inferc.ir.types import Type

        data, rng = np.empty(self._program.weight_bytes, np.uint8), np.random.default_rng(0)
        for weight in self._program.weights:
            rows, *width = weight.type.sizes
            count, dtype = min(rows, DISTINCT), weight.type.dtype
            if width:
                made = random_gguf.random_matrix(rng, (count, *width), GGMLQuantizationType[dtype.name.upper()])
                array = made.view(np.uint16) if dtype.name == "bf16" else made
            else:
                array = np.ones(count, np.float32)
            for offset, part in zip(weight.offsets, split(Type((count, *width), dtype), array)):
                lines = part.reshape(count, -1).view(np.uint8)
                whole = data[offset : offset + rows * lines.shape[1]].reshape(rows, -1)
                for start in range(0, rows, count):
                    whole[start : start + count] = lines[: rows - start]
        return data


def file_of(leg: Leg, options: argparse.Namespace) -> Path:
    """The model's file, written where it is missing: with holes for weights where our engine makes its own."""
    engine, shape, kind, _ = leg
    if options.gguf:
        return options.gguf
    hollow = engine == "inferc"
    path = options.models / f"{shape}-{kind}{'.hollow' if hollow else ''}.gguf"
    if not path.exists():
        options.models.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(f".{os.getpid()}.new")
        random_gguf.write(fresh, random_gguf.SHAPES[shape], kind, distinct=0 if hollow else DISTINCT)
        fresh.replace(path)
    return path


def prompts_of(engine: Any, session: Any, prompts: Sequence[int]) -> Iterator[tuple[str, float]]:
    """(what, tokens per second) of prompts from an empty cache."""
    for count in prompts:
        ids = np.random.default_rng(0).integers(0, engine.vocab_size, count).tolist()

        def prompt(ids: list[int] = ids) -> None:
            session.rewind(0)
            for start in range(0, len(ids), engine.chunk):
                session.eval(ids[start : start + engine.chunk])

        yield f"prompt {count}", count / median_seconds(prompt)


def ours(leg: Leg, options: argparse.Namespace) -> Iterator[Figure]:
    """Decoding with so many slots, and prompts where there is one."""
    from inferc.compiler.driver import compile_model, plan_model
    from inferc.runtime.artifact import Artifact
    from inferc.runtime.xla_engine import Engine

    tokens, context, (*_, batch) = options.tokens, options.context, leg
    model = file_of(leg, options)
    choices = {"backend": "xla", "platforms": options.platform, "compute": options.compute, "slots": batch,
               "context": context, "chunk": min(2048, context)}  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        if options.gguf:
            compile_model(str(model), Path(scratch) / "x.inferc", **choices)
            artifact: Any = Artifact(Path(scratch) / "x.inferc")
        else:
            artifact = InMemory(plan_model(model, **choices))
        memory = artifact.manifest["memory"]
        size = memory["weights"] + batch * memory["session"] * tokens / context / 2
        engine = Engine(artifact, target=options.platform)
        sessions = [engine.session() for _ in range(batch)]
        prompts = options.prompts if batch == 1 else []
        compile_together(engine, prompts)

        def decode() -> None:
            for session in sessions:
                session.rewind(0)
            made = [1] * batch
            for _ in range(tokens if batch > 1 else 0):
                made = engine.likeliest(list(zip(sessions, made)))
            while batch == 1 and len(made) <= tokens:
                made += sessions[0].greedy(made[-1], tokens + 1 - len(made), [])

        yield f"decode {batch}", batch * tokens / median_seconds(decode), size
        yield from ((what, speed, size) for what, speed in prompts_of(engine, sessions[0], prompts))
        engine.close()


def compile_together(engine: Any, prompts: Sequence[int]) -> None:
    """Compiles the programs that will be needed at once, as each takes long, and says for how long."""
    started = time.perf_counter()
    sizes = {f"one-T{engine.bucket(min(count, engine.chunk), 0)}-R1" for count in prompts}
    kinds = [p["file"].removeprefix("xla/") for p in engine.artifact.manifest["programs"]]
    decoding = [k for k in kinds if k.startswith("greedy" if engine.slots == 1 else "each")][:1]  # of the least span
    with ThreadPoolExecutor() as pool:
        list(pool.map(engine.replicas[0].compiled, [*decoding, *sorted(sizes)]))
    print(f"{'':28} compiled in {time.perf_counter() - started:.0f} s", flush=True)


def beside_c(leg: Leg, options: argparse.Namespace) -> Iterator[Figure]:
    """The same of the C backend, which takes tokens one by one."""
    from inferc.compiler.driver import compile_model
    from inferc.runtime.artifact import Artifact
    from inferc.runtime.session import Engine as CEngine

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "c.inferc"
        compile_model(str(file_of(leg, options)), path, context=options.context)
        artifact = Artifact(path)
        size = artifact.manifest["memory"]["weights"]
        engine = CEngine(artifact)
        session = engine.session()
        yield from ((what, speed, size) for what, speed in prompts_of(engine, session, options.prompts))

        def decode() -> None:
            session.rewind(0)
            id = 1
            for _ in range(options.tokens):
                id = int(session.eval([id])[0].argmax())

        yield "decode 1", options.tokens / median_seconds(decode), size
        engine.close()


def beside_jax(leg: Leg, options: argparse.Namespace) -> Iterator[Figure]:
    """Plain jax.jit of the model's own JAX function, on weights dequantised to f32, caches donated."""
    import jax
    import jax.numpy as jnp

    from inferc.compiler.frontends import gguf, language

    source = gguf.load(file_of(leg, options))
    step, empty = language.reference_step(source, options.context)
    weights = {name: jnp.asarray(language.dequantized(w)) for name, w in source.weights.items()}
    size = sum(w.nbytes for w in weights.values())

    jitted = jax.jit(step, donate_argnums=4)
    for count in options.prompts:
        ids, position = jnp.ones(count, jnp.int32), jnp.arange(count, dtype=jnp.int32)
        rows = jnp.array([count - 1], jnp.int32)
        seconds = median_seconds(
            lambda: jitted(weights, ids, position, rows, empty())[0].block_until_ready(), rounds=2  # noqa: B023
        )
        yield f"prompt {count}", count / seconds, size

    def decode() -> None:
        state, zero = empty(), jnp.zeros(1, jnp.int32)
        for i in range(options.tokens):
            logits, state = jitted(weights, zero + 1, zero + i, zero, state)
        logits.block_until_ready()

    yield "decode 1", options.tokens / median_seconds(decode, rounds=2), size


def beside_llama(leg: Leg, options: argparse.Namespace) -> Iterator[Figure]:
    """llama.cpp's own benchmark, all layers on the GPU."""
    program = options.llama_bench or shutil.which("llama-bench")
    if program is None:
        raise InfercError("there is no llama-bench here: give --llama-bench PATH")
    model = file_of(leg, options)
    command = [program, "-m", model, "-ngl", "99", "-fa", "1", "-o", "json", "-n", options.tokens, "-p",
               ",".join(map(str, options.prompts))]  # fmt: skip
    for row in json.loads(subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout):
        what = f"prompt {row['n_prompt']}" if row["n_prompt"] else "decode 1"
        yield what, row["avg_ts"], model.stat().st_size


def beside_transformers(leg: Leg, options: argparse.Namespace) -> Iterator[Figure]:
    """Hugging Face transformers in bf16: a static cache, the step under torch.compile with CUDA graphs."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

    _, shape, _, batch = leg
    if not shape:
        raise InfercError("transformers is measured with random weights: leave --gguf out")
    s = random_gguf.SHAPES[shape]
    config = LlamaConfig(
        hidden_size=s.width, intermediate_size=s.feed_forward, num_hidden_layers=s.layers,
        num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, vocab_size=s.vocabulary,
        rope_theta=s.rope_base, max_position_embeddings=s.context, tie_word_embeddings=True,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    wait = torch.cuda.synchronize if options.platform == "cuda" else lambda: None
    with torch.device(options.platform), torch.no_grad():
        model = LlamaForCausalLM(config).eval()
        step = torch.compile(model, mode="reduce-overhead", fullgraph=True)
        cache = StaticCache(config=config, max_cache_len=options.context)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        positions = torch.arange(options.context)

        def decode() -> None:
            cache.reset()
            id = torch.ones((batch, 1), dtype=torch.long)
            for i in range(options.tokens):
                at = positions[i : i + 1]
                logits = step(id, past_key_values=cache, cache_position=at, position_ids=at[None]).logits
                id = logits.argmax(-1)
            wait()

        yield f"decode {batch}", batch * options.tokens / median_seconds(decode), size
        for count in options.prompts if batch == 1 else []:
            ids = torch.ones((1, count), dtype=torch.long)

            def prompt(ids: Any = ids, count: int = count) -> None:
                cache.reset()
                model(ids, past_key_values=cache, cache_position=positions[:count], logits_to_keep=1)
                wait()

            yield f"prompt {count}", count / median_seconds(prompt), size


ENGINES: dict[str, Callable[..., Iterator[Figure]]] = {
    "inferc": ours, "inferc C": beside_c, "jax.jit f32": beside_jax, "llama.cpp": beside_llama,
    "transformers": beside_transformers,
}  # fmt: skip
OF_A_SHAPE = ("transformers",)  # engines that have one weight type

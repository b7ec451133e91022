"""Tokens per second of XLA artifacts on a device, as fractions of what the device can do, beside other engines.

    python benchmarks/xla_gpu.py                                     # a GPU: 1B and 8B shapes, four weight types
    python benchmarks/xla_gpu.py --llama-bench PATH --transformers   # the others in the same run
    python benchmarks/xla_gpu.py --platform cpu --gguf MODEL.gguf --types as-is --slots 1 --prompts 128 --beside c,jax

One run measures the device first: GB/s of reading a large array, and TFLOP/s of a matrix product in the dtype that is
computed in. Then, for each model and batch, decoding (`greedy` on the device where the batch is one, else one call for
a token of each slot) and prompts from an empty cache. Weights are random, of the shapes in `random_gguf.SHAPES`, and
made where they are missing. Of decoding the fraction is that of the bandwidth: weights and half the cache are read
once for each step; of prompts that of the matrix product's peak, at two operations for each weight and token.
An engine that fails is said so, with its reason, and the others go on; `--json` is written after each figure.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inferc.benchmarks import random_gguf
from inferc.compiler.driver import compile_model
from inferc.compiler.frontends import gguf
from inferc.errors import InfercError
from inferc.runtime.artifact import Artifact
from inferc.runtime.xla_engine import Engine

ROUNDS = 5


def median_seconds(run: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Of several runs after one that is not counted; `run` waits for what it computes."""
    run()
    found = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def bandwidth(device: Any, size: int) -> float:
    """GB/s of finding the highest of `size` bytes of f32."""
    x = jax.device_put(jnp.ones(size // 4, jnp.float32), device)
    total = jax.jit(jnp.max)
    return size / median_seconds(lambda: total(x).block_until_ready()) / 1e9


def matmul_peak(device: Any, size: int, dtype: Any) -> float:
    """TFLOP/s of a product of square matrices."""
    x = jax.device_put(jnp.ones((size, size), dtype), device)
    product = jax.jit(lambda x: x @ x)
    return 2 * size**3 / median_seconds(lambda: product(x).block_until_ready()) / 1e12


Figure = tuple[str, float, float]  # what was measured, tokens per second, and bytes that a step of decoding must read


def prompts_of(engine: Any, session: Any, prompts: Sequence[int]) -> Iterator[tuple[str, float]]:
    """(what, tokens per second) of prompts from an empty cache."""
    for count in prompts:
        ids = np.random.default_rng(0).integers(0, engine.vocab_size, count).tolist()

        def prompt(ids: list[int] = ids) -> None:
            session.rewind(0)
            for start in range(0, len(ids), engine.chunk):
                session.eval(ids[start : start + engine.chunk])

        yield f"prompt {count}", count / median_seconds(prompt)


def ours(model: Path, slots: int, compute: str, tokens: int, prompts: Sequence[int], context: int,
         platform: str) -> Iterator[Figure]:  # fmt: skip
    """Decoding with so many slots, and prompts where there is one."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "x.inferc"
        compile_model(str(model), path, backend="xla", platforms=platform, compute=compute, slots=slots,
                      context=context, chunk=min(2048, context))  # fmt: skip
        artifact = Artifact(path)
        memory = artifact.manifest["memory"]
        size = memory["weights"] + slots * memory["session"] * tokens / context / 2
        engine = Engine(artifact, target=platform)
        sessions = [engine.session() for _ in range(slots)]
        if slots == 1:
            (session,) = sessions
            yield from ((what, speed, size) for what, speed in prompts_of(engine, session, prompts))

            def decode() -> None:
                session.rewind(0)
                made = [1]
                while len(made) <= tokens:
                    made += session.greedy(made[-1], tokens + 1 - len(made), [])

        else:

            def decode() -> None:
                for session in sessions:
                    session.rewind(0)
                for _ in range(tokens):
                    engine.decode([(session, 1) for session in sessions])

        yield f"decode {slots}", slots * tokens / median_seconds(decode), size
        engine.close()


def beside_c(model: Path, tokens: int, prompts: Sequence[int], context: int) -> Iterator[Figure]:
    """The same of the C backend, which takes tokens one by one."""
    from inferc.runtime.session import Engine as CEngine

    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "c.inferc"
        compile_model(str(model), path, context=context)
        artifact = Artifact(path)
        size = artifact.manifest["memory"]["weights"]
        engine = CEngine(artifact)
        session = engine.session()
        yield from ((what, speed, size) for what, speed in prompts_of(engine, session, prompts))

        def decode() -> None:
            session.rewind(0)
            id = 1
            for _ in range(tokens):
                id = int(session.eval([id])[0].argmax())

        yield "decode 1", tokens / median_seconds(decode), size
        engine.close()


def beside_jax(model: Path, tokens: int, prompts: Sequence[int], context: int) -> Iterator[Figure]:
    """Plain jax.jit of the model's own JAX function, on weights dequantised to f32, caches donated."""
    from inferc.compiler.frontends import language

    source = gguf.load(model)
    step, empty = language.reference_step(source, context)
    weights = {name: jnp.asarray(language.dequantized(w)) for name, w in source.weights.items()}
    size = sum(w.nbytes for w in weights.values())

    jitted = jax.jit(step, donate_argnums=4)
    for count in prompts:
        ids, position = jnp.ones(count, jnp.int32), jnp.arange(count, dtype=jnp.int32)
        rows = jnp.array([count - 1], jnp.int32)
        seconds = median_seconds(
            lambda: jitted(weights, ids, position, rows, empty())[0].block_until_ready(), rounds=2  # noqa: B023
        )
        yield f"prompt {count}", count / seconds, size

    def decode() -> None:
        state, zero = empty(), jnp.zeros(1, jnp.int32)
        for i in range(tokens):
            logits, state = jitted(weights, zero + 1, zero + i, zero, state)
        logits.block_until_ready()

    yield "decode 1", tokens / median_seconds(decode, rounds=2), size


def beside_llama(bench: Path, model: Path, tokens: int, prompts: Sequence[int]) -> Iterator[Figure]:
    """llama.cpp's own benchmark, all layers on the GPU."""
    command = [bench, "-m", model, "-ngl", "99", "-fa", "1", "-o", "json", "-n", str(tokens), "-p",
               ",".join(map(str, prompts))]  # fmt: skip
    for row in json.loads(subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout):
        what = f"prompt {row['n_prompt']}" if row["n_prompt"] else "decode 1"
        yield what, row["avg_ts"], model.stat().st_size


def beside_transformers(shape: random_gguf.Shape, tokens: int, prompts: Sequence[int]) -> Iterator[Figure]:
    """Hugging Face transformers in bf16: a static cache, the step under torch.compile with CUDA graphs."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

    config = LlamaConfig(
        hidden_size=shape.width, intermediate_size=shape.feed_forward, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, vocab_size=shape.vocabulary,
        rope_theta=shape.rope_base, max_position_embeddings=shape.context, tie_word_embeddings=True,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"), torch.no_grad():
        model = LlamaForCausalLM(config).eval()
        step = torch.compile(model, mode="reduce-overhead", fullgraph=True)
        cache = StaticCache(config=config, max_cache_len=4096)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        for count in prompts:
            ids = torch.ones((1, count), dtype=torch.long)

            def prompt(ids: Any = ids, count: int = count) -> None:
                cache.reset()
                model(ids, past_key_values=cache, cache_position=torch.arange(count), logits_to_keep=1)
                torch.cuda.synchronize()

            yield f"prompt {count}", count / median_seconds(prompt), size

        def decode() -> None:
            cache.reset()
            id = torch.ones((1, 1), dtype=torch.long)
            for i in range(tokens):
                logits = step(id, past_key_values=cache, cache_position=torch.tensor([i])).logits
                id = logits.argmax(-1)
            torch.cuda.synchronize()

        yield "decode 1", tokens / median_seconds(decode), size


def parameters_of(model: Path) -> int:
    """Values of all its weights."""
    return sum(int(np.prod(w.type.sizes)) for w in gguf.load(model).weights.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", default="cuda")
    parser.add_argument("--shapes", default="llama-3.2-1b,llama-3.1-8b")
    parser.add_argument("--gguf", type=Path, help="one model file in place of random ones")
    parser.add_argument("--types", default="bf16,q8_0,q4_0,q4_k")
    parser.add_argument("--slots", default="1,8,32")
    parser.add_argument("--prompts", default="512,2048")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--compute", default="")
    parser.add_argument("--beside", default="", help="c and jax, with commas between them")
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--transformers", action="store_true")
    parser.add_argument("--models", type=Path, default=Path(tempfile.gettempdir()) / "inferc-random", help="a folder")
    parser.add_argument("--json", type=Path, help="a file for all figures")
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the other engines need memory of the GPU too
    try:
        devices = jax.devices(options.platform)
    except RuntimeError:
        sys.exit(f"error: jax has no device of {options.platform} here: nothing is measured")
    prompts, slots = ([int(n) for n in text.split(",")] for text in (options.prompts, options.slots))
    compute = options.compute or ("f32" if options.platform == "cpu" else "bf16")
    large = options.platform != "cpu"
    rate = bandwidth(devices[0], 1 << (31 if large else 28))
    dtype = {"f32": jnp.float32, "f16": jnp.float16, "bf16": jnp.bfloat16}[compute]
    peak = matmul_peak(devices[0], 8192 if large else 1024, dtype)
    limits = f"{rate:.0f} GB/s, {peak:.2f} TFLOP/s in {compute}"
    print(f"{devices[0].device_kind}, jax {jax.__version__}: {limits}", flush=True)
    rows: list[dict[str, Any]] = []
    facts = {"device": devices[0].device_kind, "jax": jax.__version__, "gb_per_second": rate, "tflops": peak}

    def keep(row: dict[str, Any]) -> None:
        rows.append(row)
        if options.json:
            fresh = options.json.with_suffix(".new")
            fresh.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")
            fresh.replace(options.json)

    def each(model: str, engine: str, found: Iterator[Figure]) -> None:
        """Shows what an engine gives, or why it gives nothing."""
        try:
            for figure in found:
                show(model, engine, *figure)
        except Exception as error:  # whatever another's engine raises, on a machine that costs by the hour
            reason = str(error).strip().splitlines() or [""]
            keep({"model": model, "engine": engine, "error": f"{type(error).__name__}: {reason[0]}"})
            print(f"{model:28} {engine:14} failed: {type(error).__name__}: {reason[0]}", flush=True)

    def show(model: str, engine: str, what: str, speed: float, size: float) -> None:
        count = int(what.split()[1])
        steps = speed / count if what.startswith("decode") else 0
        fraction = steps * size / 1e9 / rate if steps else speed * 2 * parameters / 1e12 / peak
        keep({"model": model, "engine": engine, "what": what, "tokens_per_second": speed, "fraction": fraction})
        of = "bandwidth" if steps else "matmul peak"
        print(f"{model:28} {engine:14} {what:12} {speed:10.1f} tokens/s  {fraction:6.1%} of the {of}", flush=True)

    names = ["gguf"] if options.gguf else options.shapes.split(",")
    beside = options.beside.split(",")
    for name in names:
        shape = None if options.gguf else random_gguf.SHAPES[name]
        for kind in options.types.split(","):
            model = options.gguf or random_model(options.models, name, kind)
            label = model.stem
            parameters = parameters_of(model)
            for batch in slots:
                found = ours(model, batch, compute, options.tokens, prompts, options.context, options.platform)
                each(label, f"inferc {compute}", found)
            if "c" in beside:
                each(label, "inferc C", beside_c(model, options.tokens, prompts, options.context))
            if "jax" in beside:
                each(label, "jax.jit f32", beside_jax(model, options.tokens, prompts, options.context))
            if options.llama_bench:
                each(label, "llama.cpp", beside_llama(options.llama_bench, model, options.tokens, prompts))
        if options.transformers and shape is not None:
            each(name, "transformers", beside_transformers(shape, options.tokens, prompts))
    if all("error" in row for row in rows):
        sys.exit("error: nothing could be measured")


def random_model(folder: Path, shape: str, dtype: str) -> Path:
    """The random model of a shape and type, written where it is missing."""
    path = folder / f"{shape}-{dtype}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        random_gguf.write(fresh, random_gguf.SHAPES[shape], dtype)
        fresh.replace(path)
    return path


if __name__ == "__main__":
    try:
        main()
    except InfercError as error:
        sys.exit(f"error: {error}")

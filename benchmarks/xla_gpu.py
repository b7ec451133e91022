"""Tokens per second of XLA artifacts on a device, as fractions of what the device can do, beside other engines.

    python benchmarks/xla_gpu.py                                     # a GPU: 1B and 8B shapes, bf16, q8_0, q4_0
    python benchmarks/xla_gpu.py --llama-bench PATH --transformers   # the others in the same run
    python benchmarks/xla_gpu.py --platform cpu --gguf MODEL.gguf --types as-is --slots 1 --prompts 128 --beside c,jax

One run measures the device first: GB/s of reading a large array, and TFLOP/s of a matrix product in the dtype that is
computed in. Then, for each model and batch, decoding (`greedy` on the device where the batch is one, else one call for
a token of each slot) and prompts from an empty cache. Weights are random, of the shapes in `random_gguf.SHAPES`, and
made where they are missing. Of decoding the fraction is that of the bandwidth: weights and half the cache are read
once for each step; of prompts that of the matrix product's peak, at two operations for each weight and token.
"""

from __future__ import annotations

import argparse
import json
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


def measured(engine: Engine, slots: int, tokens: int, prompts: Sequence[int]) -> Iterator[tuple[str, float]]:
    """(what, tokens per second) of decoding at the batch, and where it is one of prompts."""
    rng = np.random.default_rng(0)
    sessions = [engine.session() for _ in range(slots)]
    if slots == 1:
        (session,) = sessions
        for count in prompts:
            ids = rng.integers(0, engine.vocab_size, count).tolist()

            def prompt(ids: list[int] = ids) -> None:
                session.rewind(0)
                for start in range(0, len(ids), engine.chunk):
                    session.eval(ids[start : start + engine.chunk])

            yield f"prompt {count}", count / median_seconds(prompt)

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

    yield f"decode {slots}", slots * tokens / median_seconds(decode)


def beside_c(model: Path, folder: Path, tokens: int, prompts: Sequence[int],
             context: int) -> Iterator[tuple[str, float]]:  # fmt: skip
    """The same of the C backend, which takes tokens one by one."""
    from inferc.runtime.session import Engine as CEngine

    path = folder / "c.inferc"
    compile_model(str(model), path, context=context)
    engine = CEngine(Artifact(path))
    session = engine.session()
    for count in prompts:
        ids = np.random.default_rng(0).integers(0, engine.vocab_size, count).tolist()

        def prompt(ids: list[int] = ids) -> None:
            session.rewind(0)
            for start in range(0, len(ids), engine.chunk):
                session.eval(ids[start : start + engine.chunk])

        yield f"prompt {count}", count / median_seconds(prompt)

    def decode() -> None:
        session.rewind(0)
        id = 1
        for _ in range(tokens):
            id = int(session.eval([id])[0].argmax())

    yield "decode 1", tokens / median_seconds(decode)
    engine.close()


def beside_jax(model: Path, tokens: int, prompts: Sequence[int], context: int) -> Iterator[tuple[str, float]]:
    """Plain jax.jit of the model's own JAX function, on weights dequantised to f32, caches donated."""
    from inferc.compiler.frontends import gguf, language

    source = gguf.load(model)
    config = source.config.within(context)
    architecture = language.ARCHITECTURES[source.architecture]
    weights = {name: jnp.asarray(language.dequantized(w)) for name, w in source.weights.items()}

    def step(weights: Any, ids: Any, position: Any, rows: Any, state: Any) -> Any:
        return architecture.step(config, weights, ids, jnp.zeros_like(position), position, rows, state)

    jitted = jax.jit(step, donate_argnums=4)

    def empty() -> dict[str, Any]:
        lengths = (("k", config.key_length), ("v", config.value_length))
        return {f"layers.{i}.{k}": jnp.zeros((1, config.kv_heads, context, n), jnp.float32)
                for i in range(config.layers) for k, n in lengths}  # fmt: skip

    for count in prompts:
        ids, position = jnp.ones(count, jnp.int32), jnp.arange(count, dtype=jnp.int32)
        rows = jnp.array([count - 1], jnp.int32)
        seconds = median_seconds(
            lambda: jitted(weights, ids, position, rows, empty())[0].block_until_ready(), rounds=2  # noqa: B023
        )
        yield f"prompt {count}", count / seconds

    def decode() -> None:
        state, zero = empty(), jnp.zeros(1, jnp.int32)
        for i in range(tokens):
            logits, state = jitted(weights, zero + 1, zero + i, zero, state)
        logits.block_until_ready()

    yield "decode 1", tokens / median_seconds(decode, rounds=2)


def beside_llama(bench: Path, model: Path, tokens: int, prompts: Sequence[int]) -> Iterator[tuple[str, float]]:
    """llama.cpp's own benchmark, all layers on the GPU."""
    command = [bench, "-m", model, "-ngl", "99", "-fa", "1", "-o", "json", "-n", str(tokens), "-p",
               ",".join(map(str, prompts))]  # fmt: skip
    for row in json.loads(subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True).stdout):
        yield (f"prompt {row['n_prompt']}" if row["n_prompt"] else "decode 1"), row["avg_ts"]


def beside_transformers(shape: random_gguf.Shape, tokens: int, prompts: Sequence[int]) -> Iterator[tuple[str, float]]:
    """Hugging Face transformers in bf16: a static cache, the step under torch.compile with CUDA graphs."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, StaticCache

    config = LlamaConfig(
        hidden_size=shape.width, intermediate_size=shape.feed_forward, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, vocab_size=shape.vocabulary,
        rope_theta=shape.rope_base, max_position_embeddings=shape.context, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.device("cuda"), torch.no_grad():
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
        step = torch.compile(model, mode="reduce-overhead", fullgraph=True)
        cache = StaticCache(config=config, max_cache_len=4096)
        for count in prompts:
            ids = torch.ones((1, count), dtype=torch.long)

            def prompt(ids: Any = ids, count: int = count) -> None:
                cache.reset()
                model(ids, past_key_values=cache, cache_position=torch.arange(count), logits_to_keep=1)
                torch.cuda.synchronize()

            yield f"prompt {count}", count / median_seconds(prompt)

        def decode() -> None:
            cache.reset()
            id = torch.ones((1, 1), dtype=torch.long)
            for i in range(tokens):
                logits = step(id, past_key_values=cache, cache_position=torch.tensor([i])).logits
                id = logits.argmax(-1)
            torch.cuda.synchronize()

        yield "decode 1", tokens / median_seconds(decode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--platform", default="cuda")
    parser.add_argument("--shapes", default="llama-3.2-1b,llama-3.1-8b")
    parser.add_argument("--gguf", type=Path, help="one model file in place of random ones")
    parser.add_argument("--types", default="bf16,q8_0,q4_0")
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

    def show(model: str, engine: str, what: str, speed: float, size: float) -> None:
        count = int(what.split()[1])
        steps = speed / count if what.startswith("decode") else 0
        fraction = steps * size / 1e9 / rate if steps else speed * 2 * parameters / 1e12 / peak
        rows.append({"model": model, "engine": engine, "what": what, "tokens_per_second": speed, "fraction": fraction})
        of = "bandwidth" if steps else "matmul peak"
        print(f"{model:28} {engine:14} {what:12} {speed:10.1f} tokens/s  {fraction:6.1%} of the {of}", flush=True)

    names = ["gguf"] if options.gguf else options.shapes.split(",")
    for name in names:
        shape = None if options.gguf else random_gguf.SHAPES[name]
        for dtype in options.types.split(","):
            model = options.gguf or random_model(options.models, name, dtype)
            label = model.stem
            for batch in slots:
                with tempfile.TemporaryDirectory() as scratch:
                    path = Path(scratch) / "x.inferc"
                    compile_model(str(model), path, backend="xla", platforms=options.platform, compute=compute,
                                  slots=batch, context=options.context, chunk=min(2048, options.context))  # fmt: skip
                    artifact = Artifact(path)
                    memory = artifact.manifest["memory"]
                    parameters = sum(int(np.prod(t["shape"])) for t in artifact.manifest["tensors"])
                    engine = Engine(artifact, target=options.platform)
                    for what, speed in measured(engine, batch, options.tokens, prompts):
                        size = memory["weights"] + batch * memory["session"] * options.tokens / options.context / 2
                        show(label, f"inferc {compute}", what, speed, size)
                    engine.close()
                    if batch == 1 and "c" in options.beside.split(","):
                        for what, speed in beside_c(model, Path(scratch), options.tokens, prompts, options.context):
                            show(label, "inferc C", what, speed, memory["weights"])
            if "jax" in options.beside.split(","):
                for what, speed in beside_jax(model, options.tokens, prompts, options.context):
                    show(label, "jax.jit f32", what, speed, 4 * parameters)
            if options.llama_bench:
                for what, speed in beside_llama(options.llama_bench, model, options.tokens, prompts):
                    show(label, "llama.cpp", what, speed, model.stat().st_size)
        if options.transformers and shape is not None:
            for what, speed in beside_transformers(shape, options.tokens, prompts):
                show(name, "transformers", what, speed, 2 * parameters)
    if options.json:
        facts = {"device": devices[0].device_kind, "jax": jax.__version__, "gb_per_second": rate, "tflops": peak}
        options.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


def random_model(folder: Path, shape: str, dtype: str) -> Path:
    """The random model of a shape and type, written where it is missing."""
    path = folder / f"{shape}-{dtype}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        random_gguf.write(path, random_gguf.SHAPES[shape], dtype)
    return path


if __name__ == "__main__":
    try:
        main()
    except InfercError as error:
        sys.exit(f"error: {error}")

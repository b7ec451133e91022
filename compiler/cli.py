"""The `inferc` command. Each command imports what it needs, so that `run` of a cached model starts at once."""

from __future__ import annotations

import gc
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InfercError
from .commands import REGISTERED
from .commands.options import (
    KV,
    Context,
    MinP,
    ModelName,
    Penalty,
    Seed,
    Target,
    Temperature,
    Threads,
    Tokens,
    TopK,
    TopP,
    note,
    opened,
    progress_bars,
)

app = typer.Typer(
    name="inferc",
    help="Compile a model into a program.\n\n"
    "A first minute:  inferc run smollm2 -p 'The capital of France is' -n 48",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

@app.command()
def pull(name: ModelName) -> None:
    """Bring a model into the cache and print its path."""
    from . import hub

    with progress_bars() as progress:
        path = hub.pull(name, progress)
    print(path)


@app.command("compile")
def compile_command(
    name: ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write; of `c` and `wasm` a folder.")],
    target: Target = "native",
    emit: Annotated[
        str,
        typer.Option(
            help="`inferc`, for this command and Python; `c`: sources for cmake or cc; `so`, `a`: a library and its "
            "header; `exe`: a program; `wasm`: a package for JavaScript.",
        ),
    ] = "inferc",
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Give each token's hidden state after the last norm, not logits.")
    ] = False,
    weights: Annotated[str, typer.Option(help="Of forms but `inferc`: `embed` them, or a `sidecar` file.")] = "embed",
    prefix: Annotated[str, typer.Option("--name", help="What the C functions' names begin with.")] = "model",
    backend: Annotated[str, typer.Option(help="`c`, or `xla` for GPUs, TPUs and CPUs through jax.")] = "c",
    platforms: Annotated[
        str, typer.Option(help="XLA: where it may run, of `cpu`, `cuda`, `rocm`, `tpu`.")
    ] = "cpu,cuda,tpu",
    compute: Annotated[str, typer.Option(help="XLA: products multiply in `f32`, `bf16` or `f16`.")] = "f32",
    slots: Annotated[int, typer.Option(min=1, help="XLA: sessions at once.")] = 1,
    mesh: Annotated[str, typer.Option(help="XLA: devices that share a model, and replicas: `tp=2,dp=4`.")] = "",
    context: Context = None,
    kv: KV = "f16",
    quant: Annotated[
        str | None, typer.Option(help="Round float matrices: `q8_0`, `q6_k`, `q5_k`, `q4_k`, `q4_0`, `bf16`, …")
    ] = None,
    tuning: Annotated[Path | None, typer.Option(help="Block sizes that `inferc tune` wrote.")] = None,
    dump_ir: Annotated[Path | None, typer.Option(help="A folder for the graph after every pass.")] = None,
) -> None:
    """Compile a model: into an artifact, or with --emit into a library, a program, sources or a package."""
    from . import hub

    gc.disable()  # what is imported stays, and a collector that looks at all of it takes a tenth of a second
    from .driver import compile_model

    gc.freeze()
    gc.enable()
    with progress_bars() as progress:
        report = compile_model(
            str(hub.pull(name, progress)), output, target=target, context=context, kv=kv, quant=quant, tuning=tuning,
            dump_ir=dump_ir, emit=emit, weights=weights, prefix=prefix, backend=backend, platforms=platforms,
            compute=compute, slots=slots, mesh=mesh, embeddings=embeddings, progress=progress,
        )
    for line in report.notes:
        note(line)
    size = sum(path.stat().st_size for path in (output, *output.rglob("*")) if path.is_file())
    note(f"{output}: {size / 1e6:.1f} MB for {report.target}, in {report.seconds:.1f} s")


@app.command()
def tune(
    name: ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", help="The tuning to write (.json).")],
    target: Annotated[str, typer.Option("--target", help="`native` or the name of one target.")] = "native",
    threads: Threads = None,
) -> None:
    """Measure the block sizes of kernels on this machine with a model, for `compile --tuning`. They change no bit."""
    from .tune import tune as measure

    with progress_bars() as progress:
        measure(name, output, target=target, threads=threads, say=note, progress=progress)
    print(output)


@app.command()
def run(
    name: ModelName,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="The text to continue; `-` reads stdin.")],
    tokens: Tokens = 128,
    threads: Threads = None,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    ids: Annotated[bool, typer.Option("--ids", help="Print token ids: the prompt's, then those made.")] = False,
    target: Target = "native",
    context: Context = None,
    kv: KV = "f16",
) -> None:
    """Continue a text. Compiles the model on first use; later runs start at once. Speeds go to stderr."""
    text = sys.stdin.read() if prompt == "-" else prompt
    with opened(name, target, context, kv, threads) as model:
        sampling: dict[str, Any] = {
            "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
            "repetition_penalty": repetition_penalty, "seed": seed,
        }  # fmt: skip
        if ids:
            prompt_ids = model.tokenize(text)
            print(*prompt_ids)
            print(*model.generate_ids(prompt_ids, max_tokens=tokens, **sampling))
        else:
            print(text, end="", flush=True)
            for piece in model.generate(text, max_tokens=tokens, stream=True, **sampling):
                print(piece, end="", flush=True)
            print()
        note(str(model.timings))


@app.command()
def chat(
    name: ModelName,
    system: Annotated[str | None, typer.Option("--system", help="The system message.")] = None,
    tokens: Tokens = 512,
    threads: Threads = None,
    temperature: Temperature = 0.7,
    top_k: TopK = 40,
    top_p: TopP = 0.95,
    min_p: MinP = 0.05,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    target: Target = "native",
    context: Context = None,
    kv: KV = "f16",
) -> None:
    """Talk with a model in its own chat format. An empty line or end of input leaves."""
    with opened(name, target, context, kv, threads) as model:
        messages = [{"role": "system", "content": system}] if system else []
        while True:
            try:
                said = input("> " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                said = ""
            if not said:
                return
            messages.append({"role": "user", "content": said})
            answer = ""
            for piece in model.chat(
                messages, max_tokens=tokens, stream=True, temperature=temperature, top_k=top_k, top_p=top_p,
                min_p=min_p, repetition_penalty=repetition_penalty, seed=seed,
            ):  # fmt: skip
                answer += piece
                print(piece, end="", flush=True)
            print()
            messages.append({"role": "assistant", "content": answer})


@app.command()
def inspect(
    name: ModelName,
    tensors: Annotated[bool, typer.Option("--tensors", help="Every tensor with its type and shape.")] = False,
    ir: Annotated[bool, typer.Option("--ir", help="The graph as it goes to the backend.")] = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Of what was compiled: recompute all hashes, ask the golden prompts again.")
    ] = False,
    target: Target = "native",
    context: Context = None,
    kv: KV = "f16",
) -> None:
    """Show what a model or artifact is: tensors by type, memory plan, kernels, graph."""
    from . import checking, inspection

    if verify:
        for line in checking.verify(Path(name)):
            print(line)
        return

    manifest, graph = inspection.inspect(name, target=target, context=context, kv=kv)
    if ir:
        print(graph)
    else:
        inspection.show(manifest, tensors=tensors)


for command in REGISTERED:
    command(app)


def main() -> None:
    """Entry point: an error that a person can act on is one line on stderr and exit code 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what is half written is removed
    try:
        app()
    except InfercError as error:
        note(f"error: {error}")
        sys.exit(1)
    except BrokenPipeError:
        sys.exit(1)


if __name__ == "__main__":
    main()

"""`inferc perplexity`: how well a model predicts a text, alone and beside the distributions of another."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from ...errors import InfercError
from .options import KV, ModelName, Target, Threads, note, opened
from .verify import read_text, write


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(perplexity)


def perplexity(
    name: ModelName,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="A UTF-8 text; default: the tokens of --kl-reference.")
    ] = None,
    context: Annotated[int, typer.Option("--context", "-c", min=4, help="Tokens of a window.")] = 512,
    chunks: Annotated[int | None, typer.Option("--chunks", min=2, help="Windows to score; default: all.")] = None,
    save_logits: Annotated[Path | None, typer.Option(help="Write every distribution to this file.")] = None,
    kl_reference: Annotated[
        Path | None,
        typer.Option(help="Compare with the distributions of this file, from here or from llama-perplexity."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    threads: Threads = None,
    target: Target = "native",
    kv: KV = "f16",
) -> None:
    """Perplexity on a text as llama.cpp defines it: windows of the context, the second half of each scored.

    With a reference: the mean KL divergence from its distributions, and how often both find the same token likeliest.
    """
    from ...runtime.log_probabilities import Reader, Writer
    from ...runtime.perplexity import Against
    from ...runtime.perplexity import perplexity as estimate

    reference = Reader(kl_reference) if kl_reference else None
    if file is None and reference is None:
        raise InfercError("nothing to score: give a text with --file, or --kl-reference")
    window = reference.window if reference else context
    with opened(name, target, None, kv, threads) as model, ExitStack() as stack:
        if reference and reference.vocabulary != model.vocab_size:
            raise InfercError(f"{kl_reference} is for {reference.vocabulary} tokens, the model has {model.vocab_size}")
        ids = model.tokenize(read_text(file)) if file else [int(i) for i in reference.tokens.ravel()]  # type: ignore
        count = min(len(ids) // window, chunks or len(ids))
        if reference:
            count = min(count, len(reference.tokens))
            if not _same_tokens(ids[: count * window], reference.tokens[:count], window):
                raise InfercError(f"{kl_reference} was made from another text, or with another tokenizer")
        ids = ids[: count * window]
        against = Against(reference) if reference else None
        writer = None
        if save_logits and count:
            import numpy as np

            tokens = np.array(ids, np.int32).reshape(count, window)
            writer = stack.enter_context(Writer(save_logits, window, model.vocab_size, tokens))

        def watch(index: int, first: int, logits: Any, targets: Any) -> None:
            if writer:
                writer.add(logits)
            if against:
                against.watch(index, first, logits, targets)

        for result in estimate(model, ids, window, watch):
            note(f"[{result.windows}/{count}] {result.perplexity:.4f}")
    found: dict[str, Any] = {"perplexity": result.perplexity, "perplexity_error": result.error,
                             "windows": result.windows, "window": window}  # fmt: skip
    print(f"perplexity {result.perplexity:.4f} ± {result.error:.4f}")
    if against:
        s = against.summary()
        found |= s
        print(f"of the reference {s['reference_perplexity']:.4f}, ratio {s['perplexity_ratio']:.6f} "
              f"± {s['perplexity_ratio_error']:.6f}")  # fmt: skip
        print(f"KL divergence {s['kl']:.6f} ± {s['kl_error']:.6f}, median {s['kl_median']:.6f}, 99 % {s['kl_99']:.6f}, "
              f"most {s['kl_max']:.6f}")  # fmt: skip
        print(f"same top-1 {100 * s['top_1']:.3f} ± {100 * s['top_1_error']:.3f} %")
    if output:
        write(output, json.dumps(found, indent=1) + "\n")


def _same_tokens(ids: list[int], tokens: Any, window: int) -> bool:
    """Whether both are one text; the first of each window may be the beginning of text in one of them."""
    return all(
        a == b or i % window == 0 for i, (a, b) in enumerate(zip(ids, tokens.ravel().tolist(), strict=True))
    )

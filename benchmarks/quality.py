"""What rounding costs: perplexity, and the divergence of a compiled model from its own weights with f32 activations.

    python benchmarks/quality.py smollm2 gemma3-270m --expect

Three engines compute the same windows of a text from the same weights; the second half of each window is scored, as
for perplexity:

- f32: the model's own functions by plain JAX. Nothing is rounded but the cache, to f16 as the artifact keeps it.
- plain 32: the same, with the activation before every linear rounded to int8 in groups of 32, scale amax / 127.
- compiled: the artifact, as `inferc.load` opens it.

KL is that of f32's next-token distribution from the engine's, in nats, the mean over the scored positions with its
standard error; top-1 is how often both find the same token likeliest. Prints a markdown table, and JSON with
`--json FILE`. With `--expect` the exit status is 1 where a bound of BOUNDS is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import exp, sqrt
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import inferc
from inferc.compiler.frontends import gguf, language
from inferc.compiler.hub import pull
from inferc.compiler.verification.compare import divergence
from inferc.compiler.verification.reference import EXACT, Array, Operation, Rule, with_rules
from inferc.runtime.perplexity import log_softmax, windows

TEXT = Path(__file__).parent.parent / "tests" / "data" / "reference" / "gpl3.txt"
WINDOW = 512
# Perplexity of llama.cpp without repacking on TEXT in windows of 512 (tests/data/reference/README.md), by file name.
LLAMA_CPP = {"SmolLM2-135M-Instruct.Q4_1": 18.354, "gemma-3-270m-q4_k_m": 13.918}
# The most that KL may be of plain 32's, and that perplexity may differ from llama.cpp's, relatively.
BOUNDS = {"kl_ratio": 1.2, "perplexity_difference": 0.003}
GROUP = 32
ENGINES = ("f32", "plain 32", "compiled")



def rounded_to_groups(x: Array, group: int) -> Array:
    """x [T, K] as int8 q holds it: per group of a row q * d, d = amax / 127, q = nearest even of x / d."""
    padded = jnp.pad(x, ((0, 0), (0, -x.shape[1] % group)))
    blocks = padded.reshape(x.shape[0], -1, group)
    amax = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True)
    inverse = jnp.where(amax > 1e-30, 127 / amax, 0)
    return (jnp.rint(blocks * inverse) * (amax / 127)).reshape(padded.shape)[:, : x.shape[1]]


def linear_of_groups(linear: Operation, x: Array, *rest: Array) -> list[Array]:
    return linear([rounded_to_groups(x, GROUP), *rest])


PLAIN: Mapping[str, Rule] = {**EXACT, "linear": linear_of_groups}


class Reference:
    """A GGUF model by plain JAX, on windows of a fixed length: `f32(tokens)` and `plain(tokens)` give the logits
    f32[window - window // 2 - 1, V] that are scored."""

    def __init__(self, source: language.Source, window: int) -> None:
        logits, weights = language.reference(source, window)
        self._weights = jax.device_put(weights)
        self._rows = np.arange(window // 2, window - 1, dtype=np.int32)
        self.f32 = partial(self._logits, with_rules(logits, EXACT))
        self.plain = partial(self._logits, with_rules(logits, PLAIN))

    def _logits(self, function: Callable[..., Array], tokens: Sequence[int]) -> np.ndarray:
        return np.asarray(function(self._weights, np.array(tokens, np.int32), self._rows))


@dataclass
class Scores:
    """Of one engine, a number for each scored position."""

    losses: list[float] = field(default_factory=list)  # negative log-likelihood of the text's token, nats
    divergences: list[float] = field(default_factory=list)  # KL from f32's distribution, nats
    agreements: list[bool] = field(default_factory=list)  # whether the likeliest token is f32's

    def add(self, exact: np.ndarray, logits: np.ndarray, target: int) -> None:
        """A position: `exact` = log_softmax of f32's logits, the engine's logits f32[V], the text's token."""
        found = log_softmax(logits)
        self.losses.append(-float(found[target]))
        self.divergences.append(divergence(exact, found))
        self.agreements.append(bool(exact.argmax() == found.argmax()))

    def summary(self) -> dict[str, float]:
        loss, kl = np.array(self.losses), np.array(self.divergences)
        return {
            "perplexity": exp(loss.mean()), "perplexity_error": exp(loss.mean()) * standard_error(loss),
            "kl": float(kl.mean()), "kl_error": standard_error(kl), "kl_median": float(np.median(kl)),
            "kl_99": float(np.quantile(kl, 0.99)), "top_1": float(np.mean(self.agreements)),
        }  # fmt: skip


def standard_error(values: np.ndarray) -> float:
    """Of the mean of values [n]."""
    return float(values.std() / sqrt(max(len(values) - 1, 1)))


def compare(model: inferc.Model, reference: Reference, pieces: Iterator[list[int]]) -> dict[str, Scores]:
    """Scores of each of ENGINES on windows of the length that the reference was made for.

    At a time, two windows' logits of the reference and a piece of the model's are held.
    """
    scores = {name: Scores() for name in ENGINES}
    for tokens in pieces:
        first, exact, plain = len(tokens) // 2, reference.f32(tokens), reference.plain(tokens)
        for start, logits in model.logits_from(tokens[:-1], first):
            for position, row in enumerate(logits, start):
                f32 = exact[position - first]
                expected, target = log_softmax(f32), tokens[position + 1]
                for name, found in zip(ENGINES, (f32, plain[position - first], row)):
                    scores[name].add(expected, found, target)
    return scores


def report(scores: Mapping[str, Scores], llama_cpp: float | None) -> dict[str, Any]:
    """The summaries, and the two figures that BOUNDS bounds (None where there is nothing to compare with)."""
    engines = {name: s.summary() for name, s in scores.items()}
    ours, plain = (np.array(scores[name].divergences) for name in ("compiled", "plain 32"))
    ratio = ours.mean() / plain.mean()
    return {
        "engines": engines, "positions": len(ours),
        "kl_ratio": float(ratio), "kl_ratio_error": standard_error(ours - ratio * plain) / float(plain.mean()),
        "llama_cpp": llama_cpp,
        "perplexity_difference": None if llama_cpp is None else engines["compiled"]["perplexity"] / llama_cpp - 1,
    }  # fmt: skip


def measure(name: str, arguments: argparse.Namespace, llama_cpp: float | None) -> dict[str, Any]:
    path = pull(name)
    standard = (arguments.text, arguments.window, arguments.windows) == (TEXT, WINDOW, None)
    if llama_cpp is None and standard:
        llama_cpp = LLAMA_CPP.get(path.stem)
    with inferc.compile(path, target=arguments.target) as model:
        ids = model.tokenize(arguments.text.read_text("utf-8"))
        pieces = list(windows(model, ids, arguments.window))[: arguments.windows]
        scores = compare(model, Reference(gguf.load(path), arguments.window), iter(pieces))
    return {
        "model": path.stem, "target": arguments.target, "text": arguments.text.name,
        "window": arguments.window, "windows": len(pieces), **report(scores, llama_cpp),
    }  # fmt: skip


def table(results: Sequence[Mapping[str, Any]]) -> str:
    lines = ["| model | activations | perplexity | of llama.cpp's | KL from f32, 10⁻³ nats | of plain 32's | top-1 |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for result in results:
        for name, s in result["engines"].items():
            peer, of_plain = "", ""
            if result["llama_cpp"] is not None:
                peer = f"{100 * (s['perplexity'] / result['llama_cpp'] - 1):+.2f} %"
            if name == "compiled":
                of_plain = f"{result['kl_ratio']:.3f} ± {result['kl_ratio_error']:.3f}"
            lines.append(
                f"| {result['model']} | {name} | {s['perplexity']:.3f} ± {s['perplexity_error']:.3f} | {peer} | "
                f"{1e3 * s['kl']:.3f} ± {1e3 * s['kl_error']:.3f} | {of_plain} | {100 * s['top_1']:.2f} % |"
            )
    return "\n".join(lines)


def missed(result: Mapping[str, Any]) -> list[str]:
    """A line for each of BOUNDS that a result does not keep."""
    return [
        f"{result['model']}: {key} is {result[key]:.4f}, expected at most {bound}"
        for key, bound in BOUNDS.items()
        if result[key] is not None and abs(result[key]) > bound
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="GGUF files or short names")
    parser.add_argument("--text", type=Path, default=TEXT, help="a UTF-8 text")
    parser.add_argument("--window", type=int, default=WINDOW, help="tokens of a window")
    parser.add_argument("--windows", type=int, help="how many windows; default: all")
    parser.add_argument("--target", default="native")
    parser.add_argument("--llama-cpp", type=float, nargs="+", metavar="PPL",
                        help="llama.cpp's perplexity for each model; default: where LLAMA_CPP has it")  # fmt: skip
    parser.add_argument("--json", type=Path)
    parser.add_argument("--expect", action="store_true", help="fail where a bound is missed")
    arguments = parser.parse_args(argv)
    peers = arguments.llama_cpp or [None] * len(arguments.models)
    if len(peers) != len(arguments.models):
        parser.error(f"--llama-cpp has {len(peers)} figures for {len(arguments.models)} models: give one for each")
    try:
        results = [measure(name, arguments, peer) for name, peer in zip(arguments.models, peers)]
    except (inferc.InfercError, OSError, UnicodeDecodeError) as error:
        parser.error(str(error))
    print(table(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    failures = [line for result in results for line in missed(result)] if arguments.expect else []
    print("\n".join(failures), end="\n" if failures else "", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""A loaded model: text in, text out."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from ..errors import InfercError
from .artifact import Artifact
from .encoder import normalized
from .engine import open_engine
from .sampling import Sampler, Sampling
from .session import Opened
from .text import MEMBER, TEMPLATE_MEMBER, TextTokenizer
from .tokenizer import StreamDecoder, Tokenizer, TokenizerBase

Prompt = str | Sequence[int]
Message = Mapping[str, Any]

POOLINGS = ("mean", "last")
_LOGITS_AT_ONCE = 1 << 26  # elements: 256 MB


@dataclass
class Timings:
    """What the last generation took: tokens of the prompt that were evaluated (not those kept), tokens made."""

    prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    tokens: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0  # to the first token
    building_seconds: float = 0.0  # making programs for this machine, which only some backends do

    def __str__(self) -> str:
        def speed(what: str, tokens: int, seconds: float) -> str:
            return f"{what}: {tokens} tokens in {seconds:.2f} s ({tokens / max(seconds, 1e-9):.1f} tokens/s)"

        prompt = speed("prompt", self.prompt_tokens, self.prompt_seconds)
        if self.building_seconds:
            built = f"programs made in {self.building_seconds:.2f} s"
            prompt = f"first token after {self.first_seconds:.2f} s, {built}; {prompt}"
        return f"{prompt}, {speed('generation', self.tokens, self.seconds)}"


def load(path: Path | str, threads: int | None = None, target: str | None = None) -> Model:
    """Opens a compiled artifact; `threads` defaults to the physical cores.

    `target` names one of the artifact's variants; by default the best that this CPU can run is taken. Raises
    InfercError if the artifact cannot be used.
    """
    return Model(path, threads, target)


class Model:
    """A model and one session. What a call shares at its beginning with the one before is not evaluated again.

    Threads may share a model; their calls take turns token by token.
    """

    def __init__(self, path: Path | str, threads: int | None = None, target: str | None = None) -> None:
        self.artifact = Artifact(path)
        if self.artifact.manifest["kind"] != "language":
            raise InfercError(
                f"{path} is a function of arrays, not a language model: call what inferc.load gives in Python, or "
                "its C interface"
            )
        self._engine = open_engine(self.artifact, threads, target)
        self._session = self._engine.session()
        self._ids: list[int] = []  # what the session has evaluated
        self._turn = threading.Lock()
        self._closed = False
        self.timings = Timings()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Frees the model. Further evaluation raises InfercError."""
        with self._turn:
            self._closed = True
            self._engine.close()

    @property
    def context(self) -> int:
        """The most tokens that prompt and generation may have together."""
        return self._engine.context

    @property
    def vocab_size(self) -> int:
        return self._engine.vocab_size

    @property
    def threads(self) -> int:
        return self._engine.threads

    @property
    def target(self) -> str:
        """The variant of the library that runs on this CPU."""
        return self._engine.target

    @cached_property
    def tokenizer(self) -> TokenizerBase:
        """Raises InfercError when the artifact has none."""
        name = self.artifact.manifest["tokenizer"]
        if name is None:
            raise InfercError(f"{self.artifact.path} has no tokenizer: pass token ids, not text")
        if name != MEMBER or not isinstance(self._engine, Opened):
            return Tokenizer(self.artifact.read_json(name))
        template = None
        if TEMPLATE_MEMBER in self.artifact.names():
            template = self.artifact.read(TEMPLATE_MEMBER).decode("utf-8", "replace")
        return TextTokenizer(self._engine, template)

    def tokenize(self, text: str, *, parse_special: bool = True) -> list[int]:
        """The ids of `text`, with those of beginning and end where the model was trained with them."""
        return self.tokenizer.encode(text, parse_special=parse_special)

    def detokenize(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """The text of `ids`."""
        return self.tokenizer.decode(ids, skip_special=skip_special)

    @property
    def output(self) -> str:
        """What the model was compiled to give of each token: "logits", or "embeddings" (f32[output_width])."""
        return self._engine.output

    @property
    def output_width(self) -> int:
        """Numbers of one embedding; of a model that gives logits, its vocabulary."""
        return self._engine.output_width

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The logits after each id: f32[len(ids), vocab_size]. Raises InfercError for more ids than the context."""
        self._gives("logits")
        return self._evaluate(self._checked(ids), len(ids))

    def embeddings(self, ids: Sequence[int]) -> np.ndarray:
        """The hidden state of each id after the last norm: f32[len(ids), output_width]. Raises InfercError for more ids
        than the context, and where the model was not compiled for it."""
        self._gives("embeddings")
        return self._evaluate(self._checked(ids), len(ids))

    def embed(self, texts: Prompt | Sequence[str], *, pooling: str = "mean", normalize: bool = True) -> np.ndarray:
        """One embedding f32[output_width] of a text (or of ids), or f32[len(texts), output_width] of several texts.

        `pooling` takes the "mean" of all tokens' hidden states or the "last"; which of them means something depends on
        how the model was trained. With `normalize` each has length 1. Raises InfercError as `embeddings`, and for
        another pooling.
        """
        self._gives("embeddings")
        if pooling not in POOLINGS:
            raise InfercError(f"there is no pooling {pooling!r}: choose one of {', '.join(POOLINGS)}")
        if isinstance(texts, str):
            texts = self.tokenize(texts, parse_special=False)
            return self._pooled(self._checked(texts), pooling, normalize)
        ids = [item for item in texts if not isinstance(item, str)]
        if ids and len(ids) < len(texts):
            raise InfercError("some of these are texts and some are ids: give one kind")
        if ids:
            return self._pooled(self._checked(ids), pooling, normalize)
        pooled = [self.embed(text, pooling=pooling, normalize=normalize) for text in texts if isinstance(text, str)]
        return np.stack(pooled) if pooled else np.empty((0, self.output_width), np.float32)

    def logits_from(self, ids: Sequence[int], first: int) -> Iterator[tuple[int, np.ndarray]]:
        """The logits after the ids from index `first` on, in pieces (index, f32[rows, vocab_size])."""
        self._gives("logits")
        ids = self._checked(ids)
        step = max(1, min(self._engine.chunk, _LOGITS_AT_ONCE // self.vocab_size))
        for start in range(first, len(ids), step):
            end = min(start + step, len(ids))
            yield start, self._evaluate(ids[:end], end - start)

    def generate_ids(self, ids: Sequence[int], *, max_tokens: int = 256, ignore_eos: bool = False,
                     **sampling: Any) -> Iterator[int]:  # fmt: skip
        """Yields ids that continue `ids`, until the model ends its text, `max_tokens` are made, or the context is full.

        `sampling` is as in `Sampling`: temperature, top_k, top_p, min_p, repetition_penalty, seed. With `ignore_eos`
        the ends of text that the model gives are yielded like other ids. Raises InfercError for a prompt longer than
        the context, before anything is yielded.
        """
        self._gives("logits")
        sampler = Sampler(Sampling(**sampling))
        return self._generated(self._checked(ids), sampler, max_tokens, () if ignore_eos else self._ends())

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[str]:
        """The text that continues `prompt`, in pieces of whole characters as they come. Options as in `generate`."""
        ids = self.tokenizer.encode(prompt, add_eos=False) if isinstance(prompt, str) else prompt
        return self._text(self.generate_ids(ids, **options))

    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[False] = False, **options: Any) -> str: ...
    @overload
    def generate(self, prompt: Prompt, *, stream: Literal[True], **options: Any) -> Iterator[str]: ...
    def generate(self, prompt: Prompt, *, stream: bool = False, **options: Any) -> str | Iterator[str]:
        """The text that continues `prompt` (a text or ids); with `stream` an iterator of its pieces.

        `options`: max_tokens=256, ignore_eos, temperature=0, top_k, top_p, min_p, repetition_penalty, seed.
        """
        pieces = self.stream(prompt, **options)
        return pieces if stream else "".join(pieces)

    @overload
    def chat(self, messages: str | Sequence[Message], *, stream: Literal[False] = False, **options: Any) -> str: ...
    @overload
    def chat(self, messages: str | Sequence[Message], *, stream: Literal[True], **options: Any) -> Iterator[str]: ...
    def chat(self, messages: str | Sequence[Message], *, stream: bool = False,
             variables: Mapping[str, Any] | None = None, **options: Any) -> str | Iterator[str]:  # fmt: skip
        """The assistant's answer to `messages`, each {"role": …, "content": …}, or to one message of the user.

        `variables` are more names for the model's chat template (tools, enable_thinking, …); `options` as in
        `generate`. Raises InfercError when the model has no template or its template refuses the messages.
        """
        conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        pieces = self._text(self.generate_ids(self.chat_ids(conversation, variables), **options), from_start=True)
        return pieces if stream else "".join(pieces)

    def chat_ids(self, messages: Sequence[Message], variables: Mapping[str, Any] | None = None) -> list[int]:
        """The ids of a conversation in the model's chat format, up to where the assistant is to answer."""
        tokenizer = self.tokenizer
        if tokenizer.chat_template is None:
            raise InfercError(f"{self.artifact.path} has no chat template: use `inferc run` or generate")
        bos = "" if tokenizer.bos_id is None else tokenizer.token_text(tokenizer.bos_id)
        text = None if variables else tokenizer.chat_text(messages)
        if text is None:
            from . import chat  # here, since few conversations need jinja2

            eos = tokenizer.token_text(tokenizer.eos_ids[0]) if tokenizer.eos_ids else ""
            text = chat.render(tokenizer.chat_template, messages, bos_token=bos, eos_token=eos, **(variables or {}))
        # Many templates write the beginning of text themselves.
        return tokenizer.encode(text, add_bos=False if bos and text.startswith(bos) else None, add_eos=False)

    def _pooled(self, ids: list[int], pooling: str, normalize: bool) -> np.ndarray:
        if pooling == "last":
            found = self._evaluate(ids, 1)[0]
        else:
            found = self._evaluate(ids, len(ids)).mean(0, dtype=np.float64).astype(np.float32)
        return normalized(found) if normalize else found

    def _gives(self, wanted: str) -> None:
        if self.output != wanted:
            how = "with `--embeddings`" if wanted == "embeddings" else "without `--embeddings`"
            raise InfercError(f"{self.artifact.path} gives {self.output}, not {wanted}: compile the model {how}")

    def _ends(self) -> Sequence[int]:
        return () if self.artifact.manifest["tokenizer"] is None else self.tokenizer.eos_ids

    def _checked(self, ids: Sequence[int]) -> list[int]:
        ids = [int(i) for i in ids]
        if not ids:
            raise InfercError("the prompt has no tokens: give at least one")
        if len(ids) > self.context:
            raise InfercError(
                f"the prompt has {len(ids)} tokens and the context holds {self.context}: shorten the prompt, "
                "or compile the model with a larger `--context`"
            )
        if wrong := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise InfercError(f"{wrong[0]} is no token id of this model, which has 0 to {self.vocab_size - 1}")
        return ids

    def _text(self, ids: Iterator[int], from_start: bool = False) -> Iterator[str]:
        decoder = StreamDecoder(self.tokenizer, from_start=from_start)
        for id in ids:
            if piece := decoder.push(id):
                yield piece
        if rest := decoder.finish():
            yield rest

    def _generated(self, ids: list[int], sampler: Sampler, max_tokens: int, ends: Sequence[int]) -> Iterator[int]:
        timings = self.timings = Timings()
        ahead: list[int] = []  # made by the device and not yet given
        limit = min(max_tokens, self.context - len(ids) + 1)
        for made in range(limit):
            started, built = time.perf_counter(), self._engine.building_seconds
            kept = _common(ids, self._ids)
            if made and not ahead and sampler.sampling.is_greedy:
                ahead = self._made_on_device(ids, min(limit - made, _at_once(timings)), ends)
            id = ahead.pop(0) if ahead else sampler(self._evaluate(ids, 1)[0], ids)
            building = self._engine.building_seconds - built
            seconds = time.perf_counter() - started - building
            timings.building_seconds += building
            if made == 0:
                timings.prompt_tokens = len(ids) - min(kept, len(ids) - 1)
                timings.prompt_seconds, timings.first_seconds = seconds, seconds + building
            else:
                timings.tokens += 1
                timings.seconds += seconds
            if id in ends:
                return
            yield id
            ids.append(id)

    def _made_on_device(self, ids: list[int], count: int, ends: Sequence[int]) -> list[int]:
        """The likeliest ids after `ids`, as many as one call of the device makes, at most `count`; none where it makes
        none, or where the session holds something else."""
        with self._turn:
            if self._closed or self._ids != ids[:-1] or self._session.position != len(ids) - 1:
                return []
            made = self._session.greedy(ids[-1], count, ends)
            self._ids += [*ids[-1:], *made[:-1]] if made else []
            return made

    def _evaluate(self, ids: list[int], rows: int) -> np.ndarray:
        """What the model gives, f32[rows, output_width], of the last `rows` of `ids`; only what the session lacks is
        evaluated."""
        with self._turn:
            if self._closed:
                raise InfercError("the model is closed: load it again")
            first = len(ids) - rows
            kept = min(_common(ids, self._ids), first)
            if kept < self._session.position:
                kept = self._session.rewind(kept)
            del self._ids[kept:]
            wanted = []
            for start in range(kept, len(ids), self._engine.chunk):
                piece = ids[start : start + self._engine.chunk]
                wanted.append(self._session.eval(piece, max(0, start + len(piece) - max(start, first))))
                self._ids += piece
            return wanted[-1] if len(wanted[-1]) == rows else np.concatenate(wanted)


def _at_once(timings: Timings) -> int:
    """How many tokens a device may make before any is shown: those of a twentieth of a second, two at first."""
    return 2 if timings.tokens < 2 else max(1, int(0.05 * timings.tokens / max(timings.seconds, 1e-6)))


def _common(a: list[int], b: list[int]) -> int:
    """How many items two lists share at their beginning."""
    shorter = min(len(a), len(b))
    if a[:shorter] == b[:shorter]:
        return shorter
    return next(i for i in range(shorter) if a[i] != b[i])

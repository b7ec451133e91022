"""Text ↔ token ids: what all tokenizers share, and the one that reads `tokenizer.json` with the package `tokenizers`.

The latter is for artifacts without text tables (`text.py`): those of other backends, and tokenizers that no table
expresses.
"""

from __future__ import annotations

import codecs
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..errors import InfercError
from .token_bytes import DECODERS, sentencepiece_bytes, strips_space

_FIELDS: dict[str, Any] = {
    "tokenizer": str, "bos_id": int | None, "eos_ids": list, "special_ids": list, "add_bos": bool, "add_eos": bool,
    "chat_template": str | None,
}  # fmt: skip


def _parse(text: str) -> Any:
    try:
        import tokenizers  # here, since only artifacts without text tables need it
    except ImportError as error:
        raise InfercError("the artifact's tokenizer needs a package: `pip install tokenizers`") from error
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the package raises no narrower class
        raise InfercError(f"the artifact's tokenizer cannot be read ({error}): compile the model again") from error


class TokenizerBase(ABC):
    """Encodes and decodes. `bos_id` and `eos_ids` are ids of the model; `add_bos` says whether texts begin with it."""

    bos_id: int | None
    eos_ids: tuple[int, ...]
    special_ids: frozenset[int]
    add_bos: bool
    add_eos: bool
    chat_template: str | None
    space_prefix: bool

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    @abstractmethod
    def _encoded(self, text: str, parse_special: bool) -> list[int]:
        """The ids of valid text alone."""

    @abstractmethod
    def token_bytes(self, id: int) -> bytes:
        """The bytes that token `id` stands for, perhaps part of a character; empty for an id outside the vocabulary."""

    def encode(self, text: str, *, add_bos: bool | None = None, add_eos: bool | None = None,
               parse_special: bool = True) -> list[int]:  # fmt: skip
        """The ids of `text`. Raises InfercError for text with lone surrogates.

        `add_bos` and `add_eos` put the ids of beginning and end around it; None does what the model was trained with.
        `parse_special` reads the text of special tokens in `text`, such as `<|im_start|>`, as those tokens: turn it
        off for untrusted text.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InfercError(f"the text has a lone surrogate at character {error.start}: pass Unicode text") from error
        begin = self.add_bos if add_bos is None else add_bos
        end = self.add_eos if add_eos is None else add_eos
        before = [self.bos_id] if begin and self.bos_id is not None else []
        return before + self._encoded(text, parse_special) + list(self.eos_ids[:1] if end else ())

    def token_text(self, id: int) -> str:
        return self.token_bytes(id).decode("utf-8", "replace")

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`, the inverse of `encode`; bytes that are no UTF-8 become U+FFFD."""
        decoder = StreamDecoder(self, skip_special=skip_special, from_start=True)
        return "".join([*map(decoder.push, ids), decoder.finish()])

    def chat_text(self, messages: Sequence[Mapping[str, Any]]) -> str | None:
        """A conversation in the model's chat format, up to where the assistant is to answer, None where only the
        template knows it."""
        return None


class Tokenizer(TokenizerBase):
    """That of `tokenizer.json`."""

    def __init__(self, description: dict[str, Any]) -> None:
        """Raises InfercError when `description`, the parsed `tokenizer.json` of an artifact, is not one."""
        for name, kind in _FIELDS.items():
            if not isinstance(description, dict) or not isinstance(description.get(name, ...), kind):
                raise InfercError(f"the artifact's tokenizer.json has no usable {name!r}: compile the model again")
        self._tokenizer = _parse(description["tokenizer"])
        self.bos_id = description["bos_id"]
        self.eos_ids = tuple(description["eos_ids"])
        self.special_ids = frozenset(description["special_ids"])
        self.add_bos = description["add_bos"]
        self.add_eos = description["add_eos"]
        self.chat_template = description["chat_template"]
        self._verbatim = {i: t.content.encode() for i, t in self._tokenizer.get_added_tokens_decoder().items()}
        decoder = json.loads(self._tokenizer.decoder.__getstate__())
        self._token_bytes = DECODERS.get(decoder["type"], sentencepiece_bytes)
        self.space_prefix = strips_space(decoder)

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size())

    def _encoded(self, text: str, parse_special: bool) -> list[int]:
        self._tokenizer.encode_special_tokens = not parse_special
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, id: int) -> bytes:
        if id in self._verbatim:
            return self._verbatim[id]
        token = self._tokenizer.id_to_token(id) if id >= 0 else None
        return b"" if token is None else self._token_bytes(token)


class StreamDecoder:
    """Turns ids into text as they come. What it has given never changes and never splits a character."""

    def __init__(self, tokenizer: TokenizerBase, *, skip_special: bool = True, from_start: bool = False) -> None:
        """`from_start`: the ids begin a text, so the space that SentencePiece models put before it is taken away."""
        self._tokenizer = tokenizer
        self._hidden: frozenset[int] | Sequence[int] = tokenizer.special_ids if skip_special else ()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = from_start and tokenizer.space_prefix

    def push(self, id: int) -> str:
        """The characters that `id` completes, often one token's text, sometimes none."""
        if id in self._hidden:
            return ""
        data = self._tokenizer.token_bytes(id)
        if self._strip and data:
            self._strip = False
            data = data.removeprefix(b" ")
        return self._utf8.decode(data)

    def finish(self) -> str:
        """What is left of an unfinished character, as U+FFFD."""
        return self._utf8.decode(b"", final=True)

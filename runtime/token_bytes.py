"""What tokens stand for: the bytes of each token of a `tokenizers` tokenizer."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
CONTINUES = "##"  # WordPiece's mark of a token that continues a word


@cache
def byte_of_character() -> dict[str, int]:
    """The inverse of GPT-2's `bytes_to_unicode`: printable bytes stand for themselves, the others start at U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


@cache
def _latin_of_character() -> dict[int, str]:
    """For `str.translate`: the bytes that characters stand for, in UTF-8 where they stand for none, as Latin-1."""
    rest = {c: chr(c).encode().decode("latin-1") for c in range(0x80, 0x100)}
    return rest | {ord(c): chr(b) for c, b in byte_of_character().items()}


def byte_level_bytes(token: str) -> bytes:
    try:
        return token.translate(_latin_of_character()).encode("latin-1")
    except UnicodeEncodeError:  # a character that stands for no byte
        table = byte_of_character()
        return b"".join(bytes([table[c]]) if c in table else c.encode("utf-8", "replace") for c in token)


def sentencepiece_bytes(token: str) -> bytes:
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace("▁", " ").encode("utf-8", "replace")


def wordpiece_bytes(token: str) -> bytes:
    return (token.removeprefix(CONTINUES) if token.startswith(CONTINUES) else " " + token).encode("utf-8", "replace")


DECODERS = {"ByteLevel": byte_level_bytes, "WordPiece": wordpiece_bytes}


def strips_space(decoder: dict[str, Any]) -> bool:
    """Whether, by a tokenizer's decoder, the first token of a text begins with a space that the text lacks."""
    return decoder["type"] == "WordPiece" or any(step["type"] == "Strip" for step in decoder.get("decoders", ()))


def token_bytes_of(tokenizer: dict[str, Any]) -> list[bytes]:
    """The bytes of every token by its id, from a tokenizer's JSON; empty for an id without a token."""
    vocabulary = tokenizer["model"]["vocab"]
    pairs = vocabulary.items() if isinstance(vocabulary, dict) else [(t, i) for i, (t, _) in enumerate(vocabulary)]
    convert = DECODERS.get(tokenizer["decoder"]["type"], sentencepiece_bytes)
    verbatim = {t["id"]: t["content"].encode("utf-8", "replace") for t in tokenizer["added_tokens"]}
    found = [b""] * (1 + max([*(i for _, i in pairs), *verbatim], default=-1))
    for token, i in pairs:
        found[i] = convert(token)
    for i, data in verbatim.items():
        found[i] = data
    return found

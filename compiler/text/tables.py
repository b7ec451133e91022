"""The tokenizer and the chat template of a model → the artifact's file `text`, which the C of runtime/c/text.c reads.

Input is the description that `frontends/gguf_tokenizer.py` makes: a `tokenizers` model and the ids around it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.token_bytes import byte_level_bytes, byte_of_character, strips_space, token_bytes_of
from . import blob, chat
from .cutting import SPACE, Cutting, add_normalizer, add_pre_tokenizer, sections, words_of_spaces
from .patterns import Unsupported

Json = dict[str, Any]
Sections = dict[str, np.ndarray | bytes]

BPE, WORDPIECE, UNIGRAM = 1, 2, 3
BYTE_LEVEL, WHOLE_WORDS, BYTE_FALLBACK, FUSE_UNKNOWN = 1, 2, 4, 8
ADD_BEGIN, ADD_END, STRIP_SPACE, HAS_CHAT = 16, 32, 64, 128
SPECIAL, END = 1, 2
FACTS = ("vocabulary", "model", "flags", "unknown", "begin", "end", "classes", "longest", "growth", "added_bytes")
UNKNOWN_PENALTY = 10.0  # of SentencePiece's unigram model: below the least score


@dataclass(frozen=True)
class TextTables:
    """`data` is the file. `no_chat` says why it has no chat format, None where it has."""

    data: bytes
    no_chat: str | None


@dataclass
class _Model:
    sections: Sections
    facts: dict[str, int]
    flags: int = 0


def text_tables(description: Mapping[str, Any]) -> TextTables:
    """The tables of a tokenizer. Raises Unsupported, with the reason, where tables cannot express it."""
    tokenizer = json.loads(description["tokenizer"])
    added = {t["id"]: t for t in tokenizer["added_tokens"]}
    for token in added.values():
        if any(token[name] for name in ("single_word", "lstrip", "rstrip", "normalized")):
            raise Unsupported(f"the added token {token['content']!r} takes more than its own text")
    cutting = Cutting()
    add_normalizer(cutting, tokenizer["normalizer"])
    add_pre_tokenizer(cutting, tokenizer["pre_tokenizer"])
    body = tokenizer["model"]
    if body["type"] not in MODELS:
        raise Unsupported(f"no table expresses its model {body['type']}")
    model = MODELS[body["type"]](body, cutting)
    parts, facts, classes = sections(cutting)
    tokens = token_bytes_of(tokenizer)
    special = {i for i in description["special_ids"] if i < len(tokens)}
    ends = {i for i in description["eos_ids"] if i < len(tokens)}
    kinds = np.zeros(len(tokens), np.uint8)
    kinds[list(special)] |= SPECIAL
    kinds[list(ends)] |= END
    table, no_chat = _chat(description, tokens)
    flags = model.flags | BYTE_LEVEL * cutting.byte_level | HAS_CHAT * (table is not None)
    flags |= ADD_BEGIN * description["add_bos"] | ADD_END * description["add_eos"]
    flags |= STRIP_SPACE * strips_space(tokenizer["decoder"])
    begin, eos = description["bos_id"], description["eos_ids"]
    facts |= model.facts | {
        "vocabulary": len(tokens), "flags": flags, "begin": -1 if begin is None else begin,
        "end": eos[0] if eos else -1, "classes": classes,
    }  # fmt: skip
    data = blob.pack({
        "facts": np.array([facts[name] for name in FACTS], np.int32),
        "token_offsets": blob.offsets(tokens), "token_bytes": b"".join(tokens), "token_kinds": kinds,
        "added": np.array(sorted((i for i in added if tokens[i]), key=lambda i: tokens[i]), np.uint32),
        **parts, **model.sections, **chat.sections(table),
    })  # fmt: skip
    return TextTables(data, no_chat)


def _chat(description: Mapping[str, Any], tokens: Sequence[bytes]) -> tuple[chat.ChatTable | None, str | None]:
    template = description["chat_template"]
    if template is None:
        return None, "the model has no chat template"
    bos, eos = description["bos_id"], description["eos_ids"]
    try:
        begin = "" if bos is None else tokens[bos].decode("utf-8", "replace")
        return chat.chat_table(template, begin, tokens[eos[0]].decode("utf-8", "replace") if eos else ""), None
    except Unsupported as error:
        return None, str(error)


def _slots(ids: np.ndarray | Sequence[int]) -> np.ndarray:
    return np.array(ids, np.int64).astype(np.uint32)  # -1 becomes EMPTY


def _byte_ids(vocabulary: Mapping[str, int], fallback: bool) -> np.ndarray:
    return _slots([vocabulary.get(f"<0x{b:02X}>", -1) if fallback else -1 for b in range(256)])


def _bpe(body: Json, cutting: Cutting) -> _Model:
    vocabulary: dict[str, int] = body["vocab"]
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if body.get(name):
            raise Unsupported(f"its model has a {name}")
    merges = _merges(body["merges"], vocabulary)
    byte_ids = _byte_ids(vocabulary, body["byte_fallback"])
    found: Sections = {
        "merges": merges, "merge_slots": blob.slots(blob.pair_hash(merges[:, 0], merges[:, 1])), "byte_ids": byte_ids,
    }  # fmt: skip
    if cutting.byte_level:
        shown = {b: c for c, b in byte_of_character().items()}
        found["bytes"] = _slots([vocabulary.get(shown[b], -1) for b in range(256)])
    else:
        single = {ord(token): i for token, i in vocabulary.items() if len(token) == 1}
        found["bytes"] = _slots([single.get(c, -1) if c < 128 else -1 for c in range(256)])
        found["characters"] = np.array(sorted((c, i) for c, i in single.items() if c >= 128), np.uint32)
        whole = (byte_ids != blob.EMPTY).all()
        if whole and not cutting.splits:
            cutting.splits.append(words_of_spaces(_before_spaces(vocabulary, merges)))
    flags = BYTE_FALLBACK * body["byte_fallback"] | FUSE_UNKNOWN * body["fuse_unk"]
    longest = 0
    if body.get("ignore_merges"):
        flags |= WHOLE_WORDS
        pieces = {data: i for token, i in vocabulary.items() if (data := _word(token, cutting.byte_level))}
        found |= _pieces(pieces)
        longest = max(map(len, pieces), default=0)
    unknown = vocabulary.get(body["unk_token"], -1) if body["unk_token"] else -1
    return _Model(found, {"model": BPE, "unknown": unknown, "longest": longest}, flags)


def _merges(merges: Sequence[str | Sequence[str]], vocabulary: Mapping[str, int]) -> np.ndarray:
    """u32[merges, 3]: left, right and what they become, in the order of their ranks; of equals the last counts."""
    found = np.empty((len(merges), 3), np.uint32)
    for rank, merge in enumerate(merges):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        found[rank] = vocabulary[left], vocabulary[right], vocabulary[left + right]
    pairs = found[::-1, 0].astype(np.uint64) << np.uint64(32) | found[::-1, 1]
    _, last = np.unique(pairs, return_index=True)
    return found[np.sort(len(found) - 1 - last)]


def _word(token: str, byte_level: bool) -> bytes | None:
    """The text of which a token would be the whole word; None for one that no text gives."""
    if not byte_level:
        return token.encode()
    return byte_level_bytes(token) if byte_of_character().keys() >= set(token) else None


def _before_spaces(vocabulary: Mapping[str, int], merges: np.ndarray) -> set[str]:
    """The characters behind which a merge's token has a space: everywhere else text may be cut before spaces."""
    made = set(merges[:, 2].tolist())
    tokens = (token for token, i in vocabulary.items() if SPACE in token and i in made)
    return {c for token in tokens for c, following in zip(token, token[1:]) if following == SPACE != c}


def _pieces(pieces: Mapping[bytes, int]) -> Sections:
    texts = list(pieces)
    return {
        "piece_slots": blob.slots(blob.text_hash(texts)), "piece_ids": np.array(list(pieces.values()), np.uint32),
        "piece_offsets": blob.offsets(texts), "piece_bytes": b"".join(texts),
    }  # fmt: skip


def _wordpiece(body: Json, cutting: Cutting) -> _Model:
    if body["continuing_subword_prefix"] != "##" or body["max_input_chars_per_word"] != 100:
        raise Unsupported("its WordPiece model is not BERT's")
    pieces = {token.encode(): i for token, i in body["vocab"].items() if token}
    none = _slots([-1] * 256)
    facts = {"model": WORDPIECE, "unknown": body["vocab"].get(body["unk_token"], -1), "longest": max(map(len, pieces))}
    return _Model({**_pieces(pieces), "bytes": none, "byte_ids": none}, facts)


def _unigram(body: Json, cutting: Cutting) -> _Model:
    vocabulary = {token: i for i, (token, _) in enumerate(body["vocab"])}
    scores = {token.encode(): float(score) for token, score in body["vocab"] if token}
    pieces = {token.encode(): i for token, i in vocabulary.items() if token}
    least = min((float(score) for _, score in body["vocab"]), default=0.0)
    fallback = bool(body.get("byte_fallback"))
    none = _slots([-1] * 256)
    found: Sections = {
        **_pieces(pieces), "bytes": none, "byte_ids": _byte_ids(vocabulary, fallback),
        "scores": np.array([*(scores[text] for text in pieces), least - UNKNOWN_PENALTY], np.float64),
    }  # fmt: skip
    unknown = body["unk_id"] if body["unk_id"] is not None else -1
    facts = {"model": UNIGRAM, "unknown": unknown, "longest": max(map(len, pieces), default=0)}
    return _Model(found, facts, FUSE_UNKNOWN | BYTE_FALLBACK * fallback)


MODELS = {"BPE": _bpe, "WordPiece": _wordpiece, "Unigram": _unigram}

"""GGUF tokenizer metadata → the artifact's `tokenizer.json`: a `tokenizers` model and the ids around it.

Families: `gpt2` (byte-level BPE: merges and a named pre-tokenizer), `llama` (SentencePiece BPE: scores) and `bert`
(WordPiece).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import isnan
from typing import Any

from ...errors import InfercError

Json = dict[str, Any]


class TokenType(IntEnum):
    """`tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def _split(pattern: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(use_regex: bool) -> Json:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _words(digits: str) -> tuple[Json, ...]:
    """The split of Llama 3 and its heirs, which differ in how many digits make a word."""
    return (
        _split(
            rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|"
            r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        ),
        _byte_level(use_regex=False),
    )


_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased_words(endings: str, digits: str) -> tuple[Json, ...]:
    """The split of o200k and its heirs: a word changes from capitals to small letters at most once."""
    before, capitals, small = r"[^\r\n\p{L}\p{N}]?", r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    words = rf"{before}{capitals}*{small}+{endings}|{before}{capitals}+{small}*{endings}"
    return _split(f"{words}|{digits}|{_REST}"), _byte_level(use_regex=False)


_MARKED_WORDS = (
    _split(
        rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}|"
        r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    _byte_level(use_regex=False),
)
_EACH_DIGIT: Json = {"type": "Digits", "individual_digits": True}
_CHINESE = _split("[一-龥ࠀ-一가-\ud7ff]+")
_DEEPSEEK_CODER = (
    _split(r"[\r\n]"), _split(r"\s?\p{L}+"), _split(r"\s?\p{P}+"), _CHINESE, _EACH_DIGIT, _byte_level(use_regex=False),
)  # fmt: skip
_DEEPSEEK_V3 = (
    _split(r"\p{N}{1,3}"),
    _split("[一-龥\u3040-ゟ゠-ヿ]+"),
    _split(
        r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
        r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    _byte_level(use_regex=False),
)
_FALCON = (_split(r"[\p{P}$+<=>^~|`]+"), _byte_level(use_regex=True), _split("[0-9][0-9][0-9]"))


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut into words before merging, as the model's own tokenizer.json does it."""

    steps: tuple[Json, ...]
    normalizer: Json | None = None
    ignore_merges: bool = False  # a word that is a token is taken whole, whatever its merges say
    add_bos: bool = False


_GPT2 = PreTokenizer((_byte_level(use_regex=True),))
_DIGITS = PreTokenizer(({"type": "Digits", "individual_digits": True}, _byte_level(use_regex=True)))
_LLAMA3 = PreTokenizer(_words(r"\p{N}{1,3}"), ignore_merges=True, add_bos=True)
_QWEN2 = PreTokenizer(_words(r"\p{N}"), normalizer={"type": "NFC"})
_QWEN35 = PreTokenizer(_MARKED_WORDS, normalizer={"type": "NFC"})
_TEKKEN = PreTokenizer(_cased_words("", r"\p{N}"), ignore_merges=True, add_bos=True)
_GPT4O = PreTokenizer(_cased_words(f"{_ENDINGS}?", r"\p{N}{1,3}"))

# By `tokenizer.ggml.pre`. Another name belongs here once its tokenizer.json was seen to equal one of these.
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "gpt-2": _GPT2, "gpt2": _GPT2, "phi-2": _GPT2, "mpt": _GPT2, "olmo": _GPT2,
    "smollm": _DIGITS, "starcoder": _DIGITS, "refact": _DIGITS, "codeshell": _DIGITS,
    "command-r": _DIGITS,
    "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3,
    "qwen2": _QWEN2, "deepseek-r1-qwen": _QWEN2, "qwen35": _QWEN35,
    "tekken": _TEKKEN, "gpt-4o": _GPT4O,
    "deepseek-coder": PreTokenizer(_DEEPSEEK_CODER), "deepseek-v3": PreTokenizer(_DEEPSEEK_V3),
    "falcon": PreTokenizer(_FALCON),
}  # fmt: skip

# Tokens that end a turn wherever they occur: models are published with only one of theirs named in the metadata.
END_OF_TURN = (
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>",
    "<EOT>", "_<EOT>", "<|end_of_text|>", "<end_of_utterance>",
)  # fmt: skip


def _damaged(what: str) -> InfercError:
    return InfercError(f"{what}: the GGUF file is damaged or incomplete; download it again")


@dataclass(frozen=True)
class Vocabulary:
    """The token table of a GGUF file, checked; `kind[i]` is the TokenType of id i."""

    tokens: Sequence[str]
    kind: Sequence[int]
    metadata: Mapping[str, Any]
    ids: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", {token: i for i, token in enumerate(self.tokens)})

    def of_kind(self, *kinds: TokenType) -> list[int]:
        wanted = set(kinds)
        return [i for i, kind in enumerate(self.kind) if kind in wanted]

    def id(self, name: str) -> int | None:
        """The id in `tokenizer.ggml.<name>_token_id`, None where absent or outside the vocabulary (-1 by custom)."""
        value = self.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if value is None:
            return None
        if not isinstance(value, int):
            raise _damaged(f"tokenizer.ggml.{name}_token_id is no integer")
        return value if 0 <= value < len(self.tokens) else None

    def flag(self, name: str, default: bool) -> bool:
        return bool(self.metadata.get(f"tokenizer.ggml.{name}", default))


def convert(metadata: Mapping[str, Any]) -> Json | None:
    """The artifact's `tokenizer.json` of the `tokenizer.*` keys of a GGUF file, arrays given as sequences.

    None for a file that says it has no tokenizer. Raises InfercError for a tokenizer model or pre-tokenizer that is not
    known and for tables that contradict each other.
    """
    model = metadata.get("tokenizer.ggml.model", "none")
    if model in ("none", "no_vocab"):
        return None
    if not isinstance(model, str) or model not in FAMILIES:
        raise InfercError(
            f"the tokenizer model {model!r} is not supported (only {', '.join(FAMILIES)}): "
            "use a GGUF of a model with one of these tokenizers"
        )
    vocabulary = _read_vocabulary(metadata)
    body, add_bos = FAMILIES[model](vocabulary)
    special = vocabulary.of_kind(TokenType.CONTROL, TokenType.UNKNOWN)
    added = sorted(special + vocabulary.of_kind(TokenType.USER_DEFINED))
    is_special = set(special)
    full: Json = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": vocabulary.tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": i in is_special}
            for i in added if vocabulary.tokens[i]
        ],
        "post_processor": None,
        **body,
    }  # fmt: skip
    end = "seperator" if model == "bert" else "eos"  # the key's own spelling
    named = [vocabulary.id(name) for name in (end, "eot", "eom")]
    ends = [vocabulary.ids[text] for text in END_OF_TURN if vocabulary.ids.get(text) in is_special]
    template = metadata.get("tokenizer.chat_template")
    bos = vocabulary.id("cls" if model == "bert" else "bos")
    eos = [i for i in dict.fromkeys([*named, *ends]) if i is not None]
    return {
        "tokenizer": json.dumps(full, ensure_ascii=False),  # as text: a loader hands it on without parsing it
        "bos_id": bos,
        "eos_ids": eos,
        "add_bos": bos is not None and vocabulary.flag("add_bos_token", add_bos),
        "add_eos": vocabulary.id(end) is not None and vocabulary.flag("add_eos_token", model == "bert"),
        "chat_template": template if isinstance(template, str) else None,
        "special_ids": special,
    }


def _read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    tokens = list(_array(metadata, "tokens", str))
    if not tokens:
        raise _damaged("tokenizer.ggml.tokens is missing")
    kind = list(map(int, _array(metadata, "token_type", int, len(tokens))))
    return Vocabulary(tokens, kind or [TokenType.NORMAL] * len(tokens), metadata)


def _array(metadata: Mapping[str, Any], name: str, of: type, length: int | None = None) -> Sequence[Any]:
    """`tokenizer.ggml.<name>` as a sequence of `of`, empty where absent. InfercError for another type or length."""
    values = metadata.get(f"tokenizer.ggml.{name}", ())
    if hasattr(values, "tolist"):
        values = values.tolist()
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(isinstance(v, of) for v in values):
        raise _damaged(f"tokenizer.ggml.{name} is no array of {of.__name__}")
    if length is not None and values and len(values) != length:
        raise _damaged(f"tokenizer.ggml.{name} has {len(values)} entries for {length} tokens")
    return values


def _bpe(vocabulary: Vocabulary, merges: Sequence[str], **options: Any) -> Json:
    return {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
        **options, "vocab": vocabulary.ids, "merges": merges,
    }  # fmt: skip


def _byte_level_bpe(vocabulary: Vocabulary) -> tuple[Json, bool]:
    name = vocabulary.metadata.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise InfercError(
            f"the pre-tokenizer {name!r} (tokenizer.ggml.pre) is not known: it must be one of "
            f"{', '.join(PRE_TOKENIZERS)}, or be added to PRE_TOKENIZERS in compiler/frontends/gguf_tokenizer.py"
        )
    pre = PRE_TOKENIZERS[name]
    merges = _array(vocabulary.metadata, "merges", str)
    if not merges:
        raise _damaged("tokenizer.ggml.merges is missing")
    for merge in merges:
        pair = merge.split(" ")
        if len(pair) != 2 or any(piece not in vocabulary.ids for piece in (*pair, "".join(pair))):
            raise _damaged(f"the merge {merge!r} is not of two tokens into a third")
    body = {
        "normalizer": pre.normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre.steps)},
        "model": _bpe(vocabulary, merges, ignore_merges=pre.ignore_merges),
        "decoder": _byte_level(use_regex=False),
    }
    return body, pre.add_bos


def _sentencepiece(vocabulary: Vocabulary) -> tuple[Json, bool]:
    prefix = vocabulary.flag("add_space_prefix", True)
    unknown = vocabulary.of_kind(TokenType.UNKNOWN)
    escape: Json = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    unescape: Json = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    prepend: list[Json] = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    strip: list[Json] = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    body = {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, escape]},
        "pre_tokenizer": None,
        "model": _bpe(
            vocabulary, merges_from_scores(vocabulary), byte_fallback=True, fuse_unk=True,
            unk_token=vocabulary.tokens[unknown[0]] if unknown else None,
        ),
        "decoder": {"type": "Sequence", "decoders": [unescape, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
    }  # fmt: skip
    return body, True


def merges_from_scores(vocabulary: Vocabulary) -> list[str]:
    """The merge "left right" that makes each token, best score first: with them BPE gives SentencePiece's ids.

    SentencePiece joins, again and again, the two neighbours whose union scores best, the leftmost of equals. Within
    the span that becomes a token no join crosses the border, so the same joins happen as in that token's text alone:
    a token is always made by the same last join, found here by running the algorithm on it. (Listing every way to cut
    a token, as is usual, doubles the list, and joins overlapping repeats in another order.) A token whose own text
    ends elsewhere is never made by merging, nor is one with a space, which is always written "▁".
    """
    scores = _array(vocabulary.metadata, "scores", float, len(vocabulary.tokens))
    if not scores or any(map(isnan, scores)):
        raise _damaged("tokenizer.ggml.scores is missing or not numeric")
    mergeable = [i for i in vocabulary.of_kind(TokenType.NORMAL, TokenType.UNUSED) if " " not in vocabulary.tokens[i]]
    best_first = sorted(mergeable, key=lambda i: -scores[i])
    rank = {vocabulary.tokens[i]: r for r, i in enumerate(best_first)}
    never = len(vocabulary.tokens)
    merges = []
    for token in rank:
        parts = list(token)
        while len(parts) > 2:
            ranks = [rank.get(left + right, never) for left, right in zip(parts, parts[1:])]
            best = min(ranks)
            if best == never:
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2 and parts[0] in rank and parts[1] in rank:
            merges.append(" ".join(parts))
    return merges


def _wordpiece(vocabulary: Vocabulary) -> tuple[Json, bool]:
    """BERT's, uncased. GGUF writes "▁the" for "the" and "ing" for "##ing"."""
    ordinary = set(vocabulary.of_kind(TokenType.NORMAL, TokenType.UNUSED))

    def spelled(i: int, token: str) -> str:
        return token if i not in ordinary else token[1:] if token.startswith("▁") else "##" + token

    unknown = vocabulary.id("unknown")
    body = {
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]" if unknown is None else vocabulary.tokens[unknown],
            "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
            "vocab": {spelled(i, token): i for i, token in enumerate(vocabulary.tokens)},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": False},
    }  # fmt: skip
    return body, True


FAMILIES = {"gpt2": _byte_level_bpe, "llama": _sentencepiece, "bert": _wordpiece}

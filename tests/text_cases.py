"""Small tokenizers of every kind that text tables express, as the front end describes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from inferc.compiler.frontends import gguf_tokenizer
from inferc.compiler.frontends.gguf_tokenizer import PRE_TOKENIZERS, TokenType

from .test_tokenizer import CORPUS, TRAINING

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BYTES = [f"<0x{i:02X}>" for i in range(256)]
CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# A name in PRE_TOKENIZERS for each kind of split.
SPLITS = (
    "gpt-2", "smollm", "llama-bpe", "qwen2", "qwen35", "tekken", "gpt-4o", "deepseek-coder", "deepseek-v3", "falcon",
)  # fmt: skip


@cache
def byte_level(name: str) -> dict[str, Any]:
    """A byte-level BPE trained with the words of a pre-tokenizer."""
    pre = PRE_TOKENIZERS[name]
    bare = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "post_processor": None,
            "normalizer": pre.normalizer, "decoder": None,
            "model": json.loads(Tokenizer(models.BPE()).to_str())["model"],
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre.steps)}}  # fmt: skip
    trained = Tokenizer.from_str(json.dumps(bare))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        TRAINING, trainers.BpeTrainer(vocab_size=900, special_tokens=SPECIAL, initial_alphabet=alphabet)
    )
    body = json.loads(trained.to_str())["model"]
    tokens = sorted(body["vocab"], key=body["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in body["merges"]]
    kinds = [TokenType.CONTROL if t in SPECIAL else TokenType.NORMAL for t in tokens]
    return described({"model": "gpt2", "pre": name, "tokens": tokens, "token_type": kinds, "merges": merges,
                      "eos_token_id": 0, "bos_token_id": 1})  # fmt: skip


@cache
def sentencepiece(prefix: bool, fallback: bool = True) -> dict[str, Any]:
    """SentencePiece BPE with scores, user-defined tokens and, with `fallback`, tokens of bytes."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(TRAINING, trainers.BpeTrainer(vocab_size=700, limit_alphabet=120))
    body = json.loads(trained.to_str())["model"]
    plain = sorted(body["vocab"], key=body["vocab"].get)
    head, defined = ["<unk>", "<s>", "</s>"], ["[tag]", "  ", "\n\n"]
    single = [t for t in plain if len(t) == 1]
    longer = [t for t in plain if len(t) > 1 and t not in defined]
    tokens = [*head, *(BYTES if fallback else ()), *defined, *single, *longer]
    kinds = {"<unk>": TokenType.UNKNOWN, "<s>": TokenType.CONTROL, "</s>": TokenType.CONTROL}
    kinds |= dict.fromkeys(BYTES, TokenType.BYTE) | dict.fromkeys(defined, TokenType.USER_DEFINED)
    return described({
        "model": "llama", "tokens": tokens, "token_type": [kinds.get(t, TokenType.NORMAL) for t in tokens],
        "scores": [float(-i) for i in range(len(tokens))], "add_space_prefix": prefix, "bos_token_id": 1,
        "eos_token_id": 2,
    })  # fmt: skip


@cache
def wordpiece() -> dict[str, Any]:
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer()
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    head = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trained.train_from_iterator(TRAINING, trainers.WordPieceTrainer(vocab_size=600, special_tokens=head))
    vocabulary = json.loads(trained.to_str())["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    spelled = [t if t in head else t[2:] if t.startswith("##") else "▁" + t for t in tokens]
    kinds = [TokenType.CONTROL if t in head else TokenType.NORMAL for t in spelled]
    return described({"model": "bert", "tokens": spelled, "token_type": kinds, "unknown_token_id": 1, "cls_token_id": 2,
                      "seperator_token_id": 3})  # fmt: skip


@cache
def unigram(fallback: bool, split: bool) -> dict[str, Any]:
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=split)
    head = ["<s>", "<pad>", "</s>", "<unk>", *(BYTES if fallback else ())]
    trained.train_from_iterator(
        TRAINING, trainers.UnigramTrainer(vocab_size=600, special_tokens=head, unk_token="<unk>", show_progress=False)
    )
    full = json.loads(trained.to_str())
    full["model"]["byte_fallback"] = fallback
    full["added_tokens"] = [t for t in full["added_tokens"] if t["content"] not in BYTES]
    unescape = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    full["decoder"] = {"type": "Sequence", "decoders": [unescape, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]}
    return {"tokenizer": json.dumps(full), "bos_id": 0, "eos_ids": [2], "add_bos": True, "add_eos": True,
            "chat_template": None, "special_ids": [0, 1, 2, 3]}  # fmt: skip


def described(metadata: Mapping[str, Any], template: str | None = CHATML) -> dict[str, Any]:
    keys = {f"tokenizer.ggml.{name}": value for name, value in metadata.items()}
    found = gguf_tokenizer.convert(keys | {"tokenizer.chat_template": template})
    assert found is not None
    return found


CASES = {
    **{name: (byte_level, name) for name in SPLITS},
    "sentencepiece": (sentencepiece, True), "sentencepiece without prefix": (sentencepiece, False),
    "sentencepiece without bytes": (sentencepiece, True, False), "wordpiece": (wordpiece,),
    "unigram": (unigram, False, True), "unigram with bytes": (unigram, True, False),
}  # fmt: skip


@cache
def case(name: str) -> dict[str, Any]:
    make, *arguments = CASES[name]
    return make(*arguments)


ALPHABET = (
    "aabAB zZ  \t\n\r'sSt're VEll1239٠٣½ſé\u0301\u0323\u0300ÅʰアーカﾊﾞGが漢字龥한ᄒ\u1161\u11abßǅẛ.,!?$+/-_「」…।(){}|"
    "\u00a0\u2003\u3000K▁<>\U0001d400😀\x00\x7f\x85\x1c\u0ddd\u0f73\u1e0a\u0344"
)
TEXTS = [*CORPUS, "\n".join(CORPUS), "<|im_start|>user\nhi <|im_end|> \n", "a[tag]b<s>c  d\n\ne", "ab" * 300 + " " * 90]

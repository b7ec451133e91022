"""Whether a model's tokenizer gives texts back, and the compiled one has the same ids as the package `tokenizers`."""

from __future__ import annotations

from typing import Any

from ...runtime.tokenizer import StreamDecoder, Tokenizer, TokenizerBase
from ..source import Source

# Texts that tokenizers get wrong: white space, bytes beyond ASCII, long runs, marks that combine, what is no word.
TEXTS = (
    "plain words, and 12345 numbers", " leading and trailing ", "two  spaces\tand\n\nlines\r\n", "Grüße, 世界",
    "мир, שלום",
    "👩‍👩‍👧 🇫🇷 e\u0301 ﬁ", "x" * 300, "a_b.c(d)[e]{f}<g>", "\u00a0\u2003\u200b", "don't can't I'LL",
)  # fmt: skip


def check(source: Source, text: str, compiled: TokenizerBase | None = None) -> dict[str, Any]:
    """Encodes and decodes texts: what comes back, at once and id by id, must be what went in, and the ids those of
    `compiled`, where it is given.

    Normalising tokenizers may change white space at the text's ends. The result has "texts" and "failures".
    """
    data = source.tokenizer()
    if data is None:
        return {"texts": 0, "failures": ["the model has no tokenizer"]}
    tokenizer = Tokenizer(data)
    failures = []
    for sample in (text, *TEXTS):
        ids = tokenizer.encode(sample, add_bos=False, add_eos=False, parse_special=False)
        whole = tokenizer.decode(ids)
        own = ids if compiled is None else compiled.encode(sample, add_bos=False, add_eos=False, parse_special=False)
        decoder = StreamDecoder(tokenizer, from_start=True)
        pieces = "".join(decoder.push(i) for i in ids) + decoder.finish()
        shown = repr(sample if len(sample) < 40 else sample[:37] + "…")
        if whole.strip() != sample.strip():
            failures.append(f"{shown} comes back as {whole[:40]!r}")
        if pieces.strip() != whole.strip():
            failures.append(f"{shown} comes back as {pieces[:40]!r} piece by piece and as {whole[:40]!r} whole")
        if own != ids:
            at = next((i for i, (a, b) in enumerate(zip(own, ids)) if a != b), min(len(own), len(ids)))
            failures.append(f"{shown} has other ids in C from token {at} on: {own[at : at + 3]} for {ids[at : at + 3]}")
        if any(not 0 <= i < source.facts()["vocab_size"] for i in ids):
            failures.append(f"{shown} has ids outside the vocabulary")
    return {"texts": 1 + len(TEXTS), "failures": failures}

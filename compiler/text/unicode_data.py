"""Unicode as the `tokenizers` package has it, which `unicode.json` holds: `python -m inferc.compiler.text.unicode_data`
writes that file anew, by asking the package about every character.

The package has several Unicode versions inside: that of its regular expressions is 16.0.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import tokenizers
from tokenizers import normalizers, pre_tokenizers

FILE = Path(__file__).with_name("unicode.json")
CHARACTERS = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
CATEGORIES = (
    "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Cn Co".split()
)  # fmt: skip
SCRIPTS = ("Han",)


def runs(characters: Iterable[str]) -> list[int]:
    """The code points of some characters as alternating first and end (one past the last), ascending."""
    edges: list[int] = []
    for c in sorted(map(ord, characters)):
        if edges and edges[-1] == c:
            edges[-1] = c + 1
        else:
            edges += [c, c + 1]
    return edges


def matching(pattern: str) -> list[int]:
    """The characters that a class of the package's regular expressions has."""
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "removed")
    found: list[str] = []
    for at in range(0, len(CHARACTERS), 1 << 16):
        part = CHARACTERS[at : at + (1 << 16)]
        others = {i for _, (begin, end) in split.pre_tokenize_str("".join(part)) for i in range(begin, end)}
        found += [c for i, c in enumerate(part) if i not in others]
    return runs(found)


def where(holds: Callable[[str], bool]) -> list[int]:
    return runs(filter(holds, CHARACTERS))


def changed(normalizer: normalizers.Normalizer) -> dict[str, str]:
    """What a normalizer makes of each character that it changes."""
    made = ((c, normalizer.normalize_str(c)) for c in CHARACTERS)
    return {c: text for c, text in made if text != c}


def combining_classes(decompose: Callable[[str], str]) -> dict[str, int]:
    """Canonical combining classes other than 0. Those of the standard library that the package lacks are left out."""
    probes = "\u0334\u05b0\u0316\u0301\u0345"
    found = {}
    for c in filter(unicodedata.combining, CHARACTERS):
        pairs = [text for p in probes for text in ("a" + c + p, "a" + p + c)]
        if all(decompose(text) == unicodedata.normalize("NFD", text) for text in pairs):
            found[c] = unicodedata.combining(c)
    return found


def bert(**options: bool) -> normalizers.Normalizer:
    every = ("clean_text", "handle_chinese_chars", "strip_accents", "lowercase")
    return normalizers.BertNormalizer(**{name: options.get(name, False) for name in every})


def data() -> dict[str, object]:
    """The contents of `unicode.json`. Sets are runs, as of `runs`."""
    decompose = normalizers.NFD().normalize_str
    compose = normalizers.NFC().normalize_str
    digits, marks = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.BertPreTokenizer()
    decomposed = {c: d for c, d in changed(normalizers.NFD()).items() if not 0xAC00 <= ord(c) < 0xD7A4}
    pairs = {}
    for c in decomposed:
        parts = unicodedata.decomposition(c).split()
        if len(parts) == 2 and compose(pair := "".join(chr(int(p, 16)) for p in parts)) == c:
            pairs[pair] = c
    return {
        "regex": {name: matching(rf"\p{{{name}}}+") for name in (*CATEGORIES, *SCRIPTS)} | {"s": matching(r"\s+")},
        "digit": where(lambda c: len(digits.pre_tokenize_str("a" + c)) == 2),
        "bert_mark": where(lambda c: len(marks.pre_tokenize_str(f"a{c}a")) == 3),
        "bert_space": where(lambda c: len(marks.pre_tokenize_str(f"a{c}a")) == 2),
        "bert_clean": changed(bert(clean_text=True)),
        "bert_chinese": runs(changed(bert(handle_chinese_chars=True))),
        "bert_accent": runs(c for c, text in changed(bert(strip_accents=True)).items() if not text),
        "lower": changed(normalizers.Lowercase()),
        "decomposed": decomposed,
        "composed": pairs,
        "combining": combining_classes(decompose),
    }


def compact(value: object) -> object:
    """A map of many characters to few texts (or numbers) as [[text, runs], …]."""
    if not isinstance(value, dict) or len(set(value.values())) > len(value) / 4:
        return value
    groups: dict[object, list[str]] = {}
    for c, text in value.items():
        groups.setdefault(text, []).append(c)
    return [[text, runs(cs)] for text, cs in groups.items()]


def main() -> None:
    found = {name: compact(value) if name != "regex" else value for name, value in data().items()}
    FILE.write_text(json.dumps(found, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()

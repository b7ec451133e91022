"""The first steps of a tokenizer as tables: what changes a text's characters, and what cuts it into words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import unicode
from .patterns import Tree, Unsupported, automaton, classes_of, compile_tree, parse

Json = dict[str, Any]

# Kinds of steps, as in runtime/c/normalize.h.
PREPEND, PREPEND_UNLESS, MAP, COMPOSE, DECOMPOSE = range(1, 6)
ISOLATED, REMOVED = 0, 1  # what becomes of a match: a word of its own, or nothing
PAGE = 128  # characters of a page of classes
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPACE = "▁"  # U+2581, SentencePiece's space


@dataclass
class Cutting:
    """Steps as they are found. `byte_level`: the model's tokens are bytes, by GPT-2's names of them."""

    steps: list[tuple[int, Any]] = field(default_factory=list)  # a text, or {character: text}
    splits: list[tuple[Tree, int]] = field(default_factory=list)
    byte_level: bool = False


def _map(cutting: Cutting, characters: dict[str, str]) -> None:
    cutting.steps.append((MAP, {c: text for c, text in characters.items() if c != text}))


def add_normalizer(cutting: Cutting, step: Json | None) -> None:
    """Raises Unsupported for a normalizer that the tables cannot express."""
    match step:
        case None:
            pass
        case {"type": "Sequence", "normalizers": [*steps]}:
            for inner in steps:
                add_normalizer(cutting, inner)
        case {"type": "NFC"}:
            cutting.steps.append((COMPOSE, None))
        case {"type": "NFD"}:
            cutting.steps.append((DECOMPOSE, None))
        case {"type": "Prepend", "prepend": str(text)}:
            cutting.steps.append((PREPEND, text))
        case {"type": "Replace", "pattern": {"String": str(text)}, "content": str(content)} if len(text) == 1:
            _map(cutting, {text: content})
        case {"type": "Lowercase"}:
            _map(cutting, unicode.mapped("lower"))
        case {"type": "BertNormalizer"}:
            _add_bert(cutting, step)
        case _:
            raise Unsupported(f"no table expresses its normalizer {_name(step)}")


def _add_bert(cutting: Cutting, step: Json) -> None:
    if step["clean_text"]:
        _map(cutting, unicode.mapped("bert_clean"))
    if step["handle_chinese_chars"]:
        chinese = np.flatnonzero(unicode.from_runs(unicode.data()["bert_chinese"]))
        _map(cutting, {chr(c): f" {chr(c)} " for c in chinese})
    accents = step["strip_accents"]
    if step["lowercase"] if accents is None else accents:
        cutting.steps.append((DECOMPOSE, None))
        _map(cutting, {chr(c): "" for c in np.flatnonzero(unicode.from_runs(unicode.data()["bert_accent"]))})
    if step["lowercase"]:
        _map(cutting, unicode.mapped("lower"))


def _name(step: Any) -> str:
    return str(step.get("type")) if isinstance(step, dict) else repr(step)


def _set(name: str) -> Tree:
    return ("set", unicode.from_runs(unicode.data()[name]))


def _many(tree: Tree) -> Tree:
    return ("repeat", tree, 1, None, False)


def add_pre_tokenizer(cutting: Cutting, step: Json | None) -> None:
    """Raises Unsupported for a pre-tokenizer that the tables cannot express."""
    match step:
        case None:
            pass
        case {"type": "Sequence", "pretokenizers": [*steps]}:
            for inner in steps:
                add_pre_tokenizer(cutting, inner)
        case {"type": "Split", "pattern": pattern, "behavior": "Isolated" | "Removed" as behavior, "invert": False}:
            tree = parse(pattern["Regex"]) if "Regex" in pattern else _literal(pattern["String"])
            cutting.splits.append((tree, ISOLATED if behavior == "Isolated" else REMOVED))
        case {"type": "Digits", "individual_digits": alone}:
            cutting.splits.append((_set("digit") if alone else _many(_set("digit")), ISOLATED))
        case {"type": "ByteLevel", "add_prefix_space": False}:
            if step.get("use_regex", True):
                cutting.splits.append((parse(GPT2), ISOLATED))
            cutting.byte_level = True
        case {"type": "BertPreTokenizer"}:
            cutting.splits += [(_many(_set("bert_space")), REMOVED), (_set("bert_mark"), ISOLATED)]
        case {"type": "WhitespaceSplit"}:
            cutting.splits.append((_many(_set("bert_space")), REMOVED))
        case {"type": "Metaspace", "replacement": str(mark), "prepend_scheme": "always" | "never" as scheme}:
            _map(cutting, {" ": mark})
            if scheme == "always":
                cutting.steps.append((PREPEND_UNLESS, mark))
            if step.get("split", True):
                others = ("set", ~unicode.chars(mark))
                word = ("cat", [("set", unicode.chars(mark)), ("repeat", others, 0, None, False)])
                cutting.splits.append((("or", [word, _many(others)]), ISOLATED))
        case _:
            raise Unsupported(f"no table expresses its pre-tokenizer {_name(step)}")


def _literal(text: str) -> Tree:
    if not text:
        raise Unsupported("a pre-tokenizer splits at an empty text")
    return ("cat", [("set", unicode.chars(c)) for c in text])


def words_of_spaces(joined: set[str]) -> tuple[Tree, int]:
    """Cuts before each run of SentencePiece's spaces, but for those behind characters of `joined`."""
    mark, kept = unicode.chars(SPACE), unicode.chars(joined)
    spaces: Tree = ("repeat", ("set", mark), 0, None, False)
    part: Tree = ("or", [("set", ~(mark | kept)), ("cat", [("set", kept), spaces])])
    return ("or", [("cat", [_many(("set", mark)), ("repeat", part, 0, None, False)]), _many(part)]), ISOLATED


def sections(cutting: Cutting) -> tuple[dict[str, np.ndarray | bytes], dict[str, int], int]:
    """The sections of the steps, facts (how much longer they may make a text), and how many classes of characters."""
    steps: list[list[int]] = []
    rows: list[list[int]] = []
    strings = bytearray()
    times, more = 1.0, 0.0
    for kind, what in cutting.steps:
        if kind in (PREPEND, PREPEND_UNLESS):
            text = what.encode()
            steps.append([kind, len(strings), len(text), 0])
            strings += text
            more += len(text)
        elif kind == MAP:
            added = _map_rows(what, strings)
            steps.append([kind, len(rows), len(added), 0])
            rows += added
            growth = max((len(text.encode()) / len(c.encode()) for c, text in what.items()), default=1.0)
            times, more = times * max(1.0, growth), more * max(1.0, growth)
        else:
            steps.append([kind, 0, 0, 0])
            times, more = times * 3, more * 3  # U+0390 becomes three characters of two bytes each
    found: dict[str, np.ndarray | bytes] = {
        "steps": np.array(steps, np.uint32), "map_rows": np.array(rows, np.uint32), "strings": bytes(strings),
    }  # fmt: skip
    if any(kind in (COMPOSE, DECOMPOSE) for kind, _ in cutting.steps):
        found |= _composition()
    facts = {"growth": int(np.ceil(times)), "added_bytes": int(np.ceil(more))}
    if not cutting.splits:
        return found, facts, 0
    automata, classes = _automata(cutting.splits)
    return found | automata, facts, classes


def _map_rows(characters: dict[str, str], strings: bytearray) -> list[list[int]]:
    """[first, last, offset, bytes]: neighbours that become the same text share a row."""
    rows: list[list[int]] = []
    placed: dict[str, int] = {}
    for c, text in sorted(characters.items()):
        if text not in placed:
            placed[text] = len(strings)
            strings += text.encode()
        row = [ord(c), ord(c), placed[text], len(text.encode())]
        if rows and rows[-1][1] == ord(c) - 1 and rows[-1][2:] == row[2:]:
            rows[-1][1] = ord(c)
        else:
            rows.append(row)
    return rows


def _composition() -> dict[str, np.ndarray | bytes]:
    data = unicode.data()
    points: list[int] = []
    decomposed = []
    for c, text in sorted(data["decomposed"].items()):
        decomposed.append([ord(c), len(points), len(text)])
        points += map(ord, text)
    composed = sorted([ord(pair[0]), ord(pair[1]), ord(c)] for pair, c in data["composed"].items())
    combining = sorted(
        [edges[i], edges[i + 1], value] for value, edges in data["combining"] for i in range(0, len(edges), 2)
    )
    return {
        "decomposed": np.array(decomposed, np.uint32), "code_points": np.array(points, np.uint32),
        "composed": np.array(composed, np.uint32), "combining": np.array(combining, np.uint32),
    }  # fmt: skip


def _automata(splits: Sequence[tuple[Tree, int]]) -> tuple[dict[str, np.ndarray | bytes], int]:
    """All splits, over one partition of the characters."""
    programs = [compile_tree(tree) for tree, _ in splits]
    classes = classes_of([chars for program in programs for chars in program.sets])
    rows: list[list[int]] = []
    transitions: list[np.ndarray] = []
    at = 0
    for program, (_, behavior) in zip(programs, splits):
        members = classes.members[at : at + len(program.sets)]
        at += len(program.sets)
        table = automaton(program, classes, members)
        rows.append([behavior, sum(t.size for t in transitions), len(table), classes.count])
        transitions.append(table.reshape(-1))
    every = [page.tobytes() for page in classes.of.reshape(-1, PAGE)]
    pages = sorted(set(every))
    numbers = {page: number for number, page in enumerate(pages)}
    found: dict[str, np.ndarray | bytes] = {
        "splits": np.array(rows, np.uint32), "transitions": np.concatenate(transitions),
        "class_pages": np.array([numbers[page] for page in every], np.uint16), "classes": b"".join(pages),
    }  # fmt: skip
    return found, classes.count

"""Regular expressions by which tokenizers cut text, as tables: a pattern → an automaton that a small matcher in C runs.

The dialect is what tokenizers use of Oniguruma's: classes of characters, groups, alternatives, greedy quantifiers, and
a look at the one character that follows. Alternatives and quantifiers keep their priorities, as a backtracking matcher
has them, though the automaton reads each character once: a state is the list of places where such a matcher could be,
the preferred first, and what is less preferred than a match is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from ...errors import InfercError
from . import unicode
from .unicode import CharSet

MOST_STATES = 1 << 14
MOST_REPEATS = 1024
CASED = 0x20000  # no letter from here on has two cases
ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "f": "\f", "v": "\v", "0": "\0"}


class Unsupported(InfercError):
    """A part of a tokenizer or template that the tables cannot express; the message is the reason."""


@dataclass
class Program:
    """A pattern as instructions; those that read a character refer to `sets` by index.

    ("char", set), ("look", set, wanted, at_end), ("split", first choice, second), ("jump", to), ("match",): `look` lets
    pass if the next character's being in the set is `wanted`, and at the end of the text if `at_end`.
    """

    code: list[tuple] = field(default_factory=list)
    sets: list[CharSet] = field(default_factory=list)

    def set(self, chars: CharSet) -> int:
        for i, known in enumerate(self.sets):
            if np.array_equal(known, chars):
                return i
        self.sets.append(chars)
        return len(self.sets) - 1


@cache
def _folds() -> dict[str, frozenset[str]]:
    """The characters that are one another's case, by their folding."""
    groups: dict[str, set[str]] = {}
    for c in map(chr, range(CASED)):
        if len(folded := c.casefold()) == 1 and (folded != c or c.upper() != c):
            groups.setdefault(folded, {folded}).add(c)
    return {folded: frozenset(group) for folded, group in groups.items()}


# A parsed pattern: ("set", CharSet), ("cat", parts), ("or", choices), ("look", CharSet, wanted, at_end),
# ("repeat", part, least, most or None, possessive).
Tree = tuple


class _Parser:
    def __init__(self, pattern: str) -> None:
        self._text, self._at, self._pattern = pattern, 0, pattern
        self._fold = False

    def parse(self) -> Tree:
        tree = self._choices()
        if self._at < len(self._text):
            raise self._refusal("a bracket that nothing opens")
        return tree

    def _refusal(self, what: str) -> Unsupported:
        return Unsupported(f"the pattern {self._pattern!r} has {what} at character {self._at}: no table expresses it")

    def _next(self, text: str) -> bool:
        if self._text.startswith(text, self._at):
            self._at += len(text)
            return True
        return False

    def _take(self) -> str:
        if self._at >= len(self._text):
            raise self._refusal("an end too early")
        self._at += 1
        return self._text[self._at - 1]

    def _choices(self) -> Tree:
        choices = [self._sequence()]
        while self._next("|"):
            choices.append(self._sequence())
        return choices[0] if len(choices) == 1 else ("or", choices)

    def _sequence(self) -> Tree:
        parts = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._repeated(self._atom()))
        return ("cat", parts)

    def _repeated(self, atom: Tree) -> Tree:
        while self._at < len(self._text):
            if self._next("?"):
                bounds: tuple[int, int | None] = (0, 1)
            elif self._next("*"):
                bounds = (0, None)
            elif self._next("+"):
                bounds = (1, None)
            elif found := re.compile(r"\{(\d+)(,(\d*))?\}").match(self._text, self._at):
                self._at = found.end()
                least = int(found[1])
                bounds = least, (least if found[2] is None else int(found[3]) if found[3] else None)
                if max(least, bounds[1] or 0) > MOST_REPEATS:
                    raise self._refusal("too large a number of repetitions")
            else:
                break
            if atom[0] == "look":
                raise self._refusal("a repeated look ahead")
            if self._next("?"):
                raise self._refusal("a quantifier that takes little")
            atom = ("repeat", atom, *bounds, self._next("+"))
        return atom

    def _atom(self) -> Tree:
        c = self._take()
        if c == "(":
            return self._group()
        if c == "[":
            return ("set", self._class())
        if c == "\\":
            return ("set", self._escape())
        if c == ".":
            return ("set", ~unicode.chars("\n"))
        if c == "$":  # Oniguruma's: at the end of a line
            return ("look", unicode.chars("\n"), True, True)
        if c in "^*+?{":
            raise self._refusal(f"a {c!r}")
        return ("set", self._cased(unicode.chars(c)))

    def _group(self) -> Tree:
        fold = self._fold
        if self._next("?=") or self._next("?!"):
            wanted = self._text[self._at - 1] == "="
            inner = self._choices()
            while inner[0] == "cat" and len(inner[1]) == 1:
                inner = inner[1][0]
            if inner[0] != "set":
                raise self._refusal("a look at more than one character")
            tree: Tree = ("look", inner[1], wanted, not wanted)
        else:
            if self._next("?i:"):
                self._fold = True
            elif not self._next("?:") and self._text.startswith("?", self._at):
                raise self._refusal("a group of an unknown kind")
            tree = self._choices()
        if not self._next(")"):
            raise self._refusal("a bracket that is not closed")
        self._fold = fold
        return tree

    def _cased(self, chars: CharSet) -> CharSet:
        if not self._fold:
            return chars
        text = "".join(map(chr, np.flatnonzero(chars)))
        return chars | unicode.chars(c for given in text for c in _folds().get(given.casefold(), given))

    def _escape(self) -> CharSet:
        c = self._take()
        if c in "pP":
            end = self._text.find("}", self._at)
            name = self._text[self._at + 1 : end]
            if end < 0 or self._text[self._at] != "{":
                raise self._refusal("a property without braces")
            self._at = end + 1
            try:
                chars = unicode.prop(name.removeprefix("^"))
            except KeyError:
                raise self._refusal(f"the unknown property {name!r}") from None
            return chars if (c == "p") != name.startswith("^") else ~chars
        if c in "sSdD":
            chars = unicode.space() if c in "sS" else unicode.prop("Nd")
            return chars if c.islower() else ~chars
        if c == "u" or (c == "x" and self._next("{")):
            digits = re.compile(r"[0-9A-Fa-f]{4}" if c == "u" else r"[0-9A-Fa-f]+(?=\})").match(self._text, self._at)
            if not digits:
                raise self._refusal("a damaged escape")
            self._at = digits.end() + (c == "x")
            return self._cased(unicode.chars(chr(int(digits[0], 16))))
        if c.isalnum() and c not in ESCAPES:
            raise self._refusal(f"an escape \\{c}")
        return self._cased(unicode.chars(ESCAPES.get(c, c)))

    def _class(self) -> CharSet:
        negated = self._next("^")
        chars = np.zeros(unicode.LIMIT, bool)
        first = True
        while first or not self._next("]"):
            first = False
            if self._text.startswith("&&", self._at) or self._text.startswith("[:", self._at):
                raise self._refusal("an intersection or a named class")
            if self._next("["):
                chars |= self._class()
                continue
            begin = self._member()
            ranged = self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at)
            if ranged and begin.sum() == 1:
                self._at += 1
                end = self._member()
                if end.sum() != 1 or np.argmax(end) < np.argmax(begin):
                    raise self._refusal("a damaged range")
                begin[np.argmax(begin) : np.argmax(end) + 1] = True
            chars |= self._cased(begin)
        return ~chars if negated else chars

    def _member(self) -> CharSet:
        c = self._take()
        if c != "\\":
            return unicode.chars(c)
        fold, self._fold = self._fold, False
        chars = self._escape()
        self._fold = fold
        return chars.copy()


def _first(tree: Tree) -> tuple[CharSet, bool]:
    """The characters with which a tree may begin, and whether it may be empty."""
    match tree:
        case ("set", chars):
            return chars, False
        case ("look", *_):
            return np.zeros(unicode.LIMIT, bool), True
        case ("or", choices):
            firsts = [_first(t) for t in choices]
            return np.logical_or.reduce([f for f, _ in firsts]), any(e for _, e in firsts)
        case ("repeat", inner, least, *_):
            chars, empty = _first(inner)
            return chars, empty or least == 0
    chars, empty = np.zeros(unicode.LIMIT, bool), True
    for part in tree[1]:
        if empty:
            more, empty = _first(part)
            chars = chars | more
    return chars, empty


def _emit(program: Program, tree: Tree) -> None:
    code = program.code
    match tree:
        case ("set", chars):
            code.append(("char", program.set(chars)))
        case ("look", chars, wanted, at_end):
            code.append(("look", program.set(chars), wanted, at_end))
        case ("cat", parts):
            for i, part in enumerate(parts):
                if part[0] == "repeat" and part[4]:
                    following, _ = _first(("cat", parts[i + 1 :]))
                    if (following & _first(part[1])[0]).any():
                        raise Unsupported("a possessive quantifier before characters that it takes itself")
                _emit(program, part)
        case ("or", choices):
            ends = []
            for choice in choices[:-1]:
                at = len(code)
                code.append(())
                _emit(program, choice)
                ends.append(len(code))
                code.append(())
                code[at] = ("split", at + 1, len(code))
            _emit(program, choices[-1])
            for end in ends:
                code[end] = ("jump", len(code))
        case ("repeat", inner, least, most, _):
            for _ in range(least):
                _emit(program, inner)
            if most is None:
                at = len(code)
                code.append(())
                _emit(program, inner)
                code.append(("jump", at))
                code[at] = ("split", at + 1, len(code))
            else:
                starts = []
                for _ in range(most - least):
                    starts.append(len(code))
                    code.append(())
                    _emit(program, inner)
                for at in starts:
                    code[at] = ("split", at + 1, len(code))


def parse(pattern: str) -> Tree:
    """Raises Unsupported for a pattern that tables cannot express, or that may match an empty text."""
    tree = _Parser(pattern).parse()
    if _first(tree)[1]:
        raise Unsupported(f"the pattern {pattern!r} may match an empty text")
    return tree


def compile_tree(tree: Tree) -> Program:
    """The instructions of a parsed pattern."""
    program = Program()
    _emit(program, tree)
    program.code.append(("match",))
    return program


@dataclass(frozen=True)
class Classes:
    """A partition of all characters, such that every set of some patterns is a union of parts.

    `of` is u8[LIMIT], each character's part; `members[i]` are the parts that make up set i.
    """

    of: np.ndarray
    count: int
    members: tuple[frozenset[int], ...]


def classes_of(sets: Sequence[CharSet]) -> Classes:
    """Raises Unsupported for more than 250 parts."""
    changes = [np.flatnonzero(chars[1:] != chars[:-1]) + 1 for chars in sets]
    edges = np.unique(np.concatenate([[0], *changes]))  # the first characters of runs tell all parts
    kinds, numbered = np.unique(np.stack([chars[edges] for chars in sets], axis=1), axis=0, return_inverse=True)
    count = len(kinds)
    if count > 250:
        raise Unsupported("the patterns have more than 250 classes of characters")
    members = tuple(frozenset(np.flatnonzero(kinds[:, i]).tolist()) for i in range(len(sets)))
    of = np.repeat(numbered.reshape(-1).astype(np.uint8), np.diff(edges, append=unicode.LIMIT))
    return Classes(of, count, members)


ACCEPT = 0x8000


def automaton(program: Program, classes: Classes, members: Sequence[frozenset[int]]) -> np.ndarray:
    """u16[states, classes + 1]: where each class of character leads from each state, state 1 the first, 0 none.

    The last column is the end of the text. `ACCEPT` is set where a match ends before that character. `members` are the
    parts of each of the program's sets. Raises Unsupported for too many states.
    """
    end = classes.count
    states: dict[tuple[int, ...], int] = {(): 0, (0,): 1}
    rows: list[list[int]] = [[0] * (end + 1)]
    queue: list[tuple[int, ...]] = [(0,)]
    for state in queue:
        row = []
        for symbol in range(end + 1):
            following, matched = _step(program, members, state, symbol, end)
            if following not in states:
                if len(states) >= MOST_STATES:
                    raise Unsupported("the pattern needs too many states")
                states[following] = len(states)
                queue.append(following)
            row.append(states[following] | (ACCEPT if matched else 0))
        rows.append(row)
    return np.array(rows, np.uint16)


def _step(program: Program, members: Sequence[frozenset[int]], state: tuple[int, ...], symbol: int,
          end: int) -> tuple[tuple[int, ...], bool]:  # fmt: skip
    """The state after a symbol, and whether a match ends before it."""
    following: dict[int, None] = {}
    seen = set()
    stack = list(reversed(state))
    while stack:
        at = stack.pop()
        if at in seen:
            continue
        seen.add(at)
        match program.code[at]:
            case ("char", index):
                if symbol in members[index]:
                    following[at + 1] = None
            case ("look", index, wanted, at_end):
                if at_end if symbol == end else (symbol in members[index]) == wanted:
                    stack.append(at + 1)
            case ("split", first, second):
                stack += [second, first]
            case ("jump", to):
                stack.append(to)
            case ("match",):
                return tuple(following), True
    return tuple(following), False


def matches(table: np.ndarray, classes: Classes, text: str) -> list[tuple[int, int]]:
    """The matches in `text` from left to right, as (begin, end): what the C does, for tests."""
    parts = [*classes.of[[ord(c) for c in text]].tolist(), classes.count] if text else [classes.count]
    found, at = [], 0
    while at < len(text):
        state, last = 1, None
        for i in range(at, len(text) + 1):
            entry = int(table[state, parts[i]])
            if entry & ACCEPT:
                last = i
            state = entry & ~ACCEPT
            if state == 0:
                break
        if last is None:
            at += 1
        else:
            found.append((at, last))
            at = last
    return found

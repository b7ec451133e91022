"""Reads the text form of modules and graphs, which `text` describes and prints."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .graph import Graph, IRError, Module, Node, Origin, Value, Weight, make, make_input
from .ops import OPS
from .types import DTYPES, Sym, Type, numpy_dtype, parse_dim


def parse_module(text: str, weights: Mapping[str, Weight] | None = None) -> Module:
    """The module that `print_module` printed; `weights` gives the data of those that it names.

    Raises IRError, naming the line, for text that is no module. A weight without data raises IRError when it is loaded.
    """
    parser = _Parser(weights or {})
    parser.read(text)
    if not parser.entries:
        raise IRError("the text has no entry; it is no module")
    return Module(parser.entries, parser.weights, parser.prepare)


def parse_graph(text: str) -> Graph:
    """The last graph of the text that `print_graph` printed. Raises IRError, naming the line, for other text."""
    parser = _Parser({})
    parser.read(text)
    if not parser.graphs:
        raise IRError("the text has no graph")
    return list(parser.graphs.values())[-1]


_TOKEN = re.compile(r"""
    (?P<string>"(?:[^"\\]|\\.)*") | (?P<word>[A-Za-z_][\w.+\-/]*) | (?P<space>\s+)
  | (?P<number>\d+(?:\.(?!\.)\d*)?(?:e[+-]?\d+)?) | (?P<mark><-|\.\.|[()\[\]{},;:=@*+\-\#])""", re.X)
_CONSTANTS = {"True": True, "False": False, "None": None, "inf": float("inf"), "nan": float("nan")}


class _Line:
    """The tokens of one line, read from left to right."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        at = 0
        while at < len(text):
            found = _TOKEN.match(text, at)
            if not found:
                raise IRError(f"cannot read {text[at : at + 20]!r}")
            if found.lastgroup != "space":
                self.tokens.append((str(found.lastgroup), found.group()))
            at = found.end()
        self.at = 0

    @property
    def next(self) -> str:
        return self.tokens[self.at][1] if self.at < len(self.tokens) else ""

    @property
    def kind(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        if not self.next:
            raise IRError("the line ends too soon")
        self.at += 1
        return self.tokens[self.at - 1][1]

    def accept(self, text: str) -> bool:
        if self.kind != "string" and self.next == text:
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise IRError(f"expected {text!r}, found {self.next!r}")

    def name(self) -> str:
        if self.kind not in ("word", "string"):
            raise IRError(f"expected a name, found {self.next!r}")
        quoted = self.kind == "string"
        return str(json.loads(self.take())) if quoted else self.take()

    def list(self, item: Callable[[], Any], *ends: str) -> list[Any]:
        """Items with commas between, up to one of `ends`, which stays; a trailing comma may stand."""
        items = []
        while self.next not in ends or self.kind == "string":
            items.append(item())
            if not self.accept(","):
                break
        return items

    def until(self, *ends: str) -> str:
        """The text of all tokens before one of `ends` outside parentheses."""
        start, depth = self.at, 0
        while self.next and (depth or self.next not in ends):
            depth += (self.next == "(") - (self.next == ")")
            self.at += 1
        return " ".join(text for _, text in self.tokens[start : self.at])


class _Parser:
    def __init__(self, data: Mapping[str, Weight]) -> None:
        self.data = data
        self.symbols: dict[str, Sym] = {}
        self.weights: dict[str, Weight] = {}
        self.graphs: dict[str, Graph] = {}
        self.entries: dict[str, Graph] = {}
        self.prepare: Graph | None = None
        # Of the graph whose lines are being read: its name, what is in it so far, and what it returns.
        self.open = ""
        self.values: dict[str, Value] = {}
        self.inputs: list[Node] = []
        self.returned: tuple[tuple[str, ...], tuple[Value, ...]] | None = None

    def read(self, text: str) -> None:
        lines = text.splitlines()
        for number, content in enumerate(lines, 1):
            try:
                line = _Line(content)
                if line.next:
                    self.statement(line)
                    if line.next:
                        raise IRError(f"{line.next!r} is too much")
            except (IRError, ValueError, TypeError, KeyError) as error:
                raise IRError(f"line {number}: {error}") from error
        if self.open:
            raise IRError(f"line {len(lines)}: the graph {self.open} does not end")

    def statement(self, line: _Line) -> None:
        if self.open:
            self.graph_statement(line)
            return
        match line.take():
            case "symbol":
                name = line.take()
                line.expect("in")
                low = line.until("..")
                line.expect("..")
                self.symbols[name] = Sym(name, int(low), int(line.until()))
            case "weight":
                name = line.name()
                line.expect(":")
                self.weight(name, self.type(line))
            case "graph":
                self.open = line.name()
                self.values, self.inputs, self.returned = {}, [], None
                line.expect("{")
            case "entry":
                name = line.name()
                line.expect("=")
                self.entries[name] = self.graph(line)
            case "prepare":
                self.prepare = self.graph(line)
            case other:
                raise IRError(f"expected symbol, weight, graph, entry or prepare, found {other!r}")

    def weight(self, name: str, t: Type) -> None:
        def missing() -> Any:
            raise IRError(f"the text names the weight {name} but its data was not given")

        given = self.data.get(name)
        if given and given.type != t:
            raise IRError(f"the weight {name} is {given.type}, not {t}")
        self.weights[name] = Weight(name, t, given.load if given else missing)

    def graph(self, line: _Line) -> Graph:
        name = line.name()
        if name not in self.graphs:
            raise IRError(f"there is no graph {name} above")
        return self.graphs[name]

    def graph_statement(self, line: _Line) -> None:
        start = line.at
        word = line.take()
        if word == "}":
            self.close()
        elif self.returned is not None:
            raise IRError("expected '}' after return")
        elif line.next in (",", "="):
            line.at = start
            self.node(line)
        elif word == "input":
            name = line.name()
            line.expect(":")
            node = make_input(name, line.name(), self.type(line))
            self.inputs.append(node)
            self.values[name] = node[0]
        elif word == "return":
            self.returned = self.outputs(line)
        else:
            raise IRError(f"expected input, a node or return, found {word!r}")

    def value(self, line: _Line) -> Value:
        name = line.name()
        if name not in self.values:
            raise IRError(f"there is no value {name} above")
        return self.values[name]

    def node(self, line: _Line) -> None:
        results = line.list(line.name, "=")
        line.expect("=")
        op = line.name()
        if op not in OPS:
            raise IRError(f"there is no op {op}")
        line.expect("(")
        operands = line.list(lambda: self.value(line), ";", ")")
        attrs = dict(line.list(lambda: self.attribute(line), ")")) if line.accept(";") else {}
        line.expect(")")
        line.expect(":")
        types = tuple(line.list(lambda: self.type(line), "#"))
        if isinstance(attrs.get("value"), list):
            attrs["value"] = np.array(attrs["value"], numpy_dtype(attrs["type"].dtype)).tobytes()
        node = make(OPS[op], *operands, origin=self.origin(line), **attrs)
        if node.types != types or len(results) != len(types):
            raise IRError(f"{op} gives {', '.join(map(str, node.types))}")
        self.values.update(zip(results, node.values))

    def attribute(self, line: _Line) -> tuple[str, Any]:
        name = line.name()
        line.expect("=")
        return name, self.attribute_value(line)

    def attribute_value(self, line: _Line) -> Any:
        if line.kind == "string":
            return line.name()
        if line.accept("@"):
            return self.graph(line)
        for opening, closing, made in (("(", ")", tuple), ("[", "]", list)):
            if line.accept(opening):
                items = made(line.list(lambda: self.attribute_value(line), closing))
                line.expect(closing)
                return items
        if line.kind == "word" and line.next in DTYPES:
            return self.type_or_dtype(line)
        if line.accept("hex"):
            return bytes.fromhex(line.name())
        text = line.until(",", ")", "]")
        sign, word = (-1, text[2:]) if text.startswith("- ") else (1, text)
        if word in _CONSTANTS:
            return sign * float("inf") if word == "inf" else _CONSTANTS[word]
        if re.fullmatch(r"\d+(\.\d*)?(e[+-]?\d+)?", word) and not word.isdigit():
            return sign * float(word)
        return parse_dim(text, self.symbols)

    def type_or_dtype(self, line: _Line) -> Any:
        start = line.at
        dtype = DTYPES[line.take()]
        if line.next != "[":
            return dtype
        line.at = start
        return self.type(line)

    def type(self, line: _Line) -> Type:
        name = line.name()
        if name not in DTYPES:
            raise IRError(f"there is no dtype {name}")
        line.expect("[")
        shape = line.list(lambda: parse_dim(line.until(",", "]"), self.symbols), "]")
        line.expect("]")
        return Type(tuple(shape), DTYPES[name], line.name() if line.accept("@") else "")

    def origin(self, line: _Line) -> Origin:
        if not line.accept("#"):
            return Origin()
        path = line.name()
        return Origin(path, frozenset(line.list(line.name, "") if line.accept("<-") else ()))

    def outputs(self, line: _Line) -> tuple[tuple[str, ...], tuple[Value, ...]]:
        """Names, which either all outputs have or none, and values."""

        def output() -> tuple[str | None, Value]:
            start = line.at
            name = line.name()
            if line.accept("="):
                return name, self.value(line)
            line.at = start
            return None, self.value(line)

        pairs = line.list(output, "")
        return tuple(name for name, _ in pairs if name is not None), tuple(value for _, value in pairs)

    def close(self) -> None:
        if self.returned is None:
            raise IRError("the graph has no return")
        if self.open in self.graphs:
            raise IRError(f"there are two graphs {self.open}")
        names, values = self.returned
        self.graphs[self.open] = Graph(self.open, tuple(self.inputs), values, names)
        self.open = ""

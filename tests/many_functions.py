"""Many small functions through the interpreter and through C, a hundred to a library: so tests compile little."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from inferc.backends.c import target, toolchain
from inferc.compiler.pipeline import run_passes
from inferc.errors import InfercError
from inferc.ir.graph import Graph, IRError, Module, make_input, rebuild
from inferc.ir.interpret import interpret
from inferc.ir.types import array_dtype

from . import c_programs

ENTRIES = 100  # functions in one library
_NUMBERS = itertools.count()  # of libraries: a loaded one is never overwritten


@dataclass(frozen=True)
class Function:
    """A module with the entry "run", and arrays for its inputs."""

    name: str
    module: Module
    given: Mapping[str, np.ndarray]


def run_functions(functions: Sequence[Function]) -> Iterator[tuple[str, str, dict[str, np.ndarray] | str]]:
    """(name, "interpreter" or "C", outputs by name, or "not supported: …") of every function."""
    for f in functions:
        yield f.name, "interpreter", interpret(f.module, f.given, entry="run")
    for start in range(0, len(functions), ENTRIES):
        for name, results in _in_c(functions[start : start + ENTRIES]):
            yield name, "C", results


def _named_apart(graph: Graph, prefix: str) -> Graph:
    """The graph with other names of weights, so that those of several models can lie in one file."""
    new = {n: make_input(prefix + n.attr("name"), "weight", n.types[0]) for n in graph.inputs_of("weight")}
    return rebuild(graph, lambda node, operands: None, new)


def _in_c(part: Sequence[Function]) -> Iterator[tuple[str, dict[str, np.ndarray] | str]]:
    """The functions as entries of one library."""
    entries = {f"entry{i}": _named_apart(f.module.entries["run"], f"{i}.") for i, f in enumerate(part)}
    weights = {f"{i}.{name}": w for i, f in enumerate(part) for name, w in f.module.weights.items()}
    try:
        module = run_passes(Module(entries, weights), target.get("native").ir)
        built = c_programs.build(module, "native")
        path = c_programs.FOLDER / f"functions-{next(_NUMBERS)}.so"
        toolchain.compile_program(built, path, extra=("-O1",))
    except (IRError, InfercError) as error:
        if len(part) == 1:
            yield part[0].name, f"not supported: {error}"
            return
        half = len(part) // 2
        yield from _in_c(part[:half])
        yield from _in_c(part[half:])
        return
    library = c_programs.Library(built, path, c_programs.packed_weights(module, built), 1)
    for entry, f in zip(entries, part, strict=True):
        graph = module.entries[entry]
        arrays = [np.ascontiguousarray(f.given[n.attr("name")]) for n in graph.inputs_of("arg")]
        results = [np.full(v.type.sizes, 0, array_dtype(v.type)) for v in graph.outputs]
        status = c_programs.run_function(library, entry, {}, arrays, results)
        assert status == c_programs.OK, (f.name, status)
        yield f.name, dict(zip(graph.output_names, results))

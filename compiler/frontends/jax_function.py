"""Functions of JAX as models: plain jnp, Flax, Equinox, whatever `jax.jit` takes.

    Function(fn, *examples, weights=params, dynamic={"batch": (1, 64)})

An example says the shape and dtype of an argument: an array, a `jax.ShapeDtypeStruct`, a number, or text such as
"float32[batch, 128]", alone or in pytrees. A word in a shape is a dimension that is known at run time.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...errors import InfercError
from ...ir.graph import Graph, IRError, Module, Weight
from ...ir.types import DTYPES, Sym, Type, parse_dim, symbol, symbols, unsized
from ..primitives_random import is_key
from ..signature import described
from ..source import Kind, weight_facts
from ..tracing import Input, trace, user_line

Bounds = Mapping[str, tuple[int, int]]
UNBOUNDED = (1, 1 << 16)  # of a dimension whose bounds are not given
_NAMED = {**DTYPES, **{d.numpy: d for d in DTYPES.values() if d.numpy}, "bfloat16": DTYPES["bf16"]}
_PARTS = {"complex64": DTYPES["f32"], "complex128": DTYPES["f64"]}  # complex numbers lie as pairs of these
_SPEC = re.compile(r"\s*([A-Za-z]\w*)\s*\[(.*)\]\s*", re.DOTALL)


@dataclass(frozen=True)
class Function:
    """A function with examples of its arguments: a source of the driver.

    `fn(*arguments)` or, where `weights` is given, `fn(weights, *arguments)`: leaves of `weights` that are arrays become
    weights of the model, others stay what they are. `dynamic` has least and most of the dimensions that shapes name.
    """

    fn: Callable[..., Any]
    examples: tuple[Any, ...]
    weights: Any = None
    dynamic: Bounds = field(default_factory=dict)
    name: str = ""
    path: Path | None = None
    kind: Kind = "function"
    architecture: str = "jax"
    trained: int = 0

    def build(self, context: int, chunk: int) -> Module:
        """The traced module, with the one entry `run`.

        Raises InfercError, naming the user's line, for what cannot be compiled.
        """
        return self._traced[0]

    def tokenizer(self) -> None:
        return None

    def facts(self) -> dict[str, Any]:
        module, tree, of_pairs = self._traced
        signature = described(module.entries["run"], (), *of_pairs) | tree
        return weight_facts(module.weights.values()) | {"signature": signature}

    @cached_property
    def _traced(self) -> tuple[Module, dict[str, Any], tuple[set[str], set[int]]]:
        """The module, how its flat inputs and outputs are arranged for callers, and which of them are complex."""
        name = self.name
        arguments, trees, pairs_in = self._arguments()
        pairs_out: set[int] = set()
        weights, rebuild = _weight_leaves(self.weights)
        taken = {a.name for a in arguments}
        inputs = [*arguments, *(Input(_free(n, taken), "weight", t, as_is=True) for n, t, _ in weights)]
        named = zip((i.name for i in inputs[len(arguments) :]), weights)
        sources = {n: Weight(n, t, partial(np.asarray, array)) for n, (_, t, array) in named}
        shape: list[Any] = []

        def flat(*values: Any) -> list[Any]:
            given = iter(_whole(v) if a.name in pairs_in else v for a, v in zip(arguments, values))
            made = [_arranged(tree, given) for tree in trees.values()]
            lead = [rebuild(values[len(arguments) :])] if self.weights is not None else []
            result = self.fn(*lead, *made)
            shape.append(_shape_of(result))
            outputs = list(map(jnp.asarray, jax.tree.leaves(result)))
            pairs_out.update(i for i, x in enumerate(outputs) if jnp.iscomplexobj(x))
            return [jnp.stack([x.real, x.imag], -1) if i in pairs_out else x for i, x in enumerate(outputs)]

        try:
            graph, constants = trace(flat, inputs, name="run")
        except IRError as error:
            raise InfercError(f"{name}: {error}") from error
        except REFUSED as error:
            dims = {s.name for i in inputs for d in i.type.shape for s in symbols(d)}
            raise InfercError(f"{name}: {_advice(error, dims)}") from error
        names = _output_names(shape[-1])
        graph = Graph("run", graph.inputs, graph.outputs, tuple(names))
        module = Module({"run": graph}, sources | constants)
        tree = {"arguments": {k: _numbered(t, c) for c in [itertools.count()] for k, t in trees.items()},
                "result": _numbered(shape[-1], itertools.count())}  # fmt: skip
        return module, tree, (pairs_in, pairs_out)

    def _arguments(self) -> tuple[list[Input], dict[str, Any], set[str]]:
        """The array arguments, flat and named, the structure of each parameter's value, and which are complex."""
        symbols_known: dict[str, Sym] = {n: Sym(n, *_checked_bounds(n, b)) for n, b in self.dynamic.items()}
        trees = {n: _shape_of(e) for n, e in zip(self._parameters(), self.examples)}
        leaves = [(name, leaf) for n, tree in trees.items() for name, leaf in _named_leaves(tree, n)]
        found = [_spec(name, leaf, symbols_known) for name, leaf in leaves]
        spelled = [t for t, _ in found]
        used = {s.name for t in spelled for d in t.shape for s in symbols(d)}
        if unused := [n for n in self.dynamic if n not in used]:
            spelled = _leading_axis(unused, leaves, spelled, symbols_known)
        if missing := unsized([d for t in spelled for d in t.shape]):
            raise InfercError(
                f"{self.name}: no argument has an axis that is {missing[0]} alone or a multiple of it: give "
                "one of the arguments such an axis"
            )
        taken: set[str] = set()
        inputs = [Input(_free(name, taken), "arg", Type((*t.shape, 2), t.dtype) if of_pairs else t)
                  for (name, _), t, (_, of_pairs) in zip(leaves, spelled, found)]  # fmt: skip
        return inputs, trees, {i.name for i, (_, of_pairs) in zip(inputs, found) if of_pairs}

    def _parameters(self) -> list[str]:
        """A name for each example: that of the function's parameter where Python tells it."""
        try:
            found = list(inspect.signature(self.fn).parameters.values())
        except (TypeError, ValueError):
            found = []
        positional = [p.name for p in found if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        names = positional[self.weights is not None :][: len(self.examples)]
        return names + [f"arg{i}" for i in range(len(names), len(self.examples))]


def function(fn: Callable[..., Any], *examples: Any, weights: Any = None, dynamic: Bounds | None = None,
             name: str | None = None) -> Function:  # fmt: skip
    """A function to compile. Raises InfercError for what is no function, and for bad bounds of a dimension."""
    if not callable(fn):
        raise InfercError(f"a {type(fn).__name__} cannot be compiled: give a path, or a function of JAX arrays")
    bounded = {n: _checked_bounds(n, b) for n, b in (dynamic or {}).items()}
    known = getattr(fn, "__name__", None) or getattr(getattr(fn, "func", fn), "__name__", None) or type(fn).__name__
    return Function(fn, examples, weights, bounded, name or known.strip("<>"))


def opened(source: Any, examples: tuple[Any, ...], weights: Any, dynamic: Bounds | None) -> Function:
    """What `inferc.compile` was given: a function, or what `inferc.function` made."""
    if isinstance(source, Function):
        if examples or weights is not None or dynamic:
            raise InfercError(f"{source.name} has its examples, weights and dynamic already: pass it alone")
        return source
    return function(source, *examples, weights=weights, dynamic=dynamic)


# ---- what a file holds ----------------------------------------------------------------------------------------------


def load(path: Path) -> Function:
    """The function that "FILE.py:NAME" names, or what `inferc.function` made there under that name.

    A plain function takes its examples from its annotations: `def f(x: "float32[batch, 4]")`. Raises InfercError for a
    file that cannot be run, a missing name, and a parameter without a shape.
    """
    file, _, name = str(path).rpartition(":")
    if not Path(file).is_file():
        raise InfercError(f"there is no file {file}: name a function as FILE.py:NAME")
    found = _run_file(Path(file)).get(name)
    if found is None:
        raise InfercError(f"{file} has no {name!r}: name a function, or what inferc.function made, as FILE.py:NAME")
    made = found if isinstance(found, Function) else function(found, *_annotated(found, name), name=name)
    return Function(made.fn, made.examples, made.weights, made.dynamic, made.name if made is not found else name,
                    Path(file))  # fmt: skip


def _run_file(file: Path) -> dict[str, Any]:
    import runpy
    import sys

    sys.path.insert(0, str(file.parent.resolve()))
    try:
        return runpy.run_path(str(file), run_name=file.stem)
    except SyntaxError as error:
        raise InfercError(f"{file}:{error.lineno}: {error.msg}") from error
    except ImportError as error:
        raise InfercError(f"{file} cannot be run: {error}") from error
    finally:
        sys.path.pop(0)


def _annotated(fn: Any, name: str) -> Iterator[str]:
    if not callable(fn):
        raise InfercError(f"{name} is a {type(fn).__name__}: it must be a function, or what inferc.function makes")
    for parameter in inspect.signature(fn).parameters.values():
        text = parameter.annotation
        if isinstance(text, str) and text[:1] in "'\"":
            text = ast.literal_eval(text)  # annotations kept as text
        if not isinstance(text, str) or not _SPEC.fullmatch(text):
            raise InfercError(
                f"{name}: the parameter {parameter.name} has no shape: annotate it, {parameter.name}: "
                f"\"float32[batch, 4]\", or write MODEL = inferc.function({name}, examples…) and compile that"
            )
        yield text


# ---- examples -------------------------------------------------------------------------------------------------------


def _checked_bounds(name: str, given: Any) -> tuple[int, int]:
    pair = (given, given) if isinstance(given, int) else tuple(given)
    fine = len(pair) == 2 and all(isinstance(b, int) for b in pair) and 1 <= pair[0] <= pair[1] < 1 << 31
    if not fine or not name.isidentifier():
        raise InfercError(f"dynamic: {name!r} needs a name and two bounds, 1 <= least <= most, not {given!r}")
    return pair


def _spec(name: str, leaf: Any, known: dict[str, Sym]) -> tuple[Type, bool]:
    """The type that an example stands for, and whether it is that of each part of complex numbers. Names of dimensions
    that are new come into `known`."""
    if isinstance(leaf, str):
        found = _SPEC.fullmatch(leaf)
        if found is None or found[1] not in {*_NAMED, *_PARTS}:
            raise InfercError(f"{name}: {leaf!r} is no example: write a dtype and a shape, as in \"float32[batch, 4]\"")
        narrow, sizes = found[1], [d for d in found[2].split(",") if d.strip()]
    else:
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            leaf = _number(name, leaf)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise InfercError(f"{name}: a random key is given as its data: pass jax.random.key_data(key), and wrap it "
                              "in the function by jax.random.wrap_key_data")  # fmt: skip
        narrow = str(jax.dtypes.canonicalize_dtype(leaf.dtype))
        if narrow not in {*_NAMED, *_PARTS}:
            raise InfercError(f"{name}: arrays of {leaf.dtype} cannot be compiled: use floats, integers or bool")
        sizes = list(map(str, leaf.shape))
    for word in {w for d in sizes for w in re.findall(r"[A-Za-z_]\w*", d)} - {"floordiv", "mod", "min", "max"}:
        known.setdefault(word, Sym(word, *UNBOUNDED))
    try:
        return Type(tuple(parse_dim(d, known) for d in sizes), {**_NAMED, **_PARTS}[narrow]), narrow in _PARTS
    except ValueError as error:
        raise InfercError(f"{name}: {error}") from error


def _number(name: str, leaf: Any) -> np.ndarray:
    if isinstance(leaf, (bool, int, float, complex)):
        return np.asarray(jnp.asarray(leaf))
    raise InfercError(
        f"{name}: a {type(leaf).__name__} is no example of an array: give an array, a jax.ShapeDtypeStruct or text "
        'such as "float32[batch, 4]"; bind values that stay the same with functools.partial'
    )


def _leading_axis(names: Sequence[str], leaves: Sequence[tuple[str, Any]], types: Sequence[Type],
                  known: Mapping[str, Sym]) -> list[Type]:  # fmt: skip
    """A dimension that no shape names is the first axis of every argument; the examples must agree on its size."""
    if len(names) > 1:
        raise InfercError(
            f"dynamic: the shapes do not say which axes are {' and '.join(names)}: give examples as text, as in "
            '"float32[batch, 4]"'
        )
    sizes = {t.shape[0] for t in types if t.rank}
    if len(sizes) != 1:
        raise InfercError(
            f"dynamic: {names[0]} cannot be the first axis of every argument, whose sizes are "
            f"{', '.join(map(str, sizes)) or 'none'}: give examples as text, as in \"float32[{names[0]}, 4]\""
        )
    s = known[names[0]]
    return [Type((symbol(s.name, s.lo, s.hi), *t.shape[1:]), t.dtype) if t.rank else t for t in types]


def _free(name: str, taken: set[str]) -> str:
    """The name, with a number where it is taken; it is taken from now on."""
    names = itertools.chain([name], (f"{name}.{i}" for i in itertools.count(2)))
    found = next(n for n in names if n not in taken)
    taken.add(found)
    return found


# ---- weights --------------------------------------------------------------------------------------------------------


def _weight_leaves(tree: Any) -> tuple[list[tuple[str, Type, Any]], Callable[[Sequence[Any]], Any]]:
    """(name, type, array) of the arrays in a pytree, and what puts values in their place.

    Leaves that are no arrays, such as the functions in a module of Equinox, stay, and so do random keys, which are in
    the state of Flax's dropout.
    """
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    found, places, complex_places = [], [], set[int]()
    for i, (path, leaf) in enumerate(paths):
        if not isinstance(leaf, (np.ndarray, np.generic, jax.Array)) or is_key(leaf.dtype):
            continue
        name = jax.tree_util.keystr(path, simple=True, separator=".").replace("..", ".").strip(".") or "weights"
        array = np.asarray(leaf)
        narrow = str(jax.dtypes.canonicalize_dtype(array.dtype))
        if narrow not in {*_NAMED, *_PARTS}:
            raise InfercError(f"the weight {name} has the dtype {array.dtype}, which cannot be compiled")
        dtype = {**_NAMED, **_PARTS}[narrow]
        array = array.astype(narrow, copy=False)
        if narrow in _PARTS:
            array = np.stack([array.real, array.imag], -1)
            complex_places.add(i)
        found.append((name, Type(array.shape, dtype), array.view(np.uint16) if dtype.name == "bf16" else array))
        places.append(i)
    leaves = [leaf for _, leaf in paths]

    def rebuild(values: Sequence[Any]) -> Any:
        full = list(leaves)
        for i, value in zip(places, values, strict=True):
            full[i] = _whole(value) if i in complex_places else value
        return jax.tree.unflatten(structure, full)

    return found, rebuild


def _whole(pairs: Any) -> Any:
    """Complex numbers of pairs in a last axis."""
    return jax.lax.complex(pairs[..., 0], pairs[..., 1])


# ---- structures -----------------------------------------------------------------------------------------------------
# How arrays are arranged in tuples, lists, dicts and objects: ("leaf", x), ("none",), (kind, children, …).


@dataclass(frozen=True)
class Node:
    """A container: `kind` is "tuple", "list", "dict", "namedtuple" or "object", its children by key, and what makes
    it anew from children."""

    kind: str
    children: Mapping[Any, Any]
    make: Callable[[Sequence[Any]], Any]
    name: str = ""


@dataclass(frozen=True)
class Leaf:
    value: Any


def _shape_of(value: Any) -> Node | Leaf:
    """The structure of a pytree."""
    children, structure = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda x: x is not value)
    if len(children) == 1 and not children[0][0]:
        return Leaf(value)
    keys = [path[0] for path, _ in children]

    def make(values: Sequence[Any]) -> Any:
        return jax.tree.unflatten(structure, values)

    by_key = {getattr(k, "name", getattr(k, "key", getattr(k, "idx", i))): _shape_of(v)
              for i, (k, (_, v)) in enumerate(zip(keys, children))}  # fmt: skip
    if value is None:
        return Node("none", {}, make)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return Node("namedtuple", by_key, make, type(value).__name__)
    kind = next((kind for kind, cls in (("tuple", tuple), ("list", list), ("dict", dict)) if type(value) is cls), None)
    return Node(kind or "object", by_key, make, "" if kind else type(value).__name__)


def _named_leaves(tree: Node | Leaf, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Leaf):
        yield name, tree.value
        return
    for key, child in tree.children.items():
        yield from _named_leaves(child, f"{name}.{key}")


def _arranged(tree: Node | Leaf, values: Iterator[Any]) -> Any:
    """The structure with its leaves replaced, in order."""
    if isinstance(tree, Leaf):
        return next(values)
    return tree.make([_arranged(child, values) for child in tree.children.values()])


def _numbered(tree: Node | Leaf, count: Iterator[int]) -> Any:
    """The structure as JSON, its leaves numbers in order: what `runtime.function` reads."""
    if isinstance(tree, Leaf):
        return next(count)
    for key in tree.children:
        if not isinstance(key, (str, int)):
            raise InfercError(f"keys of dicts must be text or numbers in what a compiled function takes, not {key!r}")
    keys = list(tree.children)
    return {"kind": tree.kind, "name": tree.name, "keys": keys,
            "children": [_numbered(child, count) for child in tree.children.values()]}  # fmt: skip


def _output_names(tree: Node | Leaf) -> list[str]:
    """A name for each output: "out", a dict's key, or "out.0.mean" for what has no better one."""
    names = []
    taken: set[str] = set()
    for name, _ in _named_leaves(tree, "out"):
        short = name.removeprefix("out.")
        names.append(_free(name if short[:1].isdigit() or not short else short, taken))
    return names


# ---- errors ---------------------------------------------------------------------------------------------------------

# What JAX raises for functions that no compiler can take, and what to do instead.
ADVICE: tuple[tuple[type[Exception], str], ...] = (
    (jax.errors.TracerBoolConversionError,
     "the value of an array decides which Python code runs; use jnp.where, jax.lax.cond or jax.lax.while_loop"),
    (jax.errors.NonConcreteBooleanIndexError,
     "a shape depends on the values of a boolean mask; use jnp.where, or jnp.nonzero with size="),
    (jax.errors.TracerIntegerConversionError,
     "the value of an array is used as a Python integer; index with jnp, or bind it with functools.partial"),
    (jax.errors.TracerArrayConversionError,
     "an array is given to NumPy, which cannot be traced; use jax.numpy"),
    (jax.errors.ConcretizationTypeError,
     "a shape or a Python number depends on the values of an array; make it a constant, or give size="),
    (jax.errors.UnexpectedTracerError,
     "a traced array was stored outside of the function, a side effect; return it instead"),
)  # fmt: skip
_SYMBOLIC = jax.errors.InconclusiveDimensionOperation
REFUSED: tuple[type[Exception], ...] = (
    *(kind for kind, _ in ADVICE), _SYMBOLIC, TypeError, ValueError, NotImplementedError, IndexError, AttributeError,
    NameError,
)  # fmt: skip


def _advice(error: Exception, dims: Collection[str]) -> str:
    """What is wrong, where in the user's source, and a way out; `dims` are the dimensions that are dynamic."""
    where = user_line(error.__traceback__)
    at = f" (at {where})" if where else ""
    for kind, advice in ADVICE:
        if isinstance(error, kind):
            return f"{advice}{at}"
    text = " ".join(str(error).split())
    named = "mod(" in text and any(re.search(rf"\b{re.escape(n)}\b", text) for n in dims)
    if isinstance(error, _SYMBOLIC) or "symbolic" in text or "_DimExpr" in text or named:
        return f"a dimension that is dynamic must be fixed here{at}: {_short(text)}; give it a number in the example"
    return f"the function cannot be traced{at}: {_short(text)}"


def _short(text: str, width: int = 200) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"

"""Functions of JAX as artifacts: examples, weights, structures, dimensions, and what is refused, with a way out."""

from __future__ import annotations

import ctypes
import re
from collections import namedtuple
from ctypes import POINTER, byref, c_int32, c_void_p
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from jax.experimental import checkify
from typer.testing import CliRunner

import inferc
from inferc.compiler.cli import app
from inferc.compiler.frontends import jax_function
from inferc.compiler.primitives_listed import BEGIN, END, listed
from inferc.ir.interpret import interpret
from inferc.runtime.function import Function

pytestmark = pytest.mark.usefixtures("quick_compiler")

Pair = namedtuple("Pair", "mean count")
PARAMS = {"dense": {"kernel": np.eye(4, 3, dtype="f4"), "bias": np.arange(3, dtype="f4")}, "scale": np.float32(2)}


def structured(params: Any, x: Any, extra: Any) -> Any:
    y = x @ params["dense"]["kernel"] + params["dense"]["bias"]
    shifted = y * params["scale"] + extra["shift"][0]
    return {"rows": shifted, "sum": Pair(shifted.mean(0), x.shape[0] * 2), "none": None, "list": [y, (extra["flag"],)]}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("function") / "structured.inferc"
    inferc.compile(structured, "float32[batch, 4]", {"shift": [1.5], "flag": "bool[]"}, weights=PARAMS,
                   dynamic={"batch": (1, 8)}, output=path)  # fmt: skip
    return path


@pytest.fixture
def function(compiled: Path) -> Any:
    with inferc.load(compiled) as loaded:
        yield loaded


def test_structures_go_in_and_out(function: Function) -> None:
    x, extra = np.random.default_rng(0).random((5, 4), np.float32), {"shift": [0.25], "flag": True}
    expected = structured(PARAMS, jnp.asarray(x), {"shift": [jnp.float32(0.25)], "flag": jnp.asarray(True)})
    for got in (function(x, extra), function(extra=extra, x=x)):
        assert str(jax.tree.structure(got)) == str(jax.tree.structure(expected)) and got["sum"]._fields == Pair._fields
        for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, 1e-6, 1e-6)


def test_the_signature_names_everything(function: Function) -> None:
    assert [(p.name, str(p)) for p in function.inputs] == [
        ("x", "f32[batch, 4]"), ("extra.flag", "bool[]"), ("extra.shift.0", "f32[]")]  # fmt: skip
    assert [(p.name, str(p)) for p in function.outputs] == [
        ("list.0", "f32[batch, 3]"), ("list.1.0", "bool[]"), ("rows", "f32[batch, 3]"), ("sum.mean", "f32[3]"),
        ("sum.count", "i32[]")]  # fmt: skip
    tensors = {t["name"] for t in function.artifact.manifest["tensors"]}
    assert tensors == {"dense.kernel", "dense.bias", "scale"}


X = np.zeros((2, 4), np.float32)
WRONG = [
    ((X[:, :3], {"shift": [0.0], "flag": True}), r"x must be f32\[batch, 4\] with batch = 2, not of shape \[2, 3\]"),
    ((np.zeros((9, 4), "f4"), {"shift": [0.0], "flag": True}), "batch from 1 to 8, not 9"),
    ((X[0], {"shift": [0.0], "flag": True}), r"x must be f32\[batch, 4\], not of shape \[4\]"),
    ((X.astype("i4"), {"shift": [0.0], "flag": True}), "x must be float32, not int32: convert it with astype"),
    ((X, {"shift": [0.0]}), "extra must be a dict with flag, shift, not a dict"),
    ((X, {"shift": (0.0, 1.0), "flag": True}), "extra.shift must be a list of 1, not a tuple"),
    ((X, {"shift": [object()], "flag": True}), "extra.shift.0 must be float32, not object"),
    ((X,), r"structured takes \(x, extra\): no value for extra"),
    ((X, {}, X), r"structured takes \(x, extra\): 3 values"),
]


@pytest.mark.parametrize("arguments, message", WRONG, ids=[m for _, m in WRONG])
def test_wrong_arguments_are_named(function: Function, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(inferc.InfercError, match=message):
        function(*arguments)


def test_a_closed_function_says_so(compiled: Path) -> None:
    function = inferc.load(compiled)
    function.close()
    with pytest.raises(inferc.InfercError, match="is closed"):
        function(X, {"shift": [0.0], "flag": True})


def test_the_described_interface_in_c(function: Function) -> None:
    """Names, dtypes and sizes are in the library; shapes are computed, and checked, without data."""
    c, model = function._engine._model.c, function._engine._model.handle
    signature = c.describe_run().contents
    assert (signature.inputs, signature.outputs) == (3, 5)
    x, rows = signature.input[0], signature.output[2]
    assert (x.name, x.dtype, [(x.axes[d].size, x.axes[d].least, x.axes[d].most) for d in range(x.rank)]) == (
        b"x", 11, [(b"batch", 1, 8), (b"4", 4, 4)])  # fmt: skip
    assert rows.name == b"rows" and rows.axes[0].size == b"batch"
    library = function._engine._model._library._library
    array = function._engine._struct
    given, made = (array * 3)(), (array * 5)()
    given[0].rank, given[0].dims[:] = 2, (7, 4)
    shapes = library.model_run_shapes
    shapes.argtypes, shapes.restype = [POINTER(array), POINTER(array)], c_int32
    assert shapes(given, made) == 0 and list(made[2].dims) == [7, 3] and made[3].rank == 1
    workspace = np.zeros(1 << 12, np.uint8)
    workspace = workspace[-workspace.ctypes.data % 64 :]
    made[2].dims[0] = 6
    assert c.run(model, workspace.ctypes.data, workspace.size, given, made) == 1  # INVALID: not the shapes it has
    given[0].dims[0] = 9
    assert shapes(given, made) == 1 and c.run_bytes(model, given) == 0
    assert ctypes.sizeof(array) == ctypes.sizeof(c_void_p) + 3 * ctypes.sizeof(c_int32) + 4 and byref(given)


def test_an_axis_that_is_a_multiple_of_a_name(tmp_path: Path) -> None:
    """The name's size is told by it, in Python, in C and in the interpreter."""
    source = jax_function.function(lambda x, y: (x[::2] + y.shape[0], y), "f32[2*n]", "f32[3*n + 1]",
                                   dynamic={"n": (1, 9)})  # fmt: skip
    x, y = np.arange(4, dtype=np.float32), np.ones(7, np.float32)
    meant = interpret(source.build(0, 0), {"x": x, "y": y}, entry="run")
    np.testing.assert_array_equal(next(iter(meant.values())), [7, 9])
    with inferc.compile(source, output=tmp_path / "n.inferc") as function:
        np.testing.assert_array_equal(function(x, y)[0], [7, 9])
        for shapes in ((3, 7), (4, 8), (20, 31)):
            with pytest.raises(inferc.InfercError, match="must be"):
                function(*(np.zeros(s, np.float32) for s in shapes))
        array, library = function._engine._struct, function._engine._model._library._library
        given, made = (array * 2)(), (array * 2)()
        for sizes, status in (((4, 7), 0), ((5, 7), 1), ((4, 8), 1)):
            for a, n in zip(given, sizes):
                a.rank, a.dims[0] = 1, n
            assert library.model_run_shapes(given, made) == status
        assert given[0].dims[0] == 4 and made[0].dims[0] == 2


# ---- examples, dimensions, dtypes -----------------------------------------------------------------------------------


def traced_types(*examples: Any, fn: Any = lambda x, *rest: x, **options: Any) -> list[str]:
    source = jax_function.function(fn, *examples, **options)
    return [str(n.types[0]) for n in source.build(0, 0).entries["run"].inputs_of("arg")]


def test_ways_to_give_examples() -> None:
    assert traced_types(np.zeros((2, 3))) == ["f32[2, 3]"]
    assert traced_types(np.zeros(3, np.int64), True, 1, 2.0) == ["i32[3]", "bool[]", "i32[]", "f32[]"]
    assert traced_types(jax.ShapeDtypeStruct((2,), jnp.bfloat16)) == ["bf16[2]"]
    assert traced_types("float16[n, 2*n + 1, 4]", "i8[n]") == ["f16[n, 2*n + 1, 4]", "i8[n]"]
    symbolic = jax.export.symbolic_shape("b, 5")
    assert traced_types(jax.ShapeDtypeStruct(symbolic, jnp.float32)) == ["f32[b, 5]"]


def test_a_dimension_that_no_shape_names_is_the_first_axis() -> None:
    assert traced_types(X, (X, 1.0), dynamic={"batch": (1, 64)}) == ["f32[batch, 4]", "f32[batch, 4]", "f32[]"]
    with pytest.raises(inferc.InfercError, match="batch cannot be the first axis of every argument, whose sizes are"):
        traced_types(X, X[0], dynamic={"batch": (1, 64)})


def test_halves_and_wide_numbers() -> None:
    def run(x: Any, n: Any) -> Any:
        return x * 2 + n.astype(jnp.bfloat16), n

    with inferc.compile(run, "bfloat16[3]", "int32[3]") as compiled:
        values, n = np.array([1.5, -2.0, 3.0], np.float32), np.array([1, 2, 3])
        for x in (values, np.asarray(jnp.asarray(values, jnp.bfloat16))):
            got, back = compiled(x, n)
            assert got.dtype == np.float32 and got.tolist() == [4.0, -2.0, 9.0] and back.dtype == np.int32
        with pytest.raises(inferc.InfercError, match="n must be int32: some of its values need int64"):
            compiled(values, np.array([1, 2, 1 << 40]))


def waves(weights: Any, x: Any, turn: Any) -> Any:
    decayed, _ = jax.lax.scan(lambda c, row: (c * weights["pole"] + row, None), x[0], x)
    return {"turned": x * turn, "size": jnp.abs(x), "decayed": decayed}


def test_complex_numbers_go_in_and_out() -> None:
    rng = np.random.default_rng(0)
    weights = {"pole": np.array(0.5 + 0.5j, np.complex64)}
    x = (rng.standard_normal((3, 8)) + 1j * rng.standard_normal((3, 8))).astype(np.complex64)
    with inferc.compile(waves, "complex64[n, 8]", 1j, weights=weights) as compiled:
        assert [str(p) for p in (*compiled.inputs, compiled.outputs[0])] == ["c64[n, 8]", "c64[]", "c64[8]"]
        for given in (x, x.astype(np.complex128), x.real):
            got, expected = compiled(given, 2j), waves(weights, jnp.asarray(given, jnp.complex64), 2j)
            for name in expected:
                assert got[name].dtype == expected[name].dtype, name
                np.testing.assert_allclose(got[name], expected[name], 1e-5, 1e-5)
        with pytest.raises(inferc.InfercError, match=r"x must be c64\[n, 8\] with n = 3, not of shape \[3, 4\]"):
            compiled(x[:, :4], 2j)
        with pytest.raises(inferc.InfercError, match="x must be complex64, not bool"):
            compiled(x == 0, 2j)


def of_every_kind(x: Any) -> list[Any]:
    if x.dtype == bool:
        return [x, ~x, x & x[::-1], x.sum(0), jnp.any(x, 0), jnp.where(x, 1, 2), x.astype(jnp.int8)]
    found = [x, x + x, x * x[::-1], x.sum(0), x @ x.T, x[1:, ::2], jnp.concatenate([x, x]), x == x[::-1], jnp.pad(x, 1),
             x.reshape(-1)[jnp.array([3, 0, -1])], jax.lax.scan(lambda c, y: (c + y, c), x[0], x), jnp.sort(x, 0)]
    if not jnp.iscomplexobj(x):
        found += [jnp.argmax(x, 1), x.max(0), jnp.maximum(x, x[::-1]), jnp.cumsum(x, 1), -x, x.astype(jnp.float32)]
    if jnp.issubdtype(x.dtype, jnp.integer):
        return [*found, x << 1, x >> 1, x // 3, x % 7, ~x, x ^ x[::-1], x.astype(bool)]
    found += [jnp.exp(x), jnp.sin(x), jnp.tanh(x), x / 2, x**2, x.mean()]
    if x.dtype.itemsize >= 8:  # complex numbers, and f64
        inverse = jnp.arcsin, jnp.arccos, jnp.arctan, jnp.arcsinh, jnp.arctanh, jnp.log1p
        found += [f(x / 4) for f in inverse]
        found += [jnp.cumprod(x, 1), jnp.tan(x), jnp.exp2(x), jnp.fft.fft(x), jnp.sinh(9 * x),
                  jnp.linalg.inv(x[:, :3] + 4 * jnp.eye(3, dtype=x.dtype))]  # fmt: skip
    return [*found, jnp.cbrt(x), jnp.arctan2(x, x[::-1])] if x.dtype == jnp.float64 else found


KINDS = ("bool int8 uint8 int16 uint16 int32 uint32 float16 bfloat16 float32 complex64",
         "int64 uint64 float64 complex128")  # fmt: skip
NEAR = {"bfloat16": 2e-2, "float16": 4e-3, "float64": 1e-12, "complex128": 1e-12}


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["c", "xla"])
@pytest.mark.parametrize("names", KINDS, ids=["32", "64"])
def test_dtypes_go_in_and_out(names: str, backend: str) -> None:
    rng = np.random.default_rng(0)

    def made(name: str) -> Any:
        if name[0] in "iu":
            return rng.integers(0, 100, (3, 4)).astype(name)
        x = rng.standard_normal((3, 4)) + (1j * rng.standard_normal((3, 4)) if name[0] == "c" else 0)
        return x > 0 if name == "bool" else x.astype(ml_dtypes.bfloat16 if name == "bfloat16" else name)

    def run(arrays: Any) -> Any:
        return {name: of_every_kind(x) for name, x in arrays.items()}

    with jax.enable_x64(names == KINDS[1]):
        given = {name: made(name) for name in names.split()}
        expected = jax.jit(run)(given)
        with inferc.compile(run, given, backend=backend) as compiled:
            got = compiled(given)
    for name in given:
        for n, (ours, theirs) in enumerate(zip(*map(jax.tree.leaves, (got[name], expected[name])), strict=True)):
            wanted = np.asarray(theirs, np.float32) if theirs.dtype == jnp.bfloat16 else np.asarray(theirs)
            assert ours.dtype == wanted.dtype, (name, n)
            near = NEAR.get(name, 1e-5)
            np.testing.assert_allclose(ours, wanted, near, near, err_msg=f"{name} {n}")


@pytest.mark.slow
def test_loops_inside_of_loops_for_xla() -> None:
    """Graphs that are called alike, one inside the other."""
    def sample(key: Any, shape: Any) -> Any:
        return jax.random.gamma(jax.random.wrap_key_data(key), shape)

    key, shape = np.array([1, 2], np.uint32), np.linspace(0.1, 5, 12, dtype=np.float32)
    with inferc.compile(sample, key, shape, backend="xla") as compiled:
        np.testing.assert_allclose(compiled(key, shape), sample(key, shape), 1e-6)


def test_random_keys_among_weights_stay() -> None:
    """The state of a Flax module that has dropout holds its keys and counts."""
    graph, state = nnx.split(nnx.Dropout(0.5, deterministic=True, rngs=nnx.Rngs(0)))
    source = jax_function.function(lambda s, x: nnx.merge(graph, s)(x) * 2, "f32[3]", weights=state)
    assert list(source.build(0, 0).weights) == ["rngs.count.value"]
    keys = {"key": jax.random.key(3), "scale": np.full(300, 2, np.float32)}
    module = jax_function.function(lambda w, x: jax.random.normal(w["key"], (3,)) * w["scale"][:3] * x, "f32[3]",
                                   weights=keys).build(0, 0)  # fmt: skip
    assert list(module.weights) == ["scale"]
    got = next(iter(interpret(module, {"x": np.ones(3, np.float32)}, entry="run").values()))
    np.testing.assert_allclose(got, 2 * jax.random.normal(jax.random.key(3), (3,)), 1e-6)


def test_weights_keep_their_dtype_and_what_is_no_array_stays() -> None:
    module = eqx.nn.MLP(4, 2, 8, 1, activation=jax.nn.silu, key=jax.random.key(0))
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16) if eqx.is_array(leaf) else leaf, module)
    source = jax_function.function(lambda m, x: m(x.astype(jnp.bfloat16)), "float32[4]", weights=half)
    facts = source.facts()
    assert {t["name"]: t["type"] for t in facts["tensors"]} == {
        f"layers.{i}.{part}": "bf16" for i in range(2) for part in ("weight", "bias")}  # fmt: skip
    assert facts["signature"]["outputs"] == [{"name": "out", "dtype": "bf16", "shape": [2]}]


# ---- what is refused ------------------------------------------------------------------------------------------------


def branches(x: Any) -> Any:
    return x if x[0] > 0 else -x


STORED = []


def stores(x: Any) -> Any:
    jax.lax.scan(lambda c, row: (c, STORED.append(row)), 0, x)
    return jnp.sin(STORED[-1])


BAD: list[tuple[Any, tuple[Any, ...], str]] = [
    (branches, ("f32[3]",), r"branches: the value of an array decides .* jnp.where.*test_jax_function.py:\d+"),
    (lambda x: x[x > 0], ("f32[3]",), "shape depends on the values of a boolean mask.*size="),
    (lambda x: np.sin(x), ("f32[3]",), "given to NumPy.*use jax.numpy"),
    (lambda x: jnp.zeros(int(x[0])), ("f32[3]",), "depends on the values of an array|decides|Python number"),
    (stores, ("f32[3]",), "stored outside of the function, a side effect"),
    (lambda x: jax.debug.print("{}", x), ("f32[3]",), r"side effect: take it out.*|'debug_print'"),
    (lambda x: jax.scipy.linalg.schur(x), ("f32[3, 3]",), r"'schur' is not supported.*test_jax_function.py:\d+"),
    (lambda x: x.reshape(2, -1), ("f32[n]",), r"must be fixed here \(at .*test_jax_function.py:\d+\).*in the example"),
    (lambda x: x + jnp.zeros(3), ("f32[4]",), "cannot be traced.*test_jax_function.py.*incompatible shapes|broadcast"),
    (lambda x: jnp.linalg.eig(x), ("f32[3, 3]",), r"'eig' is not supported.*compute the decomposition before"),
    (lambda x: jnp.split(x, 3), ("f32[n]",), r"must be fixed here \(at .*test_jax_function.py:\d+\).*mod\(n, 3\)"),
    (lambda x: [x for _ in range(x.shape[0])], ("f32[n]",), "dynamic must be fixed here .*test_jax_function.py"),
    (lambda x: jax.lax.psum(x, "rows"), ("f32[4]",), "test_jax_function.py.*unbound axis name: rows.*call psum under"),
    (lambda x: np.linalg.inv(x), ("f32[3, 3]",), r"given to NumPy.*test_jax_function.py:\d+"),
    (lambda x: x.astype(jnp.int4), ("f32[3]",), r"at .*test_jax_function.py:\d+\): the dtype int4 is not supported"),
    (lambda x: jnp.fft.fft(x).real, ("f32[n]",), r"fft \(used at .*test_jax_function.py:\d+\).*give them fixed sizes"),
    (lambda x: checkify.check(jnp.all(x > 0), "negative"), ("f32[3]",), "'check' is not supported.*raises errors"),
    (lambda x: x, ("f32(3)",), "is no example: write a dtype and a shape"),
    (lambda x: x, ("f99[3]",), "is no example"),
    (lambda x: x, (object(),), "a object is no example of an array"),
    (lambda x: x, ("f32[n*n]",), "no argument has an axis that is n alone or a multiple of it"),
    (lambda x: x, (jax.random.key(0),), "jax.random.key_data"),
]  # fmt: skip


@pytest.mark.parametrize("fn, examples, message", BAD, ids=[m for *_, m in BAD])
def test_what_cannot_be_compiled_says_why_where_and_what_to_do(fn: Any, examples: Any, message: str) -> None:
    with pytest.raises(inferc.InfercError, match=message):
        jax_function.function(fn, *examples).build(0, 0)


@pytest.mark.parametrize("bounds", [(0, 4), (5, 4), (1, 2, 3), ("a", "b")])
def test_bad_bounds(bounds: Any) -> None:
    with pytest.raises(inferc.InfercError, match="'n' needs a name and two bounds"):
        jax_function.function(lambda x: x, "f32[n]", dynamic={"n": bounds})


def test_what_is_no_function() -> None:
    with pytest.raises(inferc.InfercError, match="a int cannot be compiled"):
        inferc.compile(3)
    with pytest.raises(inferc.InfercError, match="belong to functions"):
        inferc.compile("model.gguf", "f32[3]", "f32[3]")


# ---- the command line -----------------------------------------------------------------------------------------------

FILE = '''
import inferc

def double(x: "float32[n]"):
    return x * 2

def untyped(x):
    return x

model = inferc.function(lambda w, x: x * w, "float32[n, 2]", weights=3.0 * __import__("numpy").ones(2, "f4"))
'''


def test_functions_in_files(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(FILE)
    run = CliRunner().invoke

    def compile_(name: str) -> Any:
        return run(app, ["compile", f"{tmp_path}/own.py:{name}", "-o", str(tmp_path / f"{name}.inferc")])

    for name, x, expected in (("double", [1.0, 2.0], [2.0, 4.0]), ("model", [[1.0, 2.0]], [[3.0, 6.0]])):
        assert compile_(name).exit_code == 0
        with inferc.load(tmp_path / f"{name}.inferc") as function:
            assert function(np.array(x, np.float32)).tolist() == expected
    refused = run(app, ["run", str(tmp_path / "double.inferc"), "-p", "hello"])
    assert "is a function of arrays, not a language model" in str(refused.exception or refused.output)
    for name, message in (("untyped", "the parameter x has no shape: annotate it"), ("absent", "has no 'absent'")):
        assert message in str(compile_(name).exception)


# ---- the page -------------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parent.parent / "docs" / "jax.md"


def test_the_page_lists_what_the_tables_have() -> None:
    assert BEGIN + listed() + END in PAGE.read_text("utf-8"), "run python -m inferc.compiler.primitives_listed"


def test_the_programs_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of the page, top to bottom, but for the file that the command line reads."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 3
    (tmp_path / "page.py").write_text(blocks.pop())
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["model"](np.ones((2, 4), np.float32)).shape == (2, 3)
    for name in ("norm", "scaled"):
        assert len(jax_function.load(tmp_path / f"page.py:{name}").facts()["signature"]["inputs"]) == 1

"""docs/architecture.md is right: its code blocks, put where they say, add an op, a rule, a format, an ISA, a model.

A block of the page that begins with a line such as `# ir/types.py, after BLOCK_SIZES = {` is an edit of that file; a
`sh` block is run. All are applied to a copy of the package that is imported under another name, so that nothing leaks.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from . import tiny_models
from .c_programs import Library, aligned, run_function

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EDIT = re.compile(r"(?:#|/\*) (\S+), (after|before|instead of) (.+?)(?: \*/)?")
NAME = "inferc_extended"
ROWS, INNER, TOKENS = 37, 96, 5

Part = Callable[[str], ModuleType]


def apply(root: Path) -> list[str]:
    """Edits the package at `root` as the page says; the files touched, in the order of the page."""
    touched = []
    for language, body in BLOCK.findall(PAGE):
        first, _, text = body.partition("\n")
        if language == "sh":
            subprocess.run(["sh", "-ec", body], cwd=root, check=True)
        elif edit := EDIT.fullmatch(first):
            name, how, anchor = edit.groups()
            path = root / name
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            (at,) = (i for i, line in enumerate(lines) if line.strip().startswith(anchor))
            if how == "instead of":
                del lines[at]
            lines.insert(at + (how == "after"), text)
            path.write_text("".join(lines), encoding="utf-8")
            touched.append(name)
    return touched


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Part]:
    """The modules of an extended copy of the package, by their names in it."""
    folder = tmp_path_factory.mktemp("extended")
    root = folder / NAME
    root.mkdir()
    for name in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / name, root)
    for name in ("compiler", "ir", "backends", "runtime"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    assert apply(root)
    sys.path.insert(0, str(folder))
    try:
        toolchain = importlib.import_module(f"{NAME}.backends.c.toolchain")
        toolchain.FLAGS = (*toolchain.FLAGS, "-O1")
        yield lambda name: importlib.import_module(f"{NAME}.{name}")
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n.split(".")[0] == NAME]:
            del sys.modules[name]


def graph_of(part: Part, op: str, types: dict[str, str], weights: tuple[str, ...] = (), **attrs: Any) -> Any:
    """The graph of one op on inputs of types written as in the text form, `f32[T, 64]`."""
    ir, t = part("ir.graph"), part("ir.types")
    known = {"T": t.Sym("T", 1, 64)}

    def typed(text: str) -> Any:
        name, inside = text.rstrip("]").split("[")
        return t.Type(tuple(t.parse_dim(d, known) for d in inside.split(",")), t.DTYPES[name])

    inputs = [ir.make_input(n, "weight" if n in weights else "arg", typed(text)) for n, text in types.items()]
    return ir.Graph(op, tuple(inputs), (ir.make(part("ir.ops").OPS[op], *(n[0] for n in inputs), **attrs)[0],), ("y",))


def compiled(part: Part, module: Any, folder: Path, arrays: list[np.ndarray], result: np.ndarray) -> np.ndarray:
    """Runs the entry "f" of a module that went through all passes, as C for this machine, on TOKENS tokens."""
    program, target = part("backends.c.program"), part("backends.c.target").native()
    built = program.build(module, [target], context=64, chunk=64, name="toy")
    part("backends.c.toolchain").compile_program(built, folder / "toy.so")
    weights, offsets = aligned(built.weight_bytes, 0), {name: at for name, at, _ in built.weight_order}
    for name, _, array in part("ir.interpret").prepare_weights(module):
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        weights[offsets[name] : offsets[name] + raw.size] = raw
    library = Library(built, folder / "toy.so", weights)
    assert run_function(library, "f", {"T": TOKENS}, arrays, [result]) == 0
    library.close()
    return result


def passed(part: Part, graph: Any, weights: dict[str, np.ndarray] | None = None) -> Any:
    """A module of one entry "f" after all passes of the C backend."""
    ir = part("ir.graph")
    given = {n.attr("name"): n.types[0] for n in graph.inputs_of("weight")}
    held = {name: ir.Weight(name, t, lambda array=(weights or {})[name]: array) for name, t in given.items()}
    target = part("backends.c.target").native().ir
    return part("compiler.pipeline").run_passes(ir.Module({"f": graph}, held), target)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def bits(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint32)


def test_every_edit_of_the_page_is_applied(part: Part) -> None:
    """Nothing in "Adding …" that looks like an edit escapes the pattern, and each kind stays as short as promised."""
    sections = dict(re.findall(r"^### Adding an? (.+?)\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL))
    edits = {
        title: [EDIT.fullmatch(body.partition("\n")[0]) for language, body in BLOCK.findall(text) if language != "sh"]
        for title, text in sections.items()
    }
    assert all(all(found) for found in edits.values())
    files = {title: {edit[1] for edit in found} for title, found in edits.items()}
    assert files["architecture"] == {"compiler/models/llama.py"}
    assert files["weight format"] == {"ir/types.py", "ir/quant/formats.py"}
    assert files["fusion rule"] == {"compiler/passes/fuse.py", "backends/c/target.py"}
    assert files["op"] == {"ir/ops/named.py", "backends/c/loop.py", "compiler/named_ops.py"}
    assert len(files["ISA"]) == 3


def test_every_file_that_the_page_names_is_there() -> None:
    made = {"backends/c/isa/sse41.h"}
    tracked = {str(p.relative_to(ROOT)) for p in ROOT.glob("*.py")}
    for folder in ("compiler", "ir", "backends", "runtime", "tests"):
        tracked |= {str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*.*")}
    named = set(re.findall(r"`([\w/]+\.(?:py|h|c))`", PAGE)) - made
    assert len(named) > 40
    assert not [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in tracked)]


def test_op(part: Part, tmp_path: Path) -> None:
    graph = graph_of(part, "scaled_add", {"x": "f32[T, 96]", "y": "f32[T, 96]"}, scale=0.7)
    printed = part("ir.text").print_graph(graph)
    assert "scaled_add(x, y; scale=0.7)" in printed
    assert part("ir.text").print_graph(part("ir.parse").parse_graph(printed)) == printed
    x, y = normal(TOKENS, INNER), normal(TOKENS, INNER, seed=1)
    (expected,) = part("ir.interpret").interpret(graph, {"x": x, "y": y}).values()
    assert np.array_equal(bits(expected), bits(x + np.float32(0.7) * y))
    result = compiled(part, passed(part, graph), tmp_path, [x, y], np.empty_like(x))
    assert np.array_equal(bits(result), bits(expected))


def test_op_in_a_jax_function(part: Part) -> None:
    tracing, named_ops, t = part("compiler.tracing"), part("compiler.named_ops"), part("ir.types")
    inputs = [tracing.Input(name, "arg", t.Type((4,), t.f32)) for name in "xy"]
    graph, _ = tracing.trace(lambda x, y: [named_ops.scaled_add(x, y, scale=0.5)], inputs, name="f")
    x, y = normal(4), normal(4, seed=1)
    assert [n.op.name for n in graph.nodes()] == ["input", "input", "scaled_add"]
    (result,) = part("ir.interpret").interpret(graph, {"x": x, "y": y})
    assert np.array_equal(result, np.asarray(named_ops.scaled_add(x, y, scale=0.5)))
    with pytest.raises(part("ir.graph").IRError, match="scaled_add.*must be equal types"):
        graph_of(part, "scaled_add", {"x": "f32[T, 4]", "y": "f32[T, 8]"}, scale=1.0)


def blocks(part: Part) -> tuple[Any, np.ndarray, np.ndarray]:
    """The type of a q3_0 weight, its raw bytes, and its values computed by hand."""
    t = part("ir.types")
    rng = np.random.default_rng(5)
    raw = rng.integers(0, 256, (ROWS, INNER // 32, 14), np.uint8)
    d = rng.uniform(0.01, 0.02, raw.shape[:2]).astype(np.float16)
    raw[..., :2] = d[..., None].view(np.uint8)
    low = np.concatenate([raw[..., 2:10] >> shift & 3 for shift in (0, 2, 4, 6)], axis=-1)
    high = np.concatenate([raw[..., 10:14] >> shift & 1 for shift in range(8)], axis=-1)
    values = d[..., None].astype(np.float32) * ((low | high << 2).astype(np.float32) - 4)
    return t.Type((ROWS, INNER), t.DTYPES["q3_0"]), raw.reshape(ROWS, -1), values.reshape(ROWS, INNER)


def test_format_means_what_its_record_says(part: Part) -> None:
    quant = part("ir.quant")
    type, raw, values = blocks(part)
    assert np.array_equal(quant.dequantize(type.dtype, raw, type.shape), values)
    packed = quant.pack(type, raw)
    assert packed.size == -(-ROWS // 16) * 16 * raw.shape[1]
    assert np.array_equal(quant.unpack(type, packed), raw)


def test_a_record_that_no_kernel_fits_is_refused(part: Part) -> None:
    formats, dtypes = part("ir.quant.formats"), part("ir.types").DTYPES
    d, low = formats.FORMATS["q3_0"].parts[:2]
    with pytest.raises(ValueError, match="q3_0: its parts have 10 bytes, a block has 14"):
        formats.Format(dtypes["q3_0"], 3, 32, 4, (d, low))
    with pytest.raises(ValueError, match="groups are of 16 or 32 values"):
        formats.Format(dtypes["tq2_0"], 2, 256, 1, (formats.FORMATS["q2_k"].parts[1], d))


def test_format_in_c(part: Part, tmp_path: Path) -> None:
    type, raw, values = blocks(part)
    graph = graph_of(part, "linear", {"x": f"f32[T, {INNER}]", "w": f"q3_0[{ROWS}, {INNER}]"}, ("w",))
    module = passed(part, graph, {"w": raw})
    assert [n.op.name for n in module.entries["f"].nodes()] == ["input", "input", "quantize", "linear"]
    assert str(module.entries["f"].inputs_of("weight")[0].types[0]) == f"q3_0[{ROWS}, {INNER}]@panel16"
    x = normal(TOKENS, INNER)
    (expected,) = part("ir.interpret").interpret(module, {"x": x}, entry="f").values()
    result = compiled(part, module, tmp_path, [x], np.empty((TOKENS, ROWS), np.float32))
    assert np.array_equal(bits(result), bits(expected))
    exact = x @ values.T
    assert np.abs(result - exact).max() < 0.02 * exact.std()  # int8 activations


def test_format_in_an_embedding(part: Part, tmp_path: Path) -> None:
    type, raw, values = blocks(part)
    graph = graph_of(part, "embedding", {"table": f"q3_0[{ROWS}, {INNER}]", "ids": "i32[T]"}, ("table",))
    ids = np.array([0, 36, 17, 16, 15], np.int32)
    result = np.empty((TOKENS, INNER), np.float32)
    compiled(part, passed(part, graph, {"table": raw}), tmp_path, [ids], result)
    assert np.array_equal(bits(result), bits(values[ids]))


def test_rule_keeps_every_bit(part: Part) -> None:
    ir, t, ops, rules = (part(name) for name in ("ir.graph", "ir.types", "ir.ops", "compiler.passes.fuse"))
    (rule,) = (r for r in rules.RULES if r.name == "scaled_add")
    type = t.Type((TOKENS, INNER), t.f32)
    x, y = (ir.make_input(name, "arg", type) for name in "xy")

    def emit(op: str, *operands: Any, **attrs: Any) -> Any:
        return ir.make(ops.OPS[op], *operands, **attrs)[0]

    constant = emit("constant", value=np.float32(0.3).tobytes(), type=t.Type((), t.f32))
    scale = emit("broadcast", constant, shape=type.shape, dims=())
    before = ir.Graph("g", (x, y), (emit("add", emit("mul", scale, y[0]), x[0]),), ("y",))
    after = part("ir.rewrite").rewrite(before, [rule])
    assert [n.op.name for n in after.nodes()] == ["input", "input", "scaled_add"]
    given = {"x": normal(TOKENS, INNER), "y": normal(TOKENS, INNER, seed=1)}
    results = [part("ir.interpret").interpret(graph, given)["y"] for graph in (before, after)]
    assert np.array_equal(*map(bits, results))
    other = ir.Graph("g", (x, y), (emit("add", x[0], emit("mul", y[0], y[0])),))
    assert part("ir.rewrite").rewrite(other, [rule]) is other


IDS = np.arange(3, 15, dtype=np.int32)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GGUF file of the architecture that the page adds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_models.MODELS, "scaled-llama", ("scaled-llama", {}))
        return tiny_models.write_model(tmp_path_factory.mktemp("model") / "tiny.gguf", "scaled-llama", "q4_0")


def interpreted(part: Part, module: Any) -> np.ndarray:
    """The logits of IDS by the interpreter, fed at once."""
    states = {
        n.attr("name"): np.zeros((1, *n.types[0].shape[1:]), n.types[0].dtype.numpy)
        for n in module.entries["step"].inputs_of("state")
    }
    places = np.arange(len(IDS), dtype=np.int32)
    arguments = {"tokens": IDS, "sequence": np.zeros_like(IDS), "position": places, "rows": places}
    return part("ir.interpret").interpret(module, arguments | states)["logits"]


def test_architecture_is_what_jax_computes(part: Part, model: Path) -> None:
    language = part("compiler.frontends.language")
    source = part("compiler.frontends.gguf").load(model)
    expected = language.reference_logits(source, IDS)
    assert np.abs(interpreted(part, language.build_module(source, 32, 16)) - expected).max() <= 1e-4 * expected.std()


def test_architecture_rule_op_and_isa_in_one_model(part: Part, model: Path, tmp_path: Path) -> None:
    """The new model, its residuals fused into the new op, compiled for the new ISA, has the interpreter's bits."""
    driver, supported = part("compiler.driver"), part("backends.c.target").supported()
    target = "sse41" if "sse41" in [t.name for t in supported] else "native"
    plan = driver.plan_model(model, target=target, chunk=16)
    (layer,) = {n.attr("graph") for n in plan.module.entries["step"].nodes() if n.op.name == "call"}
    ops = [n.op.name for n in layer.nodes()]
    assert ops.count("scaled_add") == 2 and "mul" not in ops and "add" not in ops
    if target == "sse41":
        assert "_mm_round_ps" in plan.program.sources["sse41.h"]
    driver.compile_model(str(model), tmp_path / "tiny.inferc", target=target, chunk=16)
    with part("runtime.model").load(tmp_path / "tiny.inferc", threads=2) as loaded:
        logits = loaded.logits(IDS.tolist())
    assert np.array_equal(bits(logits), bits(interpreted(part, plan.module)))

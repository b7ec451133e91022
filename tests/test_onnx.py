"""ONNX files and models: symbolic sizes, control flow, functions, weights in other files, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import inferc
from inferc.errors import InfercError
from inferc.ir.interpret import interpret

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from inferc.compiler.frontends import onnx_model  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compiler")

RNG = np.random.default_rng(5)
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
node = helper.make_node


def value(name: str, shape: Sequence[Any], kind: int = FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model(nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any],
          tensors: dict[str, np.ndarray] | None = None, functions: Sequence[Any] = ()) -> Any:  # fmt: skip
    initializers = [numpy_helper.from_array(a, n) for n, a in (tensors or {}).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid("mine", 1)] if functions else [])]
    made = helper.make_model(graph, opset_imports=opsets, functions=functions)
    onnx.checker.check_model(made)
    return made


def agrees(made: Any, inputs: dict[str, np.ndarray], **options: Any) -> onnx_model.Source:
    """The interpreter gives what onnx's own evaluator gives."""
    source = onnx_model.Source(made, None, **options)
    got = interpret(source.build(), inputs, entry="run")
    for o, expected in zip(made.graph.output, ReferenceEvaluator(made).run(None, inputs)):
        np.testing.assert_allclose(got[o.name], expected, rtol=1e-4, atol=1e-5)
        assert got[o.name].dtype == expected.dtype
    return source


def encoder() -> Any:
    """Attention of tokens over themselves, the sizes of its reshapes computed from the input's shape."""
    nodes = [
        node("Gather", ["table", "ids"], ["x"]),
        node("LayerNormalization", ["x", "scale", "shift"], ["h"], axis=-1),
        node("MatMul", ["h", "projection"], ["mixed"]),
        node("Shape", ["ids"], ["shape"]),
        node("Gather", ["shape", "zero"], ["batch"]), node("Gather", ["shape", "one"], ["length"]),
        node("Unsqueeze", ["batch", "axis"], ["batch1"]), node("Unsqueeze", ["length", "axis"], ["length1"]),
        node("Concat", ["batch1", "length1", "heads", "rest"], ["split_shape"], axis=0),
        node("Reshape", ["mixed", "split_shape"], ["split"]),
        node("Transpose", ["split"], ["q"], perm=[0, 2, 1, 3]), node("Transpose", ["split"], ["k"], perm=[0, 2, 3, 1]),
        node("MatMul", ["q", "k"], ["score"]), node("Softmax", ["score"], ["weights"], axis=-1),
        node("MatMul", ["weights", "q"], ["heads_out"]),
        node("Transpose", ["heads_out"], ["back"], perm=[0, 2, 1, 3]),
        node("Concat", ["batch1", "length1", "rest"], ["flat_shape"], axis=0),
        node("Reshape", ["back", "flat_shape"], ["joined"]),
        node("Gemm", ["first", "projection", "bias"], ["pooled"]),
        node("ReduceMean", ["joined"], ["first"], axes=[1], keepdims=0),
    ]  # fmt: skip
    nodes[-2], nodes[-1] = nodes[-1], nodes[-2]
    tensors = {
        "table": RNG.standard_normal((50, 32)).astype(np.float32), "scale": np.ones(32, np.float32) * 1.5,
        "shift": np.zeros(32, np.float32) + 0.1, "bias": RNG.standard_normal(32).astype(np.float32),
        "projection": (RNG.standard_normal((32, 32)) / 6).astype(np.float32), "zero": np.array(0), "one": np.array(1),
        "axis": np.array([0]), "heads": np.array([4]), "rest": np.array([-1]),
    }  # fmt: skip
    outputs = [value("pooled", ["batch", 32]), value("weights", ["batch", 4, "length", "length"])]
    return model(nodes, [value("ids", ["batch", "length"], INT64)], outputs, tensors)


def test_sizes_that_vary_become_symbols_and_the_artifact_takes_them(tmp_path: Path) -> None:
    made = encoder()
    onnx.save(made, tmp_path / "encoder.onnx", save_as_external_data=True, location="encoder.data", size_threshold=64)
    evaluator = ReferenceEvaluator(encoder_in_memory := onnx.load(tmp_path / "encoder.onnx"))
    assert encoder_in_memory.graph.initializer
    bounds = {"batch": (1, 8)}
    with inferc.compile(tmp_path / "encoder.onnx", tmp_path / "encoder.inferc", dynamic=bounds) as function:
        assert function.signature["dims"] == {"batch": [1, 8], "length": [1, 65536]}
        assert [str(p) for p in function.outputs] == ["f32[batch, 32]", "f32[batch, 4, length, length]"]
        for batch, length in ((1, 1), (3, 7)):
            ids = RNG.integers(0, 50, (batch, length))
            for got, expected in zip(function(ids), evaluator.run(None, {"ids": ids}), strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_matrices_of_weights_make_linears_and_nothing_of_the_shapes_is_left() -> None:
    source = onnx_model.Source(encoder(), None, {"batch": (1, 8), "length": (1, 64)})
    ops = [n.op.name for n in source.build().entries["run"].nodes()]
    assert ops.count("linear") == 2 and "concatenate" not in ops and "layer_norm" in ops


def test_a_table_of_positions_limits_the_length() -> None:
    """What is added to as many rows of a table as there are tokens may have as many as the table."""
    nodes = [
        node("Shape", ["x"], ["length"], start=1, end=2),
        node("Slice", ["table", "zero", "length", "one"], ["rows"]), node("Add", ["x", "rows"], ["y"]),
    ]  # fmt: skip
    tensors = {"table": RNG.standard_normal((1, 6, 4)).astype(np.float32), "zero": np.array([0]), "one": np.array([1])}
    made = model(nodes, [value("x", ["batch", "tokens", 4])], [value("y", ["batch", "tokens", 4])], tensors)
    source = agrees(made, {"x": RNG.standard_normal((2, 5, 4)).astype(np.float32)})
    assert source.facts()["signature"]["dims"]["tokens"] == [1, 6]


def test_windows_limit_the_length() -> None:
    """What a window leaves is no less than nothing; a size that the graph computes by subtraction could be."""
    nodes = [
        node("Shape", ["x"], ["length"], start=2), node("Sub", ["length", "two"], ["less"]),
        node("Conv", ["x", "w"], ["sums"]), node("Expand", ["sums", "less"], ["y"]),
    ]  # fmt: skip
    tensors = {"two": np.array([2]), "w": np.ones((1, 1, 3), np.float32)}
    made = model(nodes, [value("x", [1, 1, "tokens"])], [value("y", [1, 1, None])], tensors)
    source = agrees(made, {"x": np.arange(5, dtype=np.float32).reshape(1, 1, 5)})
    assert source.facts()["signature"]["dims"]["tokens"][0] == 2


@pytest.mark.parametrize("mode, coordinates, nearest", [
    ("linear", "half_pixel", "floor"), ("linear", "pytorch_half_pixel", "floor"), ("cubic", "half_pixel", "floor"),
    ("linear", "align_corners", "floor"), ("nearest", "asymmetric", "floor"), ("nearest", "half_pixel", "ceil"),
    ("nearest", "half_pixel", "round_prefer_floor"), ("nearest", "asymmetric", "round_prefer_ceil"),
])  # fmt: skip
def test_images_of_sizes_that_vary_are_resized(mode: str, coordinates: str, nearest: str) -> None:
    """To a size that varies, by a factor, and to a fixed size."""
    settings = {"mode": mode, "coordinate_transformation_mode": coordinates, "nearest_mode": nearest}
    nodes = [
        node("Shape", ["like"], ["whole"]), node("Resize", ["x", "", "", "whole"], ["a"], **settings),
        node("Resize", ["x", "", "factors"], ["b"], **settings),
        node("Resize", ["x", "", "", "fixed"], ["c"], **settings),
    ]  # fmt: skip
    inputs = [value("x", [1, 2, "h", "w"]), value("like", [1, 2, "p", "q"])]
    outputs = [value("a", [1, 2, "p", "q"]), value("b", [1, 2, None, None]), value("c", [1, 2, 4, 3])]
    tensors = {"factors": np.array([1, 1, 2, 1.5], np.float32), "fixed": np.array([1, 2, 4, 3])}
    made = model(nodes, inputs, outputs, tensors)
    x = RNG.standard_normal((1, 2, 5, 6)).astype(np.float32)
    agrees(made, {"x": x, "like": np.zeros((1, 2, 3, 9), np.float32)})


def test_bounds_of_sizes_that_are_not_there() -> None:
    with pytest.raises(InfercError, match="no input has a size 'bach'; these have names: batch, length"):
        inferc.compile(encoder(), dynamic={"bach": (1, 8)})


def test_tensors_of_other_files_are_mapped(tmp_path: Path) -> None:
    path = tmp_path / "encoder.onnx"
    onnx.save(encoder(), path, save_as_external_data=True, location="encoder.data", size_threshold=64)
    table = onnx_model.load(path).build().weights["table"].load()
    base = table
    while not isinstance(base, np.memmap):
        base = base.base
    assert Path(base.filename) == tmp_path / "encoder.data" and not table.flags.owndata


def test_branches_read_what_is_outside() -> None:
    yes = helper.make_graph([node("Add", ["x", "w"], ["a"])], "yes", [], [value("a", [2, 300])])
    no = helper.make_graph([node("Mul", ["x", "x"], ["b"])], "no", [], [value("b", [2, 300])])
    made = model([node("If", ["which"], ["y"], then_branch=yes, else_branch=no)],
                 [value("which", [], BOOL), value("x", [2, 300])], [value("y", [2, 300])],
                 {"w": RNG.standard_normal((2, 300)).astype(np.float32)})  # fmt: skip
    x = RNG.standard_normal((2, 300)).astype(np.float32)
    for which in (True, False):
        agrees(made, {"which": np.array(which), "x": x})


def test_a_loop_that_the_data_end() -> None:
    """x is doubled while its sum is below a bound, at most `turns` times; the body reads the bound from outside."""
    body = helper.make_graph(
        [node("Add", ["x_in", "x_in"], ["x_out"]), node("ReduceSum", ["x_out"], ["total"], keepdims=0),
         node("Less", ["total", "bound"], ["go"])],
        "body", [value("i", [], INT64), value("go_in", [], BOOL), value("x_in", [3])],
        [value("go", [], BOOL), value("x_out", [3])])  # fmt: skip
    made = model([node("Loop", ["turns", "start", "x"], ["y"], body=body)],
                 [value("turns", [], INT64), value("start", [], BOOL), value("x", [3]), value("bound", [])],
                 [value("y", [3])])  # fmt: skip
    x = np.array([1, 2, 3], np.float32)
    for turns, start in ((0, True), (2, True), (9, True), (9, False)):
        agrees(made, {"turns": np.array(turns), "start": np.array(start), "x": x, "bound": np.array(50, np.float32)})


def test_a_scan_over_two_axes_with_a_weight_inside() -> None:
    body = helper.make_graph(
        [node("MatMul", ["h", "w"], ["m"]), node("Add", ["m", "row"], ["s"]), node("Tanh", ["s"], ["h_out"]),
         node("Identity", ["h_out"], ["y"])],
        "body", [value("h", [20]), value("row", [20])], [value("h_out", [20]), value("y", [20])])  # fmt: skip
    made = model([node("Scan", ["h0", "x"], ["last", "all"], body=body, num_scan_inputs=1, scan_input_axes=[1],
                       scan_input_directions=[1], scan_output_axes=[1])],
                 [value("h0", [20]), value("x", [20, 5])], [value("last", [20]), value("all", [20, 5])],
                 {"w": (RNG.standard_normal((20, 20)) / 5).astype(np.float32)})  # fmt: skip
    x, h = RNG.standard_normal((20, 5)).astype(np.float32), np.ones(20, np.float32)
    got = interpret(onnx_model.Source(made, None).build(), {"h0": h, "x": x}, entry="run")
    weight, rows = numpy_helper.to_array(made.graph.initializer[0]), []
    for column in reversed(range(5)):
        h = np.tanh(h @ weight + x[:, column])
        rows.append(h)
    np.testing.assert_allclose(got["last"], h, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got["all"], np.stack(rows, 1), rtol=1e-4, atol=1e-5)


def test_functions_of_the_model_are_inlined() -> None:
    function = helper.make_function(
        "mine", "Scaled", ["x", "bias"], ["y"],
        [helper.make_node("Constant", [], ["c"]), node("Mul", ["x", "c"], ["m"]), node("Add", ["m", "bias"], ["y"])],
        [helper.make_opsetid("", 17)], ["factor"])  # fmt: skip
    attribute = function.node[0].attribute.add()
    attribute.name, attribute.ref_attr_name, attribute.type = "value_float", "factor", onnx.AttributeProto.FLOAT
    made = model([node("Scaled", ["x", "b"], ["y"], domain="mine", factor=2.5)], [value("x", ["n"]), value("b", [1])],
                 [value("y", ["n"])], functions=[function])  # fmt: skip
    agrees(made, {"x": np.arange(4, dtype=np.float32), "b": np.ones(1, np.float32)})


def test_values_given_when_compiling_are_no_inputs() -> None:
    made = model([node("Tile", ["x", "times"], ["y"])], [value("x", [2, 3]), value("times", [2], INT64)],
                 [value("y", [None, None])])  # fmt: skip
    with pytest.raises(InfercError, match="'times' decides a shape and must be known when compiling"):
        onnx_model.Source(made, None).build()
    times = np.array([2, 1])
    source = onnx_model.Source(made, None, static={"times": times})
    entry = source.build().entries["run"]
    assert source.baked == {"times"} and [n.attr("name") for n in entry.inputs] == ["x"]
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(interpret(source.build(), {"x": x}, entry="run")["y"], np.tile(x, times))


@pytest.mark.parametrize("made, message", [
    (lambda: model([node("NonZero", ["x"], ["y"])], [value("x", [4])], [value("y", [1, None], INT64)]),
     "NonZero 'y': the operator NonZero is not supported; the shape of its result depends on the data"),
    (lambda: model([node("Identity", ["x"], ["y"])], [value("x", [4], TensorProto.STRING)],
                   [value("y", [4], TensorProto.STRING)]), "type STRING are not supported"),
    (lambda: model([node("Resize", ["x", "", "s"], ["y"], mode="cubic", exclude_outside=1)],
                   [value("x", [1, 1, "h", 4])], [value("y", [1, 1, None, 8])],
                   {"s": np.array([1, 1, 2, 2], np.float32)}),
     r"the sizes \[1, 1, h, 4\] of axes that are resized so must be fixed"),
    (lambda: model([node("Dropout", ["x", "r", "t"], ["y"])], [value("x", [4])], [value("y", [4])],
                   {"r": np.array(0.5, np.float32), "t": np.array(True)}), "dropout in training mode is random"),
], ids=["operator", "strings", "size", "training"])  # fmt: skip
def test_refusals_are_one_line(made: Any, message: str) -> None:
    with pytest.raises(InfercError, match=message) as caught:
        onnx_model.Source(made(), None).build()
    assert "\n" not in str(caught.value)


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    with pytest.raises(InfercError, match="cannot be opened"):
        onnx_model.load(path)
    path.write_bytes(b"\xff\xff\xff not a model")
    with pytest.raises(InfercError, match="is no ONNX model"):
        onnx_model.load(path)
    path.write_bytes(b"")
    with pytest.raises(InfercError, match="holds no graph"):
        onnx_model.load(path)


@pytest.mark.parametrize("location, message", [("../x.data", "points outside"), ("short.data", "too short")])
def test_tensors_that_lie_elsewhere(tmp_path: Path, location: str, message: str) -> None:
    made = model([node("Add", ["x", "w"], ["y"])], [value("x", [64])], [value("y", [64])],
                 {"w": np.ones(64, np.float32)})  # fmt: skip
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    (tmp_path / "short.data").write_bytes(bytes(12))
    (tmp_path / "m.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(InfercError, match=message):
        onnx_model.load(tmp_path / "m.onnx").build()

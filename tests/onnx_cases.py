"""The backend node tests of the `onnx` package, run through the interpreter and the C backend, many in one library."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper
from onnx.backend.test.loader import load_model_tests

from inferc.compiler.frontends import onnx_model
from inferc.compiler.frontends.arrays import as_bits
from inferc.compiler.frontends.onnx_import import ELEMENT_TYPES
from inferc.errors import InfercError

from .many_functions import Function, run_functions

WHOLE = "(whole graphs)"
VERSION = "1.23.2"  # of the package whose tests these are

# Why an operator is not tested. What a case is excluded for follows from its graph alone.
DATA_DEPENDENT = {"Compress", "NonZero", "NonMaxSuppression", "Unique", "ImageDecoder"}
TRAINING = {"Adagrad", "Adam", "Momentum", "Gradient"}
SEQUENCES = {"SequenceMap", "SequenceConstruct", "SequenceEmpty", "SequenceAt", "SequenceErase", "SequenceInsert",
             "SequenceLength", "SplitToSequence", "ConcatFromSequence", "Optional", "OptionalGetElement",
             "OptionalHasElement"}  # fmt: skip
REASONS = ("strings", "sequences and optionals", "training", "data-dependent shapes", "sub-byte and fp8 types")

# Results are compared as the package does, by each case's rtol (1e-3) and atol (1e-7), with these exceptions.
HALF_ULPS = {"float16": 2.0**-9, "bfloat16": 2.0**-6}  # relative: two units in the last place, more than 1e-3 is
FOURIER = ("test_dft", "test_stft")  # 1e-6 of the largest value: a zero among sums of hundreds is rounding


@dataclass(frozen=True)
class Case:
    name: str
    model: ModelProto
    operator: str
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    rtol: float
    atol: float
    excluded: str  # the reason, "" for none


@cache
def cases() -> tuple[Case, ...]:
    """Every node test but those for CUDA. Raises AssertionError for another version than the pinned one."""
    assert onnx.__version__ == VERSION, f"these tests are pinned to onnx {VERSION}, not {onnx.__version__}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package making its data
        loaded = [c for c in load_model_tests(kind="node") if not c.name.endswith("_cuda")]
    operators = {c.name: c.model.graph.node[0].op_type for c in loaded if len(c.model.graph.node) == 1}
    made = []
    for c in loaded:
        tested = operators.get(c.name.split("_expanded")[0], c.model.graph.node[0].op_type)
        reason = _excluded(c.model)
        graph, (inputs, outputs) = c.model.graph, c.data_sets[0]
        given = {} if reason else {i.name: _array(v) for i, v in zip(graph.input, inputs)}
        expected = {} if reason else {o.name: _array(v) for o, v in zip(graph.output, outputs)}
        made.append(Case(c.name, c.model, tested, given, expected, c.rtol, c.atol, reason))
    return (*made, *_whole_graphs())


def _whole_graphs() -> Iterator[Case]:
    """The package's other cases that bring their models: what PyTorch's old exporter wrote, and a few by hand."""
    for kind in ("pytorch-converted", "pytorch-operator", "simple"):
        for c in load_model_tests(kind=kind):
            folder = Path(c.model_dir) if c.model_dir else None
            if folder is None or not (folder / "test_data_set_0").is_dir():
                continue
            model = onnx.load(folder / "model.onnx")
            reason, data = _excluded(model), folder / "test_data_set_0"
            initialized = {i.name for i in model.graph.initializer}
            inputs = [i.name for i in model.graph.input if i.name not in initialized]
            outputs = [o.name for o in model.graph.output]
            given, expected = (
                {} if reason else {n: _read(data / f"{what}_{i}.pb") for i, n in enumerate(names)}
                for what, names in (("input", inputs), ("output", outputs))
            )
            yield Case(f"{kind}/{c.name}", model, WHOLE, given, expected, c.rtol, max(c.atol, 1e-6), reason)


def _read(path: Path) -> np.ndarray:
    return numpy_helper.to_array(TensorProto.FromString(path.read_bytes()))


def _array(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, TensorProto) else np.asarray(value)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for a in node.attribute:
            for inner in (a.g, *a.graphs):
                yield from _graphs(inner)


def _excluded(model: ModelProto) -> str:
    """The reason why a case is not tested, "" for none."""
    values = [*model.graph.input, *model.graph.output]
    kinds = {v.type.WhichOneof("value") for v in values}
    types = {v.type.tensor_type.elem_type for v in values if v.type.HasField("tensor_type")}
    operators = set()
    for graph in _graphs(model.graph):
        for node in graph.node:
            operators.add(node.op_type)
            types |= {a.i for a in node.attribute if node.op_type == "Cast" and a.name == "to"}
            types |= {a.t.data_type for a in node.attribute if a.HasField("t")}
            training = node.op_type == "Dropout" and len(node.input) > 2 and _trains(graph, node.input[2])
            operators |= {"Gradient"} if training or "training" in node.domain else set()
    strings = any(a.strings or a.name.endswith("_strings") for n in model.graph.node for a in n.attribute
                  if n.domain)  # fmt: skip
    if TensorProto.STRING in types or strings:
        return "strings"
    if kinds - {"tensor_type"} or operators & SEQUENCES:
        return "sequences and optionals"
    if operators & TRAINING:
        return "training"
    if operators & DATA_DEPENDENT:
        return "data-dependent shapes"
    return "sub-byte and fp8 types" if types - set(ELEMENT_TYPES) - {TensorProto.UNDEFINED} else ""


def _trains(graph: GraphProto, name: str) -> bool:
    """Whether the flag of a Dropout is not surely false: it is given, or true."""
    made = [a.t for n in graph.node if name in n.output for a in n.attribute if a.name == "value"]
    return not made or bool(numpy_helper.to_array(made[0]))


def compared(case: Case, got: Mapping[str, np.ndarray]) -> str:
    """What is wrong with a case's results, "" for nothing."""
    for name, wanted in case.outputs.items():
        result = got[name].view(wanted.dtype) if str(wanted.dtype) == "bfloat16" else got[name]
        if result.shape != wanted.shape or result.dtype != wanted.dtype:
            return f"{name} is {result.dtype}{list(result.shape)}, not {wanted.dtype}{list(wanted.shape)}"
        rtol = max(case.rtol, HALF_ULPS.get(str(wanted.dtype), 0.0))
        half = str(wanted.dtype) == "bfloat16"
        a, b = (x.astype(np.float32) if half else x for x in (result, wanted))
        atol = 1e-6 * np.abs(wanted).max() if case.name.startswith(FOURIER) else case.atol
        if not np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
            return f"{name} differs: {np.asarray(a).reshape(-1)[:4]} is not {np.asarray(b).reshape(-1)[:4]}"
    return ""


def run(chosen: Sequence[Case]) -> dict[str, str]:
    """What is wrong with each case that fails, through the interpreter or through C; "not supported" begins a
    refusal."""
    wrong: dict[str, str] = {}
    functions = []
    for case in chosen:
        try:
            module = onnx_model.Source(case.model, None, static=case.inputs).build()
        except InfercError as error:
            wrong[case.name] = f"not supported: {error}"
            continue
        names = [n.attr("name") for n in module.entries["run"].inputs_of("arg")]
        functions.append(Function(case.name, module, {n: as_bits(case.inputs[n]) for n in names}))
    by_name = {case.name: case for case in chosen}
    for name, by, results in run_functions(functions):
        problem = results if isinstance(results, str) else compared(by_name[name], results)
        if problem:
            wrong.setdefault(name, problem if isinstance(results, str) else f"by {by}: {problem}")
    return wrong


def coverage(wrong: Mapping[str, str]) -> str:
    """docs/onnx_coverage.md: passed, failed and excluded cases of each operator."""
    passed: dict[str, int] = defaultdict(int)
    failed: dict[str, int] = defaultdict(int)
    excluded: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for case in cases():
        if case.excluded:
            excluded[case.operator][case.excluded] += 1
        else:
            (failed if case.name in wrong else passed)[case.operator] += 1
    reasons = {r: sum(e[r] for e in list(excluded.values())) for r in REASONS}
    tested = sum(passed.values()) + sum(failed.values())
    lines = [
        "# ONNX operators", "",
        f"Generated by `pytest tests/test_onnx_backend.py -m slow --update-golden` from the backend tests of onnx "
        f"{VERSION}: all node tests, and the whole graphs that come with the package.",
        f"Of {len(cases())} cases {tested} are tested, through the interpreter and through generated C: "
        f"{sum(passed.values())} pass ({sum(passed.values()) / tested:.1%}), {sum(failed.values())} are refused, none "
        "is wrong.",
        "Data reach the generated C at run time; only operands that decide shapes are compiled in.", "",
        "Excluded, by what the case's graph has:", "",
        *(f"- {reason}: {count}" for reason, count in reasons.items()), "",
        "Results are compared as the package does, but f16 and bf16 within two units in the last place (its bound of "
        "1e-3", "is less than one of bf16), and Fourier transforms within 1e-6 of their largest value (a zero among "
        "sums of hundreds", "is rounding).", "",
        "| operator | passed | refused | excluded |", "|---|---|---|---|",
    ]  # fmt: skip
    for operator in sorted({*passed, *failed, *excluded}):
        why = ", ".join(f"{n} {reason}" for reason, n in excluded[operator].items() if n)
        lines.append(f"| {operator} | {passed.get(operator, 0)} | {failed.get(operator, 0)} | {why} |")
    if wrong:
        lines += ["", "Refused cases, and what is said:", ""]
        lines += [f"- `{name}`: {text.removeprefix('not supported: ')}" for name, text in sorted(wrong.items())]
    return "\n".join(lines) + "\n"

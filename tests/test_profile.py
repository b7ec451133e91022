"""`inferc profile`: that the observed program is the same model, that its sums are right, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from typer.testing import CliRunner

from inferc.backends.c import observe, program
from inferc.backends.c.target import get
from inferc.compiler.cli import app
from inferc.compiler.driver import compile_model
from inferc.compiler.profiling import report
from inferc.compiler.profiling.costs import cost
from inferc.compiler.profiling.measure import EVENT, OP, REGION, Evaluation, Measured, measure
from inferc.errors import InfercError
from inferc.ir.parse import parse_module
from tests.tiny_models import write_model

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    write_model(folder / "tiny.gguf", "llama", "q8_0")
    compile_model(str(folder / "tiny.gguf"), folder / "tiny.inferc", target="generic", chunk=16)
    return folder / "tiny.inferc"


@pytest.fixture(scope="module")
def measured(artifact) -> Measured:
    return measure(artifact, prompt=24, generate=3, threads=2)


def test_without_observers_no_byte_changes(artifact):
    """The program that is built without them is the artifact's, and names nothing of them."""
    with ZipFile(artifact) as file:
        module = parse_module(file.read("ir.txt").decode())
        manifest = json.loads(file.read("manifest.json"))
        sources = {name[2:]: file.read(name).decode() for name in file.namelist() if name.endswith((".c", ".h"))}
    built = program.build(module, [get("generic")], context=manifest["context"], chunk=16, name=manifest["name"])
    assert {name: text for name, text in built.sources.items()} == sources
    assert not any("observe" in text for text in sources.values())
    observed = observe.Observed(observe.times)
    told = program.build(module, [get("generic")], context=manifest["context"], chunk=16, name=manifest["name"],
                         lowerings=observed.lowerings)  # fmt: skip
    changed = {name for name, text in told.sources.items() if text != sources[name]}
    assert changed == {"model_generic.c", "model_generic_kernels.h"}
    assert told.sources["model_generic.c"].replace("observed_", "") != sources["model_generic.c"]


def test_every_op_of_every_layer_is_seen(measured):
    """24 tokens in chunks of 16 are two evaluations, 3 generated tokens one each, and every layer has every op."""
    prompt, generation = report.phases(measured, {"read": 1e10, "int8_dot": 1e11, "fp32_fma": 1e10})
    assert (prompt.evaluations, prompt.tokens, generation.evaluations, generation.tokens) == (2, 24, 3, 3)
    assert set(generation.layers) == {"layers.0", "layers.1", "beside the layers"}
    assert generation.layers["layers.0"].calls == generation.layers["layers.1"].calls
    attention = next(row for (op, _), row in generation.ops.items() if op == "cached_attention")
    assert attention.calls == 3 * 2
    for phase in (prompt, generation):
        total = sum(row.seconds for row in phase.ops.values())
        assert 0 < total < phase.seconds
        assert total == pytest.approx(sum(row.seconds for row in phase.layers.values()))
        assert total == pytest.approx(sum(row.seconds for row in phase.calls.values()))
        assert sum(t.busy for t in phase.threads.values()) <= 2 * phase.in_regions * 1.001
    products = sum(row.macs for (op, _), row in generation.ops.items() if "linear" in op)
    width, feed_forward, vocabulary = 64, 128, 320
    layer = width * (width + width // 2 + width // 2 + width) + 3 * width * feed_forward
    assert products == 3 * (2 * layer + vocabulary * width)


def test_costs_of_an_op(measured):
    node = next(n for n in measured.points if n.op.name == "cached_attention")
    found = cost(node, {"T": 4, "R": 1, "S": 1}, position=10)
    heads, kv_heads, length = 4, 2, 16
    assert found.macs == (11 + 12 + 13 + 14) * heads * 2 * length
    assert found.bytes == 14 * kv_heads * 2 * length * 2 + 2 * 4 * heads * length * 4


def test_waiting_is_what_is_left_of_a_region(measured):
    """A region of 100 ns in which one thread worked 100 and the other 60, and one that was not split."""
    rows = [(0, 100, 100, 0, REGION, 4, 0), (0, 100, 100, 0, 0, 3, 0), (10, 70, 60, 0, 1, 1, 0),
            (200, 250, 50, 0, REGION, 0, 0), (200, 250, 50, 0, 0, 1, 0), (0, 300, 0, 0, OP, 0, 0)]  # fmt: skip
    events = np.array([tuple(row) for row in rows], EVENT)
    one = Evaluation("generation", 1, 0, 0, 400, events)
    made = Measured("toy", measured.target, 2, measured.module, measured.points, (one,), {"generation": 1e-6})
    [phase] = report.phases(made, {"read": 1e10})
    assert (phase.barriers, phase.in_regions) == (1, pytest.approx(100e-9))
    assert phase.threads[0].waited == pytest.approx(0) and phase.threads[1].waited == pytest.approx(40e-9)
    assert [row.waited for row in phase.ops.values()] == [pytest.approx(40e-9)]


def test_trace_has_a_track_for_each_thread(measured):
    events = report.trace(measured)["traceEvents"]
    names = [e["args"]["name"] for e in events if e["ph"] == "M"]
    assert names == ["ops", "thread 0", "thread 1"]
    shown = [e for e in events if e["ph"] == "X"]
    assert {e["tid"] for e in shown} <= {0, 1, 2} and all(e["dur"] >= 0 and e["ts"] >= 0 for e in shown)
    outer = [e for e in shown if e["name"].startswith("prompt: ")]
    inner = [e for e in shown if e["tid"] == 0 and "origin" in e["args"]]
    assert [e["name"] for e in outer] == ["prompt: 16 tokens at 0", "prompt: 8 tokens at 16"]
    first = outer[0]
    within = [e for e in inner if first["ts"] <= e["ts"] <= first["ts"] + first["dur"]]
    assert sum(e["dur"] for e in within) <= first["dur"]


def test_command_writes_its_files(artifact, tmp_path):
    files = [tmp_path / name for name in ("flame.html", "trace.json", "out.json")]
    options = [part for flag, file in zip(("--html", "--trace", "--json"), files) for part in (flag, str(file))]
    done = CliRunner().invoke(app, ["profile", str(artifact), "-p", "8", "-n", "2", "-t", "1", "--layers", *options])
    assert done.exit_code == 0, done.output
    assert "cached_attention" in done.output and "layers.1" in done.output and "generation: 2 tokens" in done.output
    page = files[0].read_text()
    assert "Icicle" in page or "icicle" in page
    assert "<script src" not in page and "■</b> cached_attention" in page
    found = json.loads(files[2].read_text())
    assert [phase["phase"] for phase in found["phases"]] == ["prompt", "generation"]
    assert json.loads(files[1].read_text())["traceEvents"]


def test_what_cannot_be_profiled_is_said(artifact, tmp_path):
    with pytest.raises(InfercError, match="has a context of 128 positions"):
        measure(artifact, prompt=100, generate=100)
    with ZipFile(artifact) as old, ZipFile(tmp_path / "changed.inferc", "w") as new:
        for item in old.infolist():
            data = old.read(item)
            new.writestr(item, data.replace(b"static void step", b"static  void step") if item.filename.endswith(
                "generic.c") else data)  # fmt: skip
    with pytest.raises(InfercError):
        measure(tmp_path / "changed.inferc", prompt=4, generate=0)

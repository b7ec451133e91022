"""`inferc verify`: its arithmetic, that sound models pass, and that a broken kernel is caught and located at its op."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from inferc.backends.c.emulation import missing
from inferc.backends.c.kernels import Call, Kernel, Result
from inferc.backends.c.lower import LOWERINGS
from inferc.backends.c.target import get, named
from inferc.backends.xla import lower as xla_lower
from inferc.compiler import driver
from inferc.compiler.cli import app
from inferc.compiler.commands.options import sizes
from inferc.compiler.frontends import open_source
from inferc.compiler.verification import compare, compiled
from inferc.compiler.verification.verify import Wanted, verify
from inferc.errors import InfercError
from tests.tiny_models import write_model

pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("verify") / "tiny.gguf", "llama", "q8_0")


def test_ulp_distance_counts_the_values_between():
    one = np.float32(1)
    up = np.nextafter(one, np.float32(2))
    a = np.array([1, 1, 0.0, -1, np.nan, np.nan, 0.0], np.float32)
    b = np.array([1, up, -0.0, -up, np.nan, 1, np.float32(1e-45)], np.float32)
    assert compare.ulp_distance(a, b).tolist() == [0, 1, 1, 1, 0, compare.ULPS["more"], 1]
    assert compare.difference(a, b).ulps == {
        "0": 2, "1": 4, "2-3": 0, "4-15": 0, "16-255": 0, "256-65535": 0, "more": 1,
    }  # fmt: skip


def test_difference_is_relative_to_the_first():
    found = compare.difference(np.float32([2, 4]), np.float32([2, 3]))
    assert (found.equal, found.max_abs, found.max_rel) == (False, 1.0, 0.25)
    assert found.norm_rel == pytest.approx(1 / np.sqrt(20))
    assert compare.difference(np.float32([1, np.inf]), np.float32([1, np.nan])).max_abs == np.inf
    assert compare.difference(np.float32([np.nan]), np.float32([np.nan])).equal


def test_agreement_of_known_distributions():
    a, b = np.log(np.float32([[1, 1], [1, 3]])), np.log(np.float32([[1, 3], [1, 3]]))
    found = compare.agreement(a, b)
    assert found.kl_max == pytest.approx(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75), rel=1e-5)
    assert found.kl_mean == pytest.approx(found.kl_max / 2, rel=1e-5)
    assert (found.positions, found.top_1) == (2, 0.5)


def test_sound_backends_agree(model):
    wanted = Wanted(("reference", "c"), ("native", "generic"), tokens=12, exact=True, per_layer=True,
                    tokenizer=True)  # fmt: skip
    report = verify(open_source(model), wanted)
    assert report.ok and report.tokenizer == {"texts": 11, "failures": []}
    exact = [run for run in report.runs if run.against == "interpreter"]
    assert len(exact) == 2 and all(run.difference.equal and run.parting is None for run in exact)
    assert all(row["equal"] for run in exact for row in run.layers) and len(exact[0].layers) == 2
    rounded = next(run for run in report.runs if run.name == "interpreter")
    assert not rounded.difference.equal and 0 < rounded.agreement.kl_mean < 0.05
    assert [row["layer"] for row in rounded.layers] == ["layers.0", "layers.1"]
    assert all(0 < row["norm_rel"] < 0.1 for row in rounded.layers)


def broken(op: str, text: str):
    """Lowerings in which one op's kernel is followed by `text`, which sees its pointers as a0, a1, …"""

    def lowered(node, target) -> Call:
        call = LOWERINGS[op](node, target)
        names = ", ".join(f"a{i}" for i in range(len(call.args)))
        source = f"#define broken_{op}({names}) do {{ {call.kernel.symbol}({names}); {text} }} while (0)"
        return replace(call, kernel=Kernel(f"broken_{op}", source, (call.kernel,)))

    return {**LOWERINGS, op: lowered}


def position_of_result(op: str, model: Path) -> int:
    """Which argument of the op's kernel is its first result."""
    step = driver.plan_model(model, target="generic").module.entries["step"]
    graphs = [step, *(n.attr("graph") for n in step.nodes() if n.op.name == "call")]
    node = next(n for g in graphs for n in g.nodes() if n.op.name == op)
    return LOWERINGS[op](node, get("generic").ir).args.index(Result(0))


@pytest.mark.parametrize("op, origin", [
    ("cached_attention", "layers.1.attention"), pytest.param("linear_add", "layers.0", marks=pytest.mark.slow),
])  # fmt: skip
def test_a_broken_kernel_is_located(op, origin, model):
    """One element, by one part in a million, which int8 activations may swallow; of attention in one layer alone."""
    at = position_of_result(op, model)
    second = " if (observed_layer++ % 2)" if op == "cached_attention" else ""
    text = f"{{ static int observed_layer; (void)observed_layer;{second} ((float *)a{at})[3] *= 1.000001f; }}"
    wanted = Wanted(("interpreter", "c"), ("generic",), tokens=6, exact=True, threads=1, lowerings=broken(op, text))
    report = verify(open_source(model), wanted)
    assert not report.ok
    run = report.runs[-1]
    assert run.failures and run.parting is not None
    assert run.parting["op"] == op and run.parting["index"][-1] == 3
    assert run.parting["layer"] == origin.rpartition(".attention")[0] or run.parting["layer"] == origin
    assert run.parting["differing"] == 1 and run.parting["difference"]["max_rel"] < 1e-5
    assert run.parting["found"] == pytest.approx(run.parting["expected"] * 1.000001, rel=3e-7)
    assert run.parting["operands"][0]["shape"][0] == 6
    assert any(op in line for line in run.lines)


def test_functions_are_compared_by_their_outputs(tmp_path):
    source = "def f(x: 'float32[n, 4]', i: 'int32[n]'):\n    return x * 0.1 + i[:, None], x.sum(axis=1)\n"
    (tmp_path / "some.py").write_text(source)
    report = verify(open_source(tmp_path / "some.py:f"), Wanted(("reference", "interpreter", "c"), exact=True))
    assert report.ok and [(r.name.partition("/")[0], r.against, r.difference.equal) for r in report.runs] == [
        ("interpreter", "reference", True), ("c", "interpreter", True), ("c", "reference", True),
    ]  # fmt: skip
    failed = verify(open_source(tmp_path / "some.py:f"), Wanted(("reference", "interpreter"), norm=-1.0))
    assert not failed.ok and "at most -1 is allowed" in failed.runs[0].failures[0]


def test_a_broken_kernel_of_a_function_is_located(tmp_path):
    """One element of one product, by one part in a million: named by its op, with what it was given."""
    source = "import jax.numpy as jnp\n\ndef f(x: 'float32[3, 4]', y: 'float32[4, 5]'):\n    return jnp.sort(x @ y)\n"
    (tmp_path / "some.py").write_text(source)
    some = open_source(tmp_path / "some.py:f")
    whole = Wanted(("interpreter", "c"), ("generic",), exact=True, threads=1)
    sound = verify(some, whole)
    assert sound.ok and sound.runs[0].parting is None and sound.runs[0].difference.equal
    module = driver.plan(some, driver.Options(target="generic")).module
    node = next(n for n in module.entries["run"].nodes() if n.op.name in LOWERINGS and n.types[0].shape == (3, 5))
    at, op = LOWERINGS[node.op.name](node, get("generic").ir).args.index(Result(0)), node.op.name
    run = verify(some, replace(whole, lowerings=broken(op, f"((float *)a{at})[7] *= 1.000001f;"))).runs[0]
    assert run.failures and run.parting is not None
    assert (run.parting["op"], run.parting["index"], run.parting["differing"]) == (op, (1, 2), 1)
    assert run.parting["found"] == pytest.approx(run.parting["expected"] * 1.000001, rel=3e-7)
    assert run.parting["operands"][0]["shape"] == [3, 4] and "std" in run.parting["operands"][0]


def test_an_op_that_xla_computes_wrongly_is_located(model, tmp_path, monkeypatch):
    """In a language model's layer, and in a function."""
    sound = verify(open_source(model), Wanted(("reference", "xla"), tokens=6, per_layer=True))
    assert sound.ok and sound.runs[0].parting is None
    assert [row["layer"] for row in sound.runs[0].layers] == ["layers.0", "layers.1"]
    assert all(row["norm_rel"] < 1e-3 for row in sound.runs[0].layers)
    right = xla_lower.LOWERINGS["exp"]
    monkeypatch.setitem(xla_lower.LOWERINGS, "exp", lambda step: step.writer.mul(right(step), right(step)))
    run = verify(open_source(model), Wanted(("reference", "xla"), tokens=6, kl=1e-5)).runs[0]
    assert run.failures and run.parting["op"] == "exp" and run.parting["layer"] == "layers.0"
    assert run.parting["found"] == pytest.approx(run.parting["expected"] ** 2, rel=1e-4)
    (tmp_path / "some.py").write_text("import jax.numpy as jnp\n\ndef f(x: 'float32[4]'):\n    return jnp.exp(x) + 1\n")
    run = verify(open_source(tmp_path / "some.py:f"), Wanted(("reference", "xla"))).runs[0]
    assert run.failures and run.parting["op"] == "exp" and run.parting["operands"][0]["shape"] == [4]


def test_targets_are_named_by_platform_too():
    names = [t.label for t in compiled.chosen(("x86-64-v3", "x86-64-v4", "avx2", "riscv64-linux", "aarch64-macos"))]
    assert names == ["avx2", "avx512vnni", "generic-riscv64", "neon-macos", "neon_i8mm-macos"]
    assert compiled.missing(named("aarch64-macos")[0]) == "neon-macos is not run: there is no emulator of macos here"
    with pytest.raises(InfercError, match="there is no target 'mmx'"):
        compiled.chosen(("mmx",))


@pytest.mark.slow
@pytest.mark.skipif(bool(missing("generic", "riscv64")), reason=missing("generic", "riscv64"))
def test_a_foreign_platform_has_the_same_bits(model, tmp_path):
    (tmp_path / "some.py").write_text("def f(x: 'float32[n, 4]'):\n    return x * 0.1, x.sum(axis=1)\n")
    for path, dims in ((model, {}), (tmp_path / "some.py:f", {"n": 5})):
        wanted = Wanted(("interpreter", "c"), ("riscv64-linux",), tokens=6, exact=True, dims=dims)
        report = verify(open_source(path), wanted)
        assert report.ok and [run.name for run in report.runs] == ["c/generic-riscv64"]
        assert not report.left_out


def test_sizes_of_functions_are_chosen(tmp_path):
    (tmp_path / "some.py").write_text("def f(x: 'float32[n, 4]'):\n    return x + 1\n")
    some = open_source(tmp_path / "some.py:f")
    assert verify(some, Wanted(("reference", "interpreter"), dims={"n": 7})).runs[0].difference.ulps["0"] == 28
    with pytest.raises(InfercError, match="has no size m=7: sizes with names are n from"):
        verify(some, Wanted(dims={"m": 7}))
    with pytest.raises(InfercError, match="give NAME=SIZE"):
        sizes(["n=x"])


def test_what_cannot_be_verified_is_said(model):
    with pytest.raises(InfercError, match="there is no backend 'tpu' to verify"):
        verify(open_source(model), Wanted(("tpu",)))
    with pytest.raises(InfercError, match="give one of two or more"):
        verify(open_source(model), Wanted(text="t"))
    with pytest.raises(InfercError, match="nothing to compare: .*; generic-windows is not run: there is no emulator"):
        verify(open_source(model), Wanted(("reference", "c"), ("x86_64-windows",), tokens=4))


def test_command_writes_json_and_exit_codes(model, tmp_path):
    arguments = ["verify", str(model), "--backends", "reference,c", "-n", "4", "--json", str(tmp_path / "out.json")]
    passed = CliRunner().invoke(app, arguments)
    assert passed.exit_code == 0 and "as it should be" in passed.output
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["ok"] and found["tokens"] == 4 and [r["against"] for r in found["runs"]] == ["reference"]
    failed = CliRunner().invoke(app, [*arguments, "--kl", "0"])
    assert failed.exit_code == 1 and "FAILED" in failed.output and "at most 0 is allowed" in failed.output
    assert not json.loads((tmp_path / "out.json").read_text())["ok"]

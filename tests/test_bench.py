"""`inferc bench`: its tests' names, what rows say, that what is missing is said, and the command on tiny models."""

from __future__ import annotations

import csv
import io
import json
import stat
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from inferc.benchmarks import suite, tables
from inferc.benchmarks.costs import Costs
from inferc.benchmarks.engines import TABLE, adapter
from inferc.benchmarks.engines.base import Job
from inferc.benchmarks.tests import Test as Case
from inferc.benchmarks.tests import grid
from inferc.compiler.cli import app
from inferc.compiler.driver import compile_model
from inferc.errors import InfercError
from inferc.runtime.artifact import Artifact
from inferc.runtime.session import Engine
from tests.tiny_models import write_model

# A `llama-bench` of another engine, which counts its runs and gives each a time.
FAKE = """#!{python}
import json, sys
a = sys.argv[1:]
get = lambda flag: int(a[a.index(flag) + 1])
if get("-t") == 7: sys.exit("seven threads are too many")
p, n = get("-p"), get("-n")
if "-gp" in a: p, n = map(int, a[a.index("-gp") + 1].split(","))
speed = 100.0 if n else 1000.0
print("loading")
print(json.dumps([dict(n_prompt=p, n_gen=n, samples_ts=[speed / 2, speed][: get("-r")], build_commit="abc")]))
"""


pytestmark = pytest.mark.usefixtures("quick_compiler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_model(folder / "tiny.gguf", "llama", "q8_0")
    fake = folder / "llama-bench"
    fake.write_text(FAKE.format(python=sys.executable))
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    return folder


def test_names_of_tests():
    for text in ("pp512", "tg128", "tg64 @ d4096", "tg16x4", "tg16x4 @ d8", "run"):
        assert Case.parse(text).name == text
    assert Case.parse("tg64@4096") == Case(generate=64, depth=4096)
    assert Case.parse("tg16x4").tokens == 64 and Case.parse("pp8").tokens == 8 and Case().tokens == 1
    for wrong in ("", "pp", "xx12", "tg1.5", "run3", "pp12@"):
        with pytest.raises(ValueError, match="is no test"):
            Case.parse(wrong)
    assert [t.name for t in grid([8], [4], [0, 16], [1, 2])] == [
        "pp8", "tg4", "tg4x2", "pp8 @ d16", "tg4 @ d16", "tg4x2 @ d16",
    ]  # fmt: skip


def test_limits_of_a_row():
    """Decode is bound by bytes over bandwidth, a batch reads the weights once; a prompt by multiply-adds over peaks."""
    of = Costs(1000, {"int8_dot": 50}, {"int8_dot": 100}, ((0, 4), (2, 4)))
    seen = suite.Seen([2.0], [[4000.0, 2000.0, 6000.0]], [[{"int8_dot": 1000.0}]])
    decode = suite._decode_limit(Case(generate=4, depth=8), of, seen, 1.0, ())
    assert decode["bytes_per_token"] == 1000 + 2 * (4 * 10 + 4 * 2)
    assert decode["fraction"] == pytest.approx(decode["bytes_per_token"] / 4000)
    assert suite._decode_limit(Case(generate=4, batch=4), of, seen, 1.0, ())["bytes_per_token"] == 250 + 2 * 8 * 2
    prompt = suite._prompt_limit(Case(prompt=4), of, seen, 5.0, ())
    assert prompt["limit"] == pytest.approx(4 / ((4 * 50 + 100) / 1000)) and prompt["macs_per_token"] == 75
    assert prompt["fraction"] == pytest.approx(5 / prompt["limit"])


def test_own_runs_are_fractions_of_the_limits_around_them():
    """A machine that is half as fast for a while changes no fraction."""
    of = Costs(1000, {"int8_dot": 50}, {}, ())
    seen = suite.Seen([], [[4000.0], [2000.0, 2000.0], [2000.0]], [[{"int8_dot": p}] * 2 for p in (1e3, 5e2, 5e2)])
    speeds = [2.0, 1.0, 1.0]
    assert suite._decode_limit(Case(generate=4), of, seen, 1.0, speeds)["fraction"] == pytest.approx(0.5)
    assert suite._prompt_limit(Case(prompt=4), of, seen, 1.0, speeds)["fraction"] == pytest.approx(0.1)
    peers = suite._prompt_limit(Case(prompt=4), of, seen, 1.0, ())
    assert peers["fraction"] == pytest.approx(1.0 / (500 / 50))


def test_every_adapter_says_what_it_misses(tmp_path):
    for name in TABLE:
        chosen = adapter(name)
        assert chosen.name == name and set(chosen.kinds) <= {"language", "function"}
        odd = chosen.missing(Job("m", tmp_path / "m.unknown", "language", 1, 8))
        assert name in ("c", "xla", "iree") or odd, name  # these are asked for once the artifacts are there
    with pytest.raises(ValueError, match="there is no backend 'vllm'"):
        adapter("vllm")


def test_sessions_in_one_pass_are_sessions_alone(folder):
    compile_model(str(folder / "tiny.gguf"), folder / "tiny.inferc", target="generic", chunk=16)
    engine = Engine(Artifact(folder / "tiny.inferc"), 1)
    alone, together = [engine.session() for _ in range(3)], [engine.session() for _ in range(3)]
    for i, session in enumerate((*alone, *together)):
        session.eval([5, 6, 7, 8][: 1 + i % 3])
    expected = np.concatenate([s.eval([9 + i]) for i, s in enumerate(alone)])
    found = engine.decode([(s, 9 + i) for i, s in enumerate(together)])
    np.testing.assert_array_equal(found, expected)
    with pytest.raises(InfercError):
        engine.decode([(together[0], 1), (together[0], 2)])
    assert [s.position for s in together] == [2, 3, 4]
    engine.close()


def text_of(folder: Path, form: str) -> str:
    return (folder / f"out.{form}").read_text()


def test_command_measures_and_says_what_it_left_out(folder):
    arguments = ["bench", f"{folder / 'tiny.gguf'}=pp16,tg4,tg4@16,tg4x2", "--backends", "c,openvino", "-r", "2",
                 "-t", "1", "--depth-rounds", "1", "--peer", f"llama.cpp={folder / 'llama-bench'}", "-o",
                 "md,csv,json,html", "--output", str(folder / "out")]  # fmt: skip
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads((folder / "out.json").read_text())
    rows = {(row["backend"], row["test"]): row for row in found["rows"]}
    assert set(rows) == {("c", "pp16"), ("c", "tg4"), ("c", "tg4 @ d16"), ("c", "tg4x2"), ("llama.cpp", "pp16"),
                         ("llama.cpp", "tg4"), ("llama.cpp", "tg4 @ d16")}  # fmt: skip
    wanted = {"model", "backend", "test", "n_prompt", "n_gen", "n_depth", "batch", "threads", "tokens_per_second",
              "tokens_per_second_min", "tokens_per_second_max", "peak_memory_bytes", "load_seconds"}  # fmt: skip
    for row in rows.values():
        assert wanted <= row.keys()
        assert row["tokens_per_second_min"] <= row["tokens_per_second"] <= row["tokens_per_second_max"]
        assert len(row["samples"]) == (1 if row["n_depth"] else 2)
    assert rows["llama.cpp", "pp16"]["samples"] == pytest.approx([1000, 1000])  # the second of each process's two
    assert rows["llama.cpp", "tg4 @ d16"]["samples"] == pytest.approx([50])  # one run, warmed by its prompt
    ours = rows["c", "tg4"]
    assert ours["load_seconds"] > 0 and ours["first_token_seconds"] > ours["load_seconds"]
    assert 0 < rows["c", "pp16"]["fraction"] and "fraction" not in ours  # the weights fit into caches
    assert ours["artifact_bytes"] > 1000 and ours["peak_memory_bytes"] > 0
    left_out = {(x["backend"], x["test"]): x["reason"] for x in found["left_out"]}
    assert left_out["openvino", "all"].startswith("it reads no .gguf")
    assert left_out["llama.cpp", "tg4x2"] == "llama-bench has no test of several sequences"
    commands = found["engines"]["llama.cpp"]["commands"]
    assert commands["tg4 @ d16"].endswith("llama-bench -m MODEL -t N -o json -fa 1 -p 0 -n 4 -d 16 -r 1")
    assert found["command"] in text_of(folder, "md") and all(c in text_of(folder, "md") for c in commands.values())
    assert found["engines"]["llama.cpp"]["build_commit"] == "abc" and found["machine"]["cpu"]
    assert str(folder) not in (folder / "out.json").read_text()
    text = (folder / "out.md").read_text()
    assert "## Left out" in text and "| tiny | tg4 | 1 |" in text and str(folder) not in text
    lines = list(csv.DictReader(io.StringIO((folder / "out.csv").read_text())))
    assert len(lines) == len(rows) + len(found["left_out"])
    page = (folder / "out.html").read_text()
    assert "Roofline" in page and "Latency over depth" in page and "<script src" not in page


def test_failures_of_a_peer_are_said(folder):
    models = ((folder / "tiny.gguf", (Case(prompt=4),)),)
    plan = suite.Plan(models, ("llama.cpp", "ik_llama.cpp", "torch.compile"), (7,), 1, 1,
                      {"llama.cpp": str(folder / "llama-bench")})  # fmt: skip
    results = suite.run(plan, lambda line: None)
    assert results.rows == []
    reasons = {x["backend"]: x["reason"] for x in results.left_out}
    assert "seven threads are too many" in reasons["llama.cpp"]
    assert reasons["ik_llama.cpp"].startswith("name its llama-bench")
    assert reasons["torch.compile"] == "it runs functions, no language models"
    assert tables.speeds(results.rows) == "Nothing was measured."


@pytest.mark.parametrize("arguments, message", [
    (["--backends", "vllm"], "there is no backend 'vllm'"),
    (["-p", "x"], "is no list of numbers"),
    (["-o", "xml"], "there is no format 'xml'"),
    (["-o", "md,csv"], "several formats need --output"),
    (["--peer", "llama.cpp=/nowhere/llama-bench"], "of a program that can be run"),
])  # fmt: skip
def test_wrong_arguments_are_said(folder, arguments, message):
    done = CliRunner().invoke(app, ["bench", str(folder / "tiny.gguf"), *arguments])
    assert isinstance(done.exception, InfercError) and message in str(done.exception)

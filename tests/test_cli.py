"""The command line on a tiny model, as processes: what is printed where, exit codes, and errors of one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import pytest

from inferc.compiler.pipeline import PASSES
from tests.tiny_models import write_model

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def model(home) -> Path:
    return write_model(home / "tiny.gguf", "llama", "q8_0", tokenizer="bpe")


@pytest.fixture(scope="module")
def inferc(home):
    """Runs the command with a cache of its own; `fails=True` demands a one-line error and exit code 1.

    `hidden` names a package that the process shall not find.
    """

    def run(*arguments, fails=False, hidden="", **environment) -> subprocess.CompletedProcess[str]:
        own = {"PYTHONPATH": str(ROOT / ".dev"), "XDG_CACHE_HOME": str(home / "cache")}
        variables = os.environ | own | environment
        code = f"import sys; sys.modules[{hidden!r}] = None; from inferc.compiler.cli import main; main()"
        command = [sys.executable, "-c", code, *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, env=variables, stdin=subprocess.DEVNULL)
        if fails:
            lines = result.stderr.strip().splitlines()
            assert result.returncode == 1 and len(lines) == 1 and lines[0].startswith("error: "), result.stderr
        else:
            assert result.returncode == 0, result.stderr
        return result

    return run


@pytest.fixture(scope="module")
def artifact(inferc, model, home) -> Path:
    path = home / "tiny.inferc"
    inferc("compile", model, "-o", path, "--target", "generic", "--dump-ir", home / "stages")
    return path


def test_compile_writes_the_stages(artifact, home):
    stages = sorted(p.name for p in (home / "stages").iterdir())
    assert stages == [f"{i:02d}-{name}.txt" for i, name in enumerate(("traced", *(p.name for p in PASSES)))]
    before, after = (next((home / "stages").glob(f"*-{name}.txt")).read_text() for name in ("quantize", "fuse"))
    assert "gated_linear" in after and "gated_linear" not in before


def test_run_is_the_same_from_model_and_artifact(inferc, artifact, model, home):
    options = ("-p", "the king", "-n", 8, "-t", 1)
    first = inferc("run", artifact, *options)
    assert first.stdout.startswith("the king") and "tokens/s" in first.stderr
    assert inferc("run", model, *options).stdout == first.stdout
    cached = list((home / "cache").rglob("*.inferc"))
    assert len(cached) == 1
    before = cached[0].stat().st_mtime_ns
    assert inferc("run", model, *options).stdout == first.stdout
    assert cached[0].stat().st_mtime_ns == before, "a second run must not compile again"


def test_ids(inferc, artifact):
    lines = inferc("run", artifact, "-p", "the", "-n", 5, "--ids").stdout.splitlines()
    assert len(lines) == 2 and all(word.isdigit() for line in lines for word in line.split())
    assert len(lines[1].split()) <= 5


def test_seed_decides_a_sampled_text(inferc, artifact):
    def sampled(seed: int) -> str:
        options = ("-n", 12, "--temp", 1.5, "--top-k", 50, "--seed", seed, "--ids")
        return inferc("run", artifact, "-p", "the", *options).stdout

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(4)}) > 1


def test_inspect(inferc, artifact, model):
    for what in (artifact, model):
        text = inferc("inspect", what, "--tensors").stdout
        assert "q8_0" in text and "blk.1.ffn_down.weight" in text and "workspace" in text and "linear" in text
    assert "step" in inferc("inspect", artifact, "--ir").stdout


def test_perplexity(inferc, artifact, home):
    text = home / "text.txt"
    text.write_text("the king and the queen in the sea " * 8)
    result = inferc("perplexity", artifact, "--file", text, "--context", 32)
    assert result.stdout.startswith("perplexity ") and "[1/" in result.stderr


def test_pull_of_a_file_prints_it(inferc, model):
    assert inferc("pull", model).stdout.strip() == str(model)


def test_help_teaches(inferc):
    assert "inferc run smollm2" in inferc("--help").stdout
    assert "--min-p" in inferc("run", "--help").stdout


def test_prompt_longer_than_the_context(inferc, artifact):
    error = inferc("run", artifact, "-p", "the king " * 200, fails=True).stderr
    assert "context holds 128" in error and "--context" in error


def test_unknown_model_and_target(inferc, model, home):
    assert "smollm2" in inferc("run", "nothing", "-p", "x", fails=True).stderr
    out = home / "never.inferc"
    assert "avx512vnni" in inferc("compile", model, "-o", out, "--target", "z80", fails=True).stderr
    assert "128" in inferc("compile", model, "-o", out, "--context", 999999, fails=True).stderr
    assert not out.exists()


def test_truncated_model(inferc, model, home):
    cut = home / "cut.gguf"
    cut.write_bytes(model.read_bytes()[:-1000])
    out = home / "never.inferc"
    assert str(cut) in inferc("compile", cut, "-o", out, fails=True).stderr
    assert not list(home.glob("*never*"))


def test_missing_compiler(inferc, model, home):
    empty = home / "empty"
    empty.mkdir()
    out = home / "never.inferc"
    error = inferc("compile", model, "-o", out, fails=True, hidden="ziglang", PATH=str(empty), CC="").stderr
    assert "compiler" in error and "install" in error
    assert "CC" in inferc("compile", model, "-o", out, fails=True, CC="no-such-cc").stderr
    assert not list(home.glob("*never*"))


ENDED = """
import os, signal, sys
from inferc.compiler import cli
from inferc.runtime.artifact import ArtifactWriter

def app():
    with ArtifactWriter(sys.argv[1]) as writer:
        writer.write("part", bytes(100))
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

cli.app = app
cli.main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="processes are ended otherwise there")
def test_nothing_is_left_half_written_where_the_process_is_ended(home, tmp_path):
    variables = os.environ | {"PYTHONPATH": str(ROOT / ".dev")}
    ended = subprocess.run([sys.executable, "-c", ENDED, str(tmp_path / "m.inferc")], env=variables, timeout=60)
    assert ended.returncode == 128 + signal.SIGTERM and not list(tmp_path.iterdir())


def test_dump_folder_that_is_a_file(inferc, model, home):
    error = inferc("compile", model, "-o", home / "never.inferc", "--dump-ir", model, fails=True).stderr
    assert "cannot write the graph" in error and not (home / "never.inferc").exists()


def test_folder_that_is_not_there(inferc, model, home):
    assert "nowhere" in inferc("compile", model, "-o", home / "nowhere" / "x.inferc", fails=True).stderr


@pytest.mark.parametrize(
    "change", [('"version": 1', '"version": 7'), ('"cpu_features": []', '"cpu_features": ["warp"]')]
)
def test_artifact_of_another_version_or_cpu(inferc, artifact, home, change):
    other = home / "other.inferc"
    with ZipFile(artifact) as source, ZipFile(other, "w", ZIP_STORED) as copy:
        for name in source.namelist():
            data = source.read(name)
            if name == "manifest.json":
                assert change[0].encode() in data
                data = data.replace(change[0].encode(), change[1].encode())
            copy.writestr(name, data)
    assert "compile" in inferc("run", other, "-p", "x", fails=True).stderr

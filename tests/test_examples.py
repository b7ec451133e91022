"""The programs in examples/ and the pages of docs/embed that show them: all print the same text."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from inferc.backends.c import toolchain
from inferc.backends.c.emulation import missing as machine_missing
from inferc.compiler import hub
from inferc.compiler.driver import compile_model

from . import pages
from .browser import Browser, chromium
from .test_emit import TARGET, emitted_as
from .tiny_models import write_model

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PROMPT = "Once upon a time"
STRICT = ("-Wall", "-Wextra", "-pedantic", "-Werror", "-I.")
PAGES = ("c", "cpp", "python", "rust", "go", "node")
QUICK = ("cpp", "python", "rust")


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, cwd=cwd, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@cache
def talker() -> Path:
    """A tiny model with room for conversations; its answers are those of `test_emit.model`."""
    folder = Path(mkdtemp(prefix="inferc-pages-"))
    return write_model(folder / "tiny.gguf", "llama", "q4_0", tokenizer="bpe", metadata={"context_length": 2048})


@cache
def tiny(name: str, emit: str, weights: str, prefix: str, target: str, embeddings: bool) -> Path:
    """A folder with a tiny model in a form, compiled quickly."""
    folder = Path(mkdtemp(prefix="inferc-pages-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toolchain, "FLAGS", (*toolchain.FLAGS, "-O1"))
        compile_model(str(talker()), folder / name, prefix=prefix, emit=emit, chunk=64, weights=weights,
                      embeddings=embeddings, target=TARGET if target == "native" else target)  # fmt: skip
    return folder


@cache
def real(name: str, emit: str, weights: str, prefix: str, target: str, embeddings: bool) -> Path:
    """A folder with SmolLM2 in a form."""
    folder = Path(mkdtemp(prefix="inferc-pages-"))
    path = hub.pull("smollm2", lambda *_: None)
    compile_model(str(path), folder / name, prefix=prefix, emit=emit, weights=weights, target=target,
                  embeddings=embeddings)  # fmt: skip
    return folder


@cache
def wanted() -> str:
    """What the C example prints."""
    folder = emitted_as("model", "a")
    run(toolchain.find_compiler()[0], "-std=c11", *STRICT, EXAMPLES / "c/main.c", "libmodel.a", "-lm", "-pthread", "-o",
        "c-main", cwd=folder)  # fmt: skip
    text = run("./c-main", PROMPT, cwd=folder)
    assert len(text) > 10 and text == run("./c-main", PROMPT, cwd=folder)
    assert text != run("./c-main", "Something else", cwd=folder)
    return text


def test_examples_are_short_and_those_of_the_pages() -> None:
    sources = sorted(EXAMPLES.glob("*/main.*"))
    assert sorted(source.parent.name for source in sources) == sorted(PAGES)
    for source in sources:
        assert len(source.read_text().splitlines()) < 60, source
    for page in PAGES:
        shown = {block.name: block.text for block in pages.blocks(page)}
        for source in (EXAMPLES / page).iterdir():
            assert shown[source.name] == source.read_text(), f"docs/embed/{page}.md shows another {source.name}"


@pytest.mark.parametrize("name", ["chat", "many"])
def test_c_examples_are_clean(name: str) -> None:
    run(toolchain.find_compiler()[0], "-std=c11", *STRICT, "-fsyntax-only", EXAMPLES / f"c/{name}.c",
        cwd=emitted_as("model", "a"))  # fmt: skip


def test_the_example_of_embeddings() -> None:
    folder = tiny("libembed.a", "a", "embed", "embed", "native", True)
    run(toolchain.find_compiler()[0], "-std=c11", *STRICT, EXAMPLES / "c/embed.c", "libembed.a", "-lm", "-pthread",
        "-o", "c-embed", cwd=folder)  # fmt: skip
    lines = run("./c-embed", "the one", "the one", "an is", cwd=folder).splitlines()
    assert lines[:2] == ["1.00 the one"] * 2 and lines[2].endswith(" an is") and not lines[2].startswith("1.00")


def test_cpp_is_clean() -> None:
    compiler = pages.missing("cpp") or "c++"
    if compiler != "c++":
        pytest.skip(f"no {compiler} here")
    run(compiler, "-std=c++17", *STRICT, "-fsyntax-only", EXAMPLES / "cpp/main.cpp", cwd=emitted_as("model", "a"))


@pytest.mark.parametrize("page", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PAGES])
def test_pages_run_as_they_are_written(page: str, tmp_path: Path) -> None:
    """With a tiny model: where a page shows the text that the C page shows first, this model's text is printed."""
    _skip_what_cannot_run(page)
    shown = next(block.text for block in pages.blocks("c") if block.language == "text")
    same = [printed for printed, written in pages.follow(page, tmp_path, tiny) if written == shown]
    assert same and set(same) == {wanted()}


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_pages_print_what_they_say(page: str, tmp_path: Path) -> None:
    """With the model that they name."""
    _skip_what_cannot_run(page)
    for printed, written in pages.follow(page, tmp_path, real):
        assert printed == written


def _skip_what_cannot_run(page: str) -> None:
    if program := pages.missing(page):
        pytest.skip(f"no {program} here (make emulators)")
    if page == "node" and (reason := machine_missing("wasm128")):
        pytest.skip(reason)


@pytest.mark.slow
@pytest.mark.skipif(not chromium(), reason="no chromium here (make emulators)")
def test_the_page_on_browsers(tmp_path: Path) -> None:
    """Its server and its pages; the first shows the text that it says, of the model that it names."""
    _skip_what_cannot_run("node")
    ((_, says),) = pages.follow("browser", tmp_path, real)
    script = (tmp_path / "serve.py").read_text().replace("8000", "0") + "\n"
    script = script.replace("server.serve_forever()", "print(server.server_port, flush=True)\nserver.serve_forever()")
    server = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, env=os.environ)  # fmt: skip
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        with Browser(tmp_path / "profile") as browser:
            browser.open(f"{url}/index.html")
            browser.wait("document.title === 'Done'", 300)
            assert browser.evaluate("crossOriginIsolated")
            assert browser.evaluate("document.getElementById('text').textContent") == says.removesuffix("\n")
            browser.open(f"{url}/chat.html")
            browser.wait("document.title === 'Done'", 300)
            assert len(browser.evaluate("document.getElementById('answer').textContent")) > 20
    finally:
        server.terminate()
        server.wait()

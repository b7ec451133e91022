"""The README's figures are those of the committed results, what it links to is there, and how the results are made."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.main import get_command

from inferc.benchmarks import compare, readme
from inferc.benchmarks.tests import Test as Case
from inferc.compiler.cli import app

README = readme.ROOT / "README.md"


def test_figures_are_those_of_the_results():
    text = README.read_text("utf-8")
    assert {mark[1] for mark in readme.MARK.finditer(text)} == {"bench", "quality"}
    assert readme.rewritten(text) == text, "write them again: python benchmarks/readme.py"


def test_a_changed_figure_is_seen():
    text = README.read_text("utf-8")
    found = next(readme.MARK.finditer(text))
    digit = re.search(r"\| (\d+)(\.\d)? \|", found[3])
    assert digit
    at = found.start(3) + digit.start(1)
    changed = f"{text[:at]}{(int(text[at]) + 1) % 10}{text[at + 1 :]}"
    assert changed != text and readme.rewritten(changed) == text


def test_results_have_every_form_and_the_command():
    for mark in readme.MARK.finditer(README.read_text("utf-8")):
        if mark[1] == "bench":
            stem = readme.RESULTS / mark[2].removesuffix(".json")
            assert all(stem.with_name(f"{stem.name}.{form}").exists() for form in ("json", "html", "md"))
            command = json.loads(stem.with_name(mark[2]).read_text("utf-8"))["command"]
            assert command.startswith("inferc bench ")
            assert command in stem.with_name(f"{stem.name}.md").read_text("utf-8")


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text("utf-8")):
        assert (Path(readme.ROOT) / target).exists(), target


def test_an_unknown_mark_is_refused():
    with pytest.raises(ValueError, match="no mark for bench"):
        readme.rewritten("# nothing\n", {"bench": "some.json"})


def test_the_comparison_asks_for_what_there_is(tmp_path):
    """Every model is made from one before it, every test is one, and what is there is not made again."""
    files = [model.file for model in compare.MODELS]
    for i, model in enumerate(compare.MODELS):
        assert not model.of or model.of in files[:i]
        assert all(map(Case.parse, model.tests.split(",")))
        (tmp_path / model.file).touch()
        assert compare.made(model, tmp_path, Path("/nowhere")) == tmp_path / model.file
    peers = {"llama.cpp": Path("/bin/sh"), "ik_llama.cpp": Path("/bin/sh")}
    words = compare.command(tmp_path, peers, tmp_path / "out", ["-t", "1"])
    named = dict(zip(words, words[1:]))
    assert words[0] == "bench" and named["--backends"] == "c,llama.cpp,ik_llama.cpp" and words[-2:] == ["-t", "1"]
    options = {name for p in get_command(app).commands["bench"].params for name in p.opts}
    assert {word for word in words if word.startswith("-")} <= options

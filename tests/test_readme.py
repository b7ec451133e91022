"""The README's figures are those of the committed results, and what it links to is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from inferc.benchmarks import readme

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
            assert command.startswith("inferc bench ") and command in stem.with_name(f"{stem.name}.md").read_text("utf-8")


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text("utf-8")):
        assert (Path(readme.ROOT) / target).exists(), target


def test_an_unknown_mark_is_refused():
    with pytest.raises(ValueError, match="no mark for bench"):
        readme.rewritten("# nothing\n", {"bench": "some.json"})

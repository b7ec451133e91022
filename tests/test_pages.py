"""The programs on the pages of the front ends are complete: each runs in an empty folder and prints what it says.

Those of docs/jax.md, which has a file for the command line too, run in test_jax_function.py.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("quick_compiler"),
]

DOCS = Path(__file__).parent.parent / "docs"
PAGES = {  # what each needs, and what its program prints
    "onnx.md": ("onnx", r"\[\[0\.25 0\.25 0\.25 0\.25\]\n(.*\n){2}"),
    "pytorch.md": ("torch", r"\(5, 4\)\n"),
    "huggingface.md": ("transformers", r"\[\d+(, \d+){7}\]\n"),
}


@pytest.mark.parametrize("page", PAGES)
def test_the_program_of_the_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needed, printed = PAGES[page]
    pytest.importorskip(needed)
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(program, names)
    assert re.fullmatch(printed, out.getvalue()), out.getvalue()

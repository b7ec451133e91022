"""`--emit wasm`: the package in Node and in a browser; one thread or several, the same text and bits."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from inferc.backends.c.emulation import missing, replay
from inferc.compiler import checking
from inferc.errors import InfercError

from .browser import Browser, Server, chromium
from .test_emit import IDS, emitted, wanted
from .test_examples import wanted as wanted_text

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing("wasm128")), reason=missing("wasm128") or "runs here"),
]

SCRIPT = """
import { createHash } from "node:crypto";
import { Model } from "%s/index.js";
const [ids, golden] = [%s, %s];
const hash = (array) => createHash("sha256").update(array).digest("hex");
for (const threads of [1, 3]) {
  const model = await Model.load({ threads });
  const session = model.session(64);
  const made = [];
  let logits = session.feed(ids);
  const [saved, twin] = [session.save(), model.session(64)];
  while (made.length < 8) {
    made.push(logits.indexOf(Math.max(...logits)));
    logits = session.eval(made.slice(-1));
  }
  const restored = model.restore(saved, 64);
  const again = restored.eval([made[0]]);
  const after = restored.rewind(ids.length) === ids.length && hash(restored.eval([made[0]])) === hash(again);
  let damaged = "";
  saved[saved.length - 1] ^= 1;
  try { model.restore(saved, 64); } catch (error) { damaged = error.message; }
  const logitsOf = ({ ids, sha256 }) => {
    const all = [];
    const session = model.session(64);
    for (let i = 0; i < ids.length; i += 16) all.push(session.eval(ids.slice(i, i + 16), Math.min(16, ids.length - i)));
    return hash(Buffer.concat(all.map((a) => Buffer.from(a.buffer)))) === sha256;
  };
  const asked = golden.map(logitsOf);
  let text = "";
  for await (const piece of model.generate("Once upon a time", { maxTokens: 32 })) text += piece;
  let drawn = [];
  for (const seed of [1, 1, 2]) {
    let said = "";
    for await (const p of model.generate("Once", { maxTokens: 12, temperature: 1, seed })) said += p;
    drawn.push(said);
  }
  console.log(JSON.stringify({ threads: model.threads, made, after, damaged, asked, text, drawn }));
  twin.free();
  model.close();
}
"""


def test_node_gives_the_same_bits_with_one_thread_and_several(tmp_path: Path) -> None:
    package = emitted("wasm")
    golden = json.loads((package / "manifest.json").read_text())["golden"]
    script = tmp_path / "script.mjs"
    script.write_text(SCRIPT % (package, f"[{IDS.replace(' ', ',')}]", json.dumps(golden)))
    done = subprocess.run(["node", "--no-liftoff", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, three = map(json.loads, done.stdout.splitlines())
    assert (one.pop("threads"), three.pop("threads")) == (1, 3)
    assert one == three
    assert one["made"] == list(map(int, wanted().split())) and one["asked"] == [True] * len(golden) and one["after"]
    assert one["damaged"].startswith("the saved session is truncated, altered or of another model")
    assert one["text"] == wanted_text().removesuffix("\n")
    assert one["drawn"][0] == one["drawn"][1] != one["drawn"][2]


def test_a_package_is_checked(tmp_path: Path) -> None:
    """Hashes, and the golden prompts in Node; weights that were altered are refused."""
    package = tmp_path / "package"
    shutil.copytree(emitted("wasm"), package)
    golden = json.loads((package / "manifest.json").read_text())["golden"]
    assert checking.verify(package)[1] == f"{len(golden)} golden prompts have the same answers"
    weights = package / "tiny.weights"
    data = bytearray(weights.read_bytes())
    data[1000] ^= 4
    weights.write_bytes(data)
    with pytest.raises(InfercError, match="tiny.weights is not what was compiled"):
        checking.verify(package)
    done = subprocess.run(replay(package), capture_output=True, text=True)
    assert done.returncode and "the weights are not those" in done.stderr


@pytest.mark.skipif(not chromium(), reason="no chromium here (make emulators)")
@pytest.mark.parametrize("isolated", [True, False], ids=["threads", "one thread"])
def test_the_demo_page_streams_text(isolated: bool, tmp_path: Path) -> None:
    """Shared memory, and so threads, only where the page is isolated; the text is read from the page."""
    server = Server(emitted("wasm"), isolated)
    try:
        with Browser(tmp_path / "profile") as browser:
            browser.open(f"{server.url}/demo.html?threads=2&mode=continue")
            browser.wait("document.getElementById('go')?.disabled === false")
            ready = browser.evaluate("document.getElementById('state').textContent")
            assert ready == f"Ready: {'2 threads' if isolated else '1 thread'}, in a Web Worker."
            browser.evaluate("document.getElementById('prompt').value = 'Once upon a time'")
            browser.evaluate("document.getElementById('go').click()")
            browser.wait("document.getElementById('state').dataset.done")
            text = browser.evaluate("document.querySelector('.model').textContent")
            assert text.startswith("Once upon a time" + wanted_text().removesuffix("\n")[:20])
            assert "tokens a second" in browser.evaluate("document.getElementById('state').textContent")
            browser.evaluate("document.getElementById('chat').click()")
            browser.evaluate("document.getElementById('go').click()")
            browser.wait("document.querySelector('.user') && document.getElementById('state').dataset.done")
            assert browser.evaluate("document.querySelector('.user').textContent") == "Name three rivers."
            assert len(browser.evaluate("document.querySelectorAll('.model')[1].textContent")) > 10
            shot = tmp_path / "shot.png"
            browser.screenshot(shot)
            assert shot.read_bytes()[:4] == b"\x89PNG" and shot.stat().st_size > 5000
    finally:
        server.close()

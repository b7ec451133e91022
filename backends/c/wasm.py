"""A program as a WebAssembly package: two modules, without and with threads, and the JavaScript around them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .interface import prefixed
from .program import Program
from .text import runtime_text, wasm_text

# Hand-written files of the package.
FILES = ("index.js", "index.d.ts", "native.js", "files.js", "helper.js", "remote.js", "worker.js", "demo.html")

# What of the manifest JavaScript knows, by its name there.
FACTS = {"name": "name", "vocabulary": "vocab_size", "context": "context", "chunk": "chunk"}


_README = """# {package}

{described}: WebAssembly, with types in `index.d.ts`. In a page, in a Web Worker of its own:

```js
import {{ RemoteModel }} from "{package}";

const model = await RemoteModel.load();
for await (const piece of model.generate("Once upon a time", {{ maxTokens: 32 }})) console.log(piece);
```

In Node, or in a worker of yours, `Model` has the same functions and sessions. `{weights}` must lie beside the modules.
Threads need a page that is cross-origin isolated: send `Cross-Origin-Opener-Policy: same-origin` and
`Cross-Origin-Embedder-Policy: require-corp` with it. `demo.html` is a page for conversations.
"""


def with_glue(program: Program) -> Program:
    """The program with what JavaScript calls beside the interface."""
    unit = f"{program.prefix}_wasm.c"
    sources = {**program.sources, unit: prefixed(program.prefix, runtime_text("wasm.c"))}
    return Program(**{**vars(program), "sources": sources, "units": {**program.units, unit: ()}})


def write_package(program: Program, folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes the package's files beside the modules, `facts` being those of `forms.emit`."""
    prefix = program.prefix
    described = {
        "prefix": prefix,
        **{key: facts[name] for key, name in FACTS.items()},
        "modules": {"single": f"{prefix}.wasm", "threads": f"{prefix}.threads.wasm"},
        "weights": {"file": f"{prefix}.weights", "bytes": program.weight_bytes},
    }
    text = f"// What is particular to this model.\nexport const facts = {json.dumps(described, indent=2)};\n"
    (folder / "model.js").write_text(text, encoding="utf-8")
    package = {
        "name": prefix.lower().replace("_", "-"), "version": "1.0.0", "type": "module", "main": "index.js",
        "types": "index.d.ts", "description": f"{facts['name']}, compiled by inferc",
        "files": ["README.md", *FILES, "model.js", *described["modules"].values(), described["weights"]["file"]],
    }  # fmt: skip
    (folder / "package.json").write_text(json.dumps(package, indent=2) + "\n", encoding="utf-8")
    names = {"package": package["name"], "described": package["description"], "weights": described["weights"]["file"]}
    (folder / "README.md").write_text(_README.format(**names), encoding="utf-8")
    for name in FILES:
        (folder / name).write_text(wasm_text(name), encoding="utf-8")

"""Libraries without content in place of ROCm's: jax's plugin for AMD GPUs links to them, and needs none of them where
it only compiles. Every function that it asks for is there, and says that it failed.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

SYSTEM = re.compile(r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s)\.so|ld-linux")
FAILED = 100  # hipErrorNoDevice


def load(plugin: Path, folder: Path) -> None:
    """Builds the libraries that a plugin links to into a folder, and loads them. Needs binutils and a C compiler."""
    libraries = [n for n in re.findall(r"\(NEEDED\).*\[(.+)\]", _said("readelf", "-dW", plugin)) if not SYSTEM.match(n)]
    wanted: dict[str, list[str]] = {}  # by version, the functions
    for kind, name, version in re.findall(r"^\s+(\w) ([^@\s]+)@*(\S*)$", _said("nm", "-D", "-u", plugin), re.M):
        if kind == "U":
            wanted.setdefault(version, []).append(name)
    versions = _versions(plugin)
    for number, library in enumerate(libraries):
        own = {version: wanted.get(version, []) for version in versions.get(library, [])}
        plain = [] if number else wanted[""]  # what has no version may be in any of them
        source, script = folder / "stub.c", folder / "stub.map"
        source.write_text("".join(f"int {name}(void) {{ return {FAILED}; }}\n" for name in sum(own.values(), plain)))
        nodes = [f"{v} {{ global: {' '.join(f'{n};' for n in names)} }};" for v, names in own.items()]
        script.write_text("\n".join(nodes))
        options = [f"-Wl,--version-script={script}"] if nodes else []
        made = folder / library
        _said("cc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{library}", *options, "-o", made, source)
        ctypes.CDLL(str(made), mode=ctypes.RTLD_GLOBAL)


def _versions(plugin: Path) -> dict[str, list[str]]:
    """The versions of symbols that are asked of each library."""
    found: dict[str, list[str]] = {}
    library = ""
    for line in _said("readelf", "-VW", plugin).splitlines():
        if file := re.search(r"File: (\S+)", line):
            library = file[1]
        elif name := re.search(r"Name: (\S+)\s+Flags", line):
            found.setdefault(library, []).append(name[1])
    return found


def _said(*command: str | Path) -> str:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True).stdout

"""Targets by platform: emulated where an emulator is here, else built, linked and inspected."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from inferc.backends.c import target
from inferc.backends.c.emulation import emulator
from inferc.compiler import checking
from inferc.compiler.driver import compile_model
from inferc.errors import InfercError

from .test_emit import IDS, model, wanted

pytest.importorskip("ziglang", reason="zig builds for other platforms")


@cache
def built(platform: str, form: str, name: str) -> Path:
    output = Path(mkdtemp(prefix="inferc-platform-")) / name
    compile_model(str(model()), output, prefix="tiny", emit=form, target=platform, chunk=16)
    return output


def test_levels_of_x86_64_are_names_of_targets() -> None:
    names = {level: [t.name for t in target.choose(level)] for level in ("x86-64-v2", "x86-64-v3", "x86-64-v4")}
    assert names == {"x86-64-v2": ["generic"], "x86-64-v3": ["avx2"], "x86-64-v4": ["avx512vnni", "avx2"]}
    several = target.choose("x86-64-v2,x86-64-v3,x86-64-v4")
    assert [t.name for t in several] == ["avx512vnni", "avx2", "generic"]
    with pytest.raises(InfercError, match="aarch64-linux and aarch64-macos cannot be in one library"):
        target.choose("aarch64-macos,neon")


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["aarch64-linux", "riscv64-linux"])
def test_programs_give_the_hosts_ids(platform: str) -> None:
    command = emulator(platform.partition("-")[0])
    if not command:
        pytest.skip(f"no emulator for {platform} here (make emulators)")
    program = built(platform, "exe", "tiny")
    for threads in "1", "3":
        options = "--ids", IDS, "-n", "8", "-t", threads
        done = subprocess.run([*command, program, *options], capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout == wanted(), done.stderr
    assert checking.verify(program)[1] == "1 golden prompts have the same answers"


@pytest.mark.slow
def test_golden_prompts_are_not_asked_where_nothing_runs_them() -> None:
    line = checking.verify(built("x86_64-windows", "exe", "tiny.exe"))[1]
    assert line == "golden logits were not asked for: this computer does not run x86_64-windows"


@pytest.mark.slow
@pytest.mark.parametrize("form", ["exe", "so"])
def test_windows_files_need_windows_alone(form: str) -> None:
    pefile = pytest.importorskip("pefile")
    path = built("x86_64-windows", form, {"exe": "tiny.exe", "so": "tiny.dll"}[form])
    file = pefile.PE(path)
    assert file.FILE_HEADER.Machine == pefile.MACHINE_TYPE["IMAGE_FILE_MACHINE_AMD64"]
    assert file.is_dll() == (form == "so") and file.FILE_HEADER.TimeDateStamp == 0
    needed = {entry.dll.decode().lower() for entry in file.DIRECTORY_ENTRY_IMPORT}
    assert all(name == "kernel32.dll" or name.startswith("api-ms-win-crt-") for name in needed), needed
    if form == "so":
        names = {symbol.name.decode() for symbol in file.DIRECTORY_ENTRY_EXPORT.symbols}
        assert file.DIRECTORY_ENTRY_EXPORT.name == b"tiny.dll" and "tiny_open" in names
        assert all(name.startswith("tiny_") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["exe", "so"])
def test_macos_files_need_the_system_alone(form: str) -> None:
    macho = pytest.importorskip("macholib.MachO")
    path = built("aarch64-macos", form, {"exe": "tiny", "so": "libtiny.dylib"}[form])
    (header,) = macho.MachO(str(path)).headers
    assert header.header.cputype == 0x0100000C  # arm64
    assert header.filetype == {"exe": "execute", "so": "dylib"}[form]
    names = [(load.get_cmd_name(), data) for load, _, data in header.commands]
    needed = {bytes(data).rstrip(b"\0") for kind, data in names if kind == "LC_LOAD_DYLIB"}
    assert needed == {b"/usr/lib/libSystem.B.dylib"}
    if form == "so":
        assert [bytes(data).rstrip(b"\0") for kind, data in names if kind == "LC_ID_DYLIB"] == [b"@rpath/libtiny.dylib"]


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["x86_64-windows", "aarch64-macos", "riscv64-linux"])
def test_static_libraries_of_other_platforms(platform: str) -> None:
    path = built(platform, "a", "libtiny.a")
    assert path.read_bytes()[:8] == b"!<arch>\n" and path.with_name("tiny.h").exists()


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["x86_64-windows", "aarch64-macos", "aarch64-linux"])
def test_equal_inputs_give_equal_bytes(platform: str, tmp_path: Path) -> None:
    name = {"x86_64-windows": "tiny.dll", "aarch64-macos": "libtiny.dylib"}.get(platform, "libtiny.so")
    compile_model(str(model()), tmp_path / name, prefix="tiny", emit="so", target=platform, chunk=16)
    assert (tmp_path / name).read_bytes() == built(platform, "so", name).read_bytes()

"""Fuzzes the text functions with libFuzzer: `make fuzz` (clang is needed). What it finds lies beside its corpus."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from inferc.compiler.text.tables import text_tables

from ..text_cases import CASES, TEXTS, case
from ..text_library import RUNTIME, write_sources

HERE = Path(__file__).parent
SANITIZERS = "-g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all".split()


def build(folder: Path, name: str, compiler: str, *flags: str) -> Path:
    """Compiles the harness for the tokenizer `name` of `text_cases`."""
    tables, source, output = folder / f"{name}.text".replace(" ", "-"), folder / "fuzz.c", folder / "fuzz"
    tables.write_bytes(text_tables(case(name)).data)
    source.write_text(write_sources(folder, 1000).read_text() + (HERE / "text.c").read_text())
    command = [compiler, "-std=c11", "-D_POSIX_C_SOURCE=200809L", *SANITIZERS, *flags, f'-DTABLES="{tables}"',
               f"-I{RUNTIME}", f"-I{folder}", source, "-o", output, "-lm"]  # fmt: skip
    subprocess.run(command, check=True)
    return output


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with: the tables, texts, ids, conversations."""
    texts = [text.encode() for text in TEXTS if len(text) < 400]
    found = [b"\0\0" + text_tables(case(name)).data]
    found += [bytes([1, flags]) + text for text in texts for flags in (0, 1)]
    found += [bytes([2, 1]) + bytes(range(n, n + 40)) for n in (0, 100)]
    return found + [b"\3\0" + b"\0\x05hello\1\2ok\0\3" + text for text in texts]


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("--seconds", type=int, default=60, help="for each tokenizer")
    options.add_argument("--corpus", type=Path, default=Path("fuzz-corpus"), help="folder that is kept")
    options.add_argument("names", nargs="*", default=list(CASES), help="tokenizers of tests/text_cases.py")
    chosen = options.parse_args()
    compiler = shutil.which("clang")
    if compiler is None:
        print("fuzzing needs clang with libFuzzer: apt-get install clang", file=sys.stderr)
        return 1
    for name in chosen.names:
        corpus = chosen.corpus / name.replace(" ", "-")
        corpus.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds(name)):
            (corpus / f"seed-{number}").write_bytes(seed)
        with tempfile.TemporaryDirectory() as folder:
            program = build(Path(folder), name, compiler, "-fsanitize=fuzzer")
            print(f"fuzzing {name} for {chosen.seconds} s", flush=True)
            flags = [f"-max_total_time={chosen.seconds}", f"-artifact_prefix={corpus}/", "-print_final_stats=1"]
            done = subprocess.run([program, *flags, "-max_len=400000", "-timeout=20", corpus])
            if done.returncode:
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())

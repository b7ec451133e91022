"""What `inferc inspect` prints of a model or an artifact: facts, tensors by type, memory, kernels, graph."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from ..ir.text import print_module
from ..runtime.artifact import Artifact
from ..runtime.function import COMPLEX
from . import hub
from .cache import is_artifact


def inspect(name: str, *, target: str, context: int | None, kv: str = "f16") -> tuple[dict[str, Any], str]:
    """The manifest and the graph's text: those of an artifact, or what compiling the model like this would give.

    Raises InfercError as `hub.pull`, `Artifact` and `driver.plan_model` do.
    """
    path = hub.pull(name)
    if is_artifact(path):
        artifact = Artifact(path)
        return artifact.manifest, artifact.read("ir.txt").decode()
    from .driver import describe, plan_model

    plan = plan_model(path, target=target, context=context, kv=kv)
    return describe(plan), print_module(plan.module)


def show(manifest: dict[str, Any], *, tensors: bool) -> None:
    """Prints a manifest for people; with `tensors` every tensor of the model file."""
    console = Console(highlight=False, soft_wrap=True)
    facts = Table.grid(padding=(0, 2))
    for key in ("name", "architecture", "source", "target", "machine", "compute", "slots", "mesh", "context", "chunk",
                "vocab_size", "output", "output_width", "compiler", "producer"):  # fmt: skip
        if manifest.get(key):
            facts.add_row(key, _text(manifest[key]))
    console.print(facts)
    if "signature" in manifest:
        console.print(_signature(manifest["signature"]))
    if "variants" in manifest:
        variants = Table("variant, the best first", "CPU features that it needs")
        for variant in manifest["variants"]:
            variants.add_row(variant["target"], " ".join(variant["cpu_features"]))
        console.print(variants)
    if "programs" in manifest:
        console.print(_programs(manifest["programs"]))
    if "regions" in manifest:
        console.print("parallel regions of one token: " + _text(manifest["regions"]))
    console.print(_types(manifest))
    memory = Table("memory", "bytes, over T tokens and R wanted rows", title_justify="left")
    for key, value in manifest["memory"].items():
        memory.add_row(key, f"{value:,}" if isinstance(value, int) else str(value))
    console.print(memory)
    if manifest["kernels"]:
        kernels = Table("kernels")
        for kernel in manifest["kernels"]:
            kernels.add_row(kernel)
        console.print(kernels)
    for line in manifest["notes"]:
        console.print(line)
    if tensors:
        table = Table("tensor", "type", "shape")
        for tensor in manifest["tensors"]:
            table.add_row(tensor["name"], tensor["type"], " × ".join(map(str, tensor["shape"])))
        console.print(table)


def _programs(programs: list[dict[str, Any]]) -> Table:
    """The programs of an XLA artifact, and what each is for."""
    columns = "program", "kind", "tokens", "rows wanted", "tokens are of", "positions read", "variants for"
    table = Table(*columns)
    slots = {"one": "one slot", "each": "a slot each", "mixed": "any slots"}
    for p in programs:
        sizes = [str(p.get(key, "")) for key in ("T", "R")]
        of = slots[p["form"]] if "T" in p else ""
        table.add_row(p["file"], p["kind"], *sizes, of, str(p["span"] or "all"), ", ".join(p.get("variants", ())))
    return table


def _signature(signature: dict[str, Any]) -> Table:
    """What a function takes and gives."""
    table = Table("array", "dtype", "shape")
    for kind in ("inputs", "outputs"):
        for p in signature[kind]:
            pairs = p.get("complex", False)
            dtype, shape = (COMPLEX[p["dtype"]], p["shape"][:-1]) if pairs else (p["dtype"], p["shape"])
            table.add_row(f"{kind[:-1]} {p['name']}", dtype, ", ".join(map(str, shape)) or "one number")
    for name, (least, most) in signature.get("dims", {}).items():
        table.add_row(f"size {name}", "", f"{least} to {most}")
    return table


def _types(manifest: dict[str, Any]) -> Table:
    counts = Counter(tensor["type"] for tensor in manifest["tensors"])
    table = Table("type", "tensors", "bytes")
    for dtype, size in sorted(manifest["weights_by_type"].items(), key=lambda item: -item[1]):
        table.add_row(dtype, str(counts[dtype]), f"{size:,}")
    return table


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return " ".join(value) if isinstance(value, list) else str(value)


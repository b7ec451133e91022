"""Architectures as plain JAX functions, one file per family; each lists its own in ARCHITECTURES."""

from __future__ import annotations

from . import gemma, llama, qwen
from .architecture import Architecture

FAMILIES = (llama, qwen, gemma)
ARCHITECTURES: dict[str, Architecture] = {
    name: architecture for family in FAMILIES for name, architecture in family.ARCHITECTURES.items()
}

"""StableHLO text → a portable artifact, which XLA promises to read for years, through jax's public interface."""

from __future__ import annotations

from ...ir.graph import IRError

VERSION = "1.8.0"  # of StableHLO: gathers with batching axes; read by every XLA since 2024


def serialize(text: str) -> bytes:
    """The verified module as a portable artifact. Raises IRError with MLIR's first complaint for text it refuses."""
    from jax.extend import mlir

    try:
        return mlir.serialize_portable_artifact(text.encode(), VERSION)
    except (ValueError, RuntimeError) as error:  # jax 0.10's, and JaxRuntimeError since
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise IRError(f"StableHLO refuses the program: {lines[0] if lines else error}") from error

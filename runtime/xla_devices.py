"""Devices of an XLA artifact: which it runs on, how much memory they have, and how arrays lie on several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from ..errors import InfercError

GPUS = ("cuda", "rocm")  # platforms that jax calls a GPU when it is asked for its own


def find(platforms: Sequence[str], wanted: str | None, path: object) -> tuple[str, list[Any]]:
    """The platform to run on, and its devices: `wanted`, or else the first of jax's own that the artifact allows.

    Raises InfercError where jax has no such device or the artifact is for others.
    """
    if wanted is not None and wanted not in platforms:
        raise InfercError(f"{path} is for {', '.join(platforms)}, not {wanted}: compile it with --platforms {wanted}")
    default = jax.default_backend()
    if default == "gpu":
        default = next((p for p in GPUS if _devices(p)), default)
    candidates = [wanted] if wanted else [default, *(p for p in platforms if p != default)]
    for platform in candidates:
        if platform in platforms and (found := _devices(platform)):
            return platform, found
    missing = wanted or ", ".join(platforms)
    raise InfercError(
        f"{path} needs a device of {missing} and jax has only {default} here: install jax for {missing} "
        f"(such as jax[cuda13]), or compile with --platforms {default}"
    )


def _devices(platform: str) -> list[Any]:
    try:
        return list(jax.devices(platform))
    except RuntimeError:  # what jax says of a platform that it has no devices of
        return []


def available(device: Any) -> int | None:
    """Free bytes of a device's memory; of the system's, for a CPU. None where neither is known."""
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    if device.platform != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


@dataclass(frozen=True)
class Group:
    """The devices that share one copy of a model."""

    devices: tuple[Any, ...]

    def place(self, axis: int | None = None, rank: int = 0) -> Any:
        """Where an array lies: split along an axis over the group, or whole on each device."""
        if len(self.devices) == 1:
            return SingleDeviceSharding(self.devices[0])
        spec = [None] * rank
        if axis is None:
            return NamedSharding(self._mesh, PartitionSpec())
        return NamedSharding(self._mesh, PartitionSpec(*spec[:axis], "tp"))

    @property
    def _mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), ("tp",))

    def on_each(self, call: Callable[..., Any], given: Sequence[Any], made: Sequence[Any]) -> Callable[..., Any]:
        """A function of arrays at places, evaluated by each device on its own parts; `call` itself on one device."""
        if len(self.devices) == 1:
            return call
        inputs, outputs = (tuple(map(_spec, places)) for places in (given, made))
        return jax.shard_map(call, mesh=self._mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

    def part(self, shape: Sequence[int], axis: int | None) -> list[int]:
        """The shape of what each device has of an array that is split along an axis."""
        return [n // len(self.devices) if i == axis else n for i, n in enumerate(shape)]

    def check_memory(self, needed: int, path: object) -> None:
        """Raises InfercError, with the numbers, where a device of this process has fewer than `needed` bytes free."""
        for device in self.devices:
            if device.process_index != jax.process_index():
                continue
            free = available(device)
            if free is not None and needed > free:
                raise InfercError(
                    f"{path} needs {needed / 1e9:.2f} GB on {device} and {free / 1e9:.2f} GB are free: take a smaller "
                    "--context or --slots, a smaller weight type, or a mesh with more devices (--mesh tp=N)"
                )


def _spec(place: Any) -> Any:
    """Which axes of an array are split over a group."""
    sharding: Any = place.sharding if isinstance(place, Format) else place
    return sharding.spec


def laid_out(place: Any, layout: Mapping[str, Any] | None) -> Any:
    """A place, with the order of axes in memory, the slowest first, and the tiles that a manifest asks for there."""
    if layout is None:
        return place
    tiles = tuple(tuple(t) for t in layout["tiles"]) if "tiles" in layout else None
    return Format(Layout(tuple(layout["order"]), tiling=tiles), place)


def groups(devices: Sequence[Any], tp: int, dp: int, path: object) -> list[Group]:
    """`dp` groups of `tp` devices. Raises InfercError where there are too few."""
    if len(devices) < tp * dp:
        raise InfercError(f"{path} was compiled for a mesh of {tp} × {dp} devices and there are {len(devices)}: "
                          "compile it with a smaller --mesh")  # fmt: skip
    return [Group(tuple(devices[i * tp : (i + 1) * tp])) for i in range(dp)]

"""The CPUs that C is written for: what the passes may do for each, and how its code is compiled and checked."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import InfercError
from ...ir.target import ACTIVATIONS, Target
from ...ir.types import f16
from .lower import LOWERINGS
from .scalar import DOUBLE
from .tuning import DEFAULTS, Tuning

# What `zig cc -target` builds for, by machine.
TRIPLES = {
    "x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu", "riscv64": "riscv64-linux-gnu",
    "wasm32": "wasm32-wasi",
}  # fmt: skip
SYSTEMS = {"windows": "{}-windows-gnu", "macos": "{}-macos"}  # what it builds for elsewhere than on Linux
HOST = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine().lower())
HOST_SYSTEM = {"darwin": "macos"}.get(platform.system().lower(), platform.system().lower())
BASELINE = {"x86_64": ("-march=x86-64",)}  # flags for the least CPU of a machine, where the compiler may assume more

BASELINE_HEADERS = ("scalar.h", "elementary.h")  # beside the target's own: scalar operations, elementary functions


@dataclass(frozen=True)
class CTarget:
    """`ir` is what passes see. `cpu_features` are needed at run time, by their names in Linux's /proc/cpuinfo.

    `cflags` compile the model's own file, `baseline` everything that runs before the CPU was checked; `header` is the
    file in isa/ that defines the vector words. `machine` is the instruction set, by its name in TRIPLES, and `system`
    one of SYSTEMS or "linux"; "" is any, which is the host's. WebAssembly has no system.
    """

    ir: Target
    header: str
    cflags: tuple[str, ...] = ()
    cpu_features: tuple[str, ...] = ()
    baseline: tuple[str, ...] = ()
    machine: str = ""
    system: str = ""

    @property
    def name(self) -> str:
        return self.ir.name

    @property
    def foreign(self) -> bool:
        """Whether the host is another machine or system, so that its compiler makes nothing for this one."""
        return self.machine not in ("", HOST) or self.system not in ("", HOST_SYSTEM)

    @property
    def label(self) -> str:
        """Its name, and the machine or system where it is placed on another than its own: generic-riscv64."""
        own = TARGETS[self.name].machine or HOST
        placed = [self.machine] * (self.machine not in ("", own)) + [self.system] * (self.system in SYSTEMS)
        return "-".join([self.name, *placed])

    @property
    def triple(self) -> str:
        """The machine and system as `zig cc -target` names them."""
        machine = self.machine or HOST
        return SYSTEMS[self.system].format(machine) if self.system in SYSTEMS else TRIPLES[machine]


OPS = frozenset(LOWERINGS) - set(DOUBLE) | {f"{op} f64" for op in DOUBLE}  # those with a kernel
FUSIONS = frozenset({
    "linear_group", "linear_add", "gated_linear", "gated_linear_quantize", "rms_norm_quantize", "rope_cache_write",
    "patch_linear", "fused",
})  # fmt: skip


def _target(name: str, flags: str = "", features: str = "", header: str = "", machine: str = "x86_64") -> CTarget:
    """A target whose flags and features are given as words, and its header where that is not named like it. Without
    flags it is one for every machine."""
    ir = Target(
        name=name, backend="c", activations=ACTIVATIONS, ops=OPS, weight_layout="panel16",
        fusions=FUSIONS, cache=f16, page=256, tuning=DEFAULTS[name],
    )  # fmt: skip
    baseline = BASELINE.get(machine if flags else HOST, ())
    return CTarget(ir, f"{header or name}.h", (*baseline, *flags.split()), tuple(features.split()), baseline,
                   machine if flags else "")  # fmt: skip


# Where it may, clang makes relaxed minima and maxima of loops, whose NaN and zeros depend on the engine.
SCALAR = "-fno-vectorize -fno-slp-vectorize"
AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c"
AVX512_FEATURES = "avx avx2 fma f16c avx512f avx512bw avx512dq avx512vl avx512_vnni"

TARGETS: dict[str, CTarget] = {
    t.name: t
    for t in (
        _target("generic"),
        _target("avx2", "-mavx2 -mfma -mf16c", "avx avx2 fma f16c"),
        _target("avxvnni", "-mavx2 -mfma -mf16c -mavxvnni", "avx avx2 fma f16c avx_vnni", "avx2"),
        _target("avx512vnni", AVX512, AVX512_FEATURES),
        _target("avx512bf16", f"{AVX512} -mavx512bf16", f"{AVX512_FEATURES} avx512_bf16", "avx512vnni"),
        _target("amx", f"{AVX512} -mavx512bf16 -mamx-tile -mamx-int8",
                f"{AVX512_FEATURES} avx512_bf16 amx_tile amx_int8", "avx512vnni"),
        _target("neon", "-mcpu=generic+dotprod", "asimd asimddp", machine="aarch64"),
        _target("neon_i8mm", "-mcpu=generic+dotprod+i8mm", "asimd asimddp i8mm", "neon", "aarch64"),
        _target("wasm128", "-msimd128", machine="wasm32"),
        _target("wasm128relaxed", f"-msimd128 -mrelaxed-simd {SCALAR}", "", "wasm128", "wasm32"),
    )
}  # of each machine from the least to the best


def _host_features() -> frozenset[str]:
    """What /proc/cpuinfo says this CPU has; nothing where there is no such file."""
    cpuinfo = Path("/proc/cpuinfo")
    return frozenset(cpuinfo.read_text().split()) if cpuinfo.exists() else frozenset()


def _may_use_tiles() -> bool:
    """Whether Linux lets this process use AMX's registers, asked as in runtime/c/cpu.h; having them is not enough."""
    request = (ctypes.c_long(n) for n in (158, 0x1023, 18))  # arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)
    return platform.system() == "Linux" and ctypes.CDLL(None).syscall(*request) == 0


def supported() -> list[CTarget]:
    """The targets that the host's CPU can run, the best last."""
    features = _host_features()
    if "amx_tile" in features and not _may_use_tiles():
        features -= {"amx_tile"}
    return [t for t in TARGETS.values() if not t.foreign and features.issuperset(t.cpu_features)]


def native() -> CTarget:
    """The best target that the host's CPU can run."""
    return supported()[-1]


def get(name: str) -> CTarget:
    """The target of that name; "native" is the host's best. Raises InfercError for an unknown one."""
    if name == "native":
        return native()
    if name not in TARGETS:
        known = ", ".join(("native", "portable", *TARGETS, *PLATFORMS))
        raise InfercError(f"there is no target {name!r}: choose one of {known}")
    return TARGETS[name]


X86 = "generic avx2 avxvnni avx512vnni avx512bf16"
# Names of several targets at once, with the machine and system that they are for. An x86-64 level's targets need no
# more than the level has; as v4 has no VNNI, its library holds a better variant for CPUs that do.
PLATFORMS: Mapping[str, tuple[str, str, str]] = {
    "x86-64-v2": ("generic", "x86_64", "linux"),
    "x86-64-v3": ("avx2", "x86_64", "linux"),
    "x86-64-v4": ("avx2 avx512vnni", "x86_64", "linux"),
    "x86_64-linux": (f"{X86} amx", "x86_64", "linux"),
    "x86_64-windows": (X86, "x86_64", "windows"),
    "aarch64-linux": ("neon neon_i8mm", "aarch64", "linux"),
    "aarch64-macos": ("neon neon_i8mm", "aarch64", "macos"),
    "riscv64-linux": ("generic", "riscv64", "linux"),
    "wasm32": ("wasm128", "wasm32", ""),
}


def platform_targets(name: str) -> list[CTarget]:
    """The targets of a row of PLATFORMS."""
    names, machine, system = PLATFORMS[name]
    baseline = BASELINE.get(machine, ())
    placed = [replace(TARGETS[n], machine=machine, system=system, baseline=baseline) for n in names.split()]
    return [replace(t, cflags=t.baseline) if t.name == "generic" else t for t in placed]


def named(name: str) -> list[CTarget]:
    """The targets of one name: "portable" (all of this machine), a row of PLATFORMS, or a target. Raises InfercError
    for an unknown one."""
    if name == "portable":
        return [t for t in TARGETS.values() if not t.foreign]
    return platform_targets(name) if name in PLATFORMS else [get(name)]


def choose(names: str, tunings: Mapping[str, Tuning] | None = None) -> tuple[CTarget, ...]:
    """The targets of one library, the best first: "portable" (all of this machine), or names of targets or PLATFORMS
    separated by commas.

    Those that `tunings` names have its block sizes instead of their defaults. Raises InfercError for a name that is
    unknown, and for targets of different machines or systems.
    """
    found = [t for name in names.split(",") for t in named(name.strip())]
    systems = sorted({(t.machine or HOST, t.system or HOST_SYSTEM * (t.machine != "wasm32")) for t in found})
    if len(systems) > 1:
        machines = " and ".join("-".join(filter(None, pair)) for pair in systems)
        raise InfercError(f"targets of {machines} cannot be in one library: compile it for each")
    wanted = {t.name: t for t in found}
    tuned = {name: replace(TARGETS[name].ir, tuning=sizes) for name, sizes in (tunings or {}).items()}
    return tuple(replace(t, ir=tuned.get(t.name, t.ir)) for n in reversed(TARGETS) if (t := wanted.get(n)))

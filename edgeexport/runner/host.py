"""The machine that measures: its instruction set, and a fingerprint of what speed depends on."""

from __future__ import annotations

import os
import platform
from functools import cache
from pathlib import Path

import psutil

from edgeexport.artifact import digest_json

# Instruction-set extensions that change which kernels a runtime picks, and with them the last bits of an answer.
ARITHMETIC = {"avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8",
              "amx_tile", "asimd", "asimddp", "asimdhp", "i8mm", "bf16", "sve", "sve2", "neon"}


@cache
def isa() -> str:
    """The instruction set, such as ``x86_64``."""
    return platform.machine()


@cache
def isa_features() -> tuple[str, ...]:
    """The extensions of the instruction set that matter for arithmetic, sorted."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    words = {word for line in text.splitlines() if line.lower().startswith(("flags", "features")) for word in line.partition(":")[2].split()}
    return tuple(sorted(words & ARITHMETIC))


@cache
def cpu_model() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown processor"


@cache
def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_mb() -> int:
    """Memory that may be used here: the machine's, or less where a control group limits it; in MB of 10^6 bytes."""
    limit = int(psutil.virtual_memory().total)
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            limit = min(limit, int(text))
    return limit // 1_000_000


@cache
def fingerprint() -> str:
    """Digest of what the speed of a program here depends on."""
    return digest_json([isa(), cpu_model(), cores(), isa_features()])


def describe() -> str:
    """The host in a few words, as every measured figure names it."""
    return f"host {isa().replace('_', '-')}"

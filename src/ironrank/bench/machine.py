"""What a measurement ran on: processor, instruction sets, threads, versions, load."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")


def cpu(text: str) -> tuple[str, list[str]]:
    r"""Read the name of the processor and its instruction sets that matter here.

    Args:
        text: Content of ``/proc/cpuinfo``.

    Returns:
        Model name ("" where there is none) and flags.

    Example:
        >>> cpu("model name : Some CPU\nflags : sse avx2 amx_bf16\n")
        ('Some CPU', ['avx2', 'amx_bf16'])
    """
    fields = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())
    }
    present = set(fields.get("flags", "").split())
    return fields.get("model name", ""), [flag for flag in _FLAGS if flag in present]


def machine(threads: int) -> dict[str, Any]:
    """Describe the machine and the software of a measurement.

    Args:
        threads: Number of threads that the measurement uses.

    Returns:
        Values that JSON can hold.

    Example:
        >>> machine(1)["threads"]
        1
    """
    info = Path("/proc/cpuinfo")
    name, flags = cpu(info.read_text() if info.exists() else "")
    return {
        "cpu": name or platform.processor() or platform.machine(),
        "flags": flags,
        "avx512": "avx512f" in flags,
        "amx": any(flag.startswith("amx") for flag in flags),
        "cores": os.cpu_count(),
        "threads": threads,
        "load_before": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }

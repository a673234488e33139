"""Allocator and thread settings of a measurement, and the one restart that puts them into force.

The C library gives large blocks back to the system and asks for them again in every step. Where fresh pages
are dear (virtual machines above all) that decides more than most changes of code, for every variant by
another amount. These settings keep the pages: no trimming, no separate mapping of large blocks, huge pages on
request, one arena. They are read when a process starts, hence the restart. Only the entry points of the
measurements call this; importing it changes nothing.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, MutableMapping
from typing import Any

GUARD = "IRONRANK_BENCH_RELAUNCHED"

_TUNABLES = {"hugetlb": 1, "mmap_threshold": 8 * 2**30, "trim_threshold": 16 * 2**30, "top_pad": 512 * 2**20}


def settings(threads: int) -> dict[str, str]:
    """Return the environment of a measurement.

    Args:
        threads: Number of threads of OpenMP and MKL.

    Returns:
        Environment variables by name.

    Example:
        >>> settings(2)["OMP_NUM_THREADS"]
        '2'
    """
    tunables = ":".join(f"glibc.malloc.{key}={value}" for key, value in _TUNABLES.items())
    return {
        "GLIBC_TUNABLES": tunables,
        "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": "30000",  # an idle OpenMP thread must not hold a core that another thread could use
    }


def plain(environ: MutableMapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment without the allocator settings: what a peak of memory must be measured in.

    Args:
        environ: The environment; without it that of this process.

    Returns:
        A copy that lacks them.

    Example:
        >>> sorted(plain({"GLIBC_TUNABLES": "x", "PATH": "/bin"}))
        ['PATH']
    """
    environ = os.environ if environ is None else environ
    return {
        key: value
        for key, value in environ.items()
        if key not in ("GLIBC_TUNABLES", "MALLOC_ARENA_MAX", GUARD)
    }


def in_force(threads: int, environ: MutableMapping[str, str] | None = None) -> bool:
    """Return whether this process was started with `settings`."""
    environ = os.environ if environ is None else environ
    return all(environ.get(key) == value for key, value in settings(threads).items())


def relaunch_if_needed(
    threads: int,
    *,
    environ: MutableMapping[str, str] | None = None,
    execute: Callable[[str, list[str], dict[str, str]], Any] = os.execve,
    libc: str | None = None,
) -> str:
    """Start the current Python command again, once, with `settings` in its environment.

    Call it first thing in an entry point: what the process has done so far is lost. It does not return where
    it restarts. It does nothing where the C library is not glibc, or when the command was restarted already.

    Args:
        threads: Number of threads of OpenMP and MKL.
        environ: The environment; without it that of this process.
        execute: Replaces the process: (program, arguments, environment).
        libc: Name of the C library; without it that of this process.

    Returns:
        One line for the record: which settings the measurement runs under.
    """
    environ = os.environ if environ is None else environ
    libc = platform.libc_ver()[0] if libc is None else libc
    if in_force(threads, environ):
        return "allocator: settings in force"
    if not sys.platform.startswith("linux") or libc != "glibc":
        return f"allocator: default ({libc or sys.platform}; the settings are for Linux with glibc)"
    if environ.get(GUARD):
        return "allocator: default (settings lost on restart; times are noisier)"
    sys.stdout.flush()
    sys.stderr.flush()
    execute(
        sys.executable, [sys.executable, *sys.orig_argv[1:]], {**environ, **settings(threads), GUARD: "1"}
    )
    return "allocator: restarted with the settings"

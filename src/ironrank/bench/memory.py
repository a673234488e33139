"""Memory of a training step: counted exactly by kind, and the peak of a process as the system sees it.

    weights       parameters and buffers
    gradients     of the parameters, after the backward pass
    optimizer     its tensors (moments) and those of the method's state
    activations   what autograd keeps from the forward pass for the backward pass, beside parameters and
                  buffers; the input batch counts where a layer keeps it

Every storage counts once and whole, however many tensors look at it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ironrank.bench.allocator import plain
from ironrank.errors import IronrankError


class StepMemory(NamedTuple):
    """Memory of a training step by kind, in bytes."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Sum of the four kinds, in bytes; an upper bound of what is alive at once."""
        return sum(self)

    def as_dict(self) -> dict[str, int]:
        """Return the four kinds and ``total`` by name, in bytes."""
        return {**self._asdict(), "total": self.total}


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Sum the storages under some tensors, each once.

    Args:
        tensors: Any tensors.

    Returns:
        Bytes.

    Example:
        >>> x = torch.zeros(10)
        >>> bytes_of([x, x[:2], torch.zeros(3)])
        52
    """
    return sum(dict(map(_storage, tensors)).values())


def activation_bytes(model: nn.Module, forward: Callable[[], Any]) -> int:
    """Count what autograd keeps for the backward pass of a forward pass.

    Tensors that a hand-written autograd function hides in attributes of its context are not seen; those given
    to ``save_for_backward`` are.

    Args:
        model: Its parameters and buffers do not count.
        forward: Runs the forward pass; may run the backward pass too.

    Returns:
        Bytes of the storages kept.

    Example:
        >>> net, x = nn.Linear(3, 2), torch.zeros(5, 3)
        >>> activation_bytes(net, lambda: net(x))  # keeps x: 5 * 3 floats
        60
    """
    own = {_storage(t)[0] for t in (*model.parameters(), *model.buffers())}
    kept: list[Tensor] = []  # alive until counted, or an address could be used twice

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.detach())
        return kept[-1]

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return bytes_of(t for t in kept if _storage(t)[0] not in own)


def step_memory(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    backward: Callable[[], Any],
    state: Mapping[str, Tensor] | None = None,
) -> StepMemory:
    """Count the memory of a training step.

    Args:
        model: The model in training.
        optimizer: Its optimizer, after at least one step, so that its moments exist.
        backward: Runs forward and backward pass.
        state: Further tensors of the training method.

    Returns:
        The bytes by kind.
    """
    activations = activation_bytes(model, backward)
    moments = [
        value for slot in optimizer.state.values() for value in slot.values() if isinstance(value, Tensor)
    ]
    return StepMemory(
        weights=bytes_of([*model.parameters(), *model.buffers()]),
        gradients=bytes_of(p.grad for p in model.parameters() if p.grad is not None),
        optimizer=bytes_of([*moments, *(v for v in (state or {}).values() if isinstance(v, Tensor))]),
        activations=activations,
    )


def resident_peak() -> int:
    """Return the largest resident memory of this process so far, in bytes.

    Linux keeps it per address space (``VmHWM``). ``ru_maxrss`` is the answer elsewhere only: on Linux a
    started process inherits it from the one that started it.

    Returns:
        Bytes.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = (line.split() for line in status.read_text().splitlines())
        found = [int(line[1]) * 1024 for line in lines if line and line[0] == "VmHWM:"]
        if found:
            return found[0]
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_of(arguments: list[str], threads: int, timeout: float = 600.0) -> int:
    """Run a Python command that measures its own peak of resident memory in a fresh process.

    The command prints one JSON object with ``baseline`` (libraries loaded, nothing built) and ``peak``, in
    bytes. It runs under the default allocator: the settings for timing hold on to pages on purpose.

    Args:
        arguments: What follows ``python``, such as ``["-m", "ironrank.bench.peak", "{...}"]``.
        threads: Number of threads of OpenMP and MKL.
        timeout: Limit, in seconds.

    Returns:
        ``peak - baseline``, in bytes.

    Raises:
        IronrankError: If the command fails.
    """
    env = {**plain(), "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=timeout
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise IronrankError(f"the memory measurement 'python {' '.join(arguments)}' failed: {last}")
    numbers = json.loads(done.stdout.strip().splitlines()[-1])
    return numbers["peak"] - numbers["baseline"]


def _storage(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()

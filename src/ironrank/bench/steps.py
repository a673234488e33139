"""Training steps to be timed: nets, batches and the one place where methods are called.

A `Step` is one full training step of a model on a fixed batch: zero the gradients, forward, loss, backward,
optimizer, and whatever the method adds (projection, retraction, clamp). It notes the time of its forward and
backward passes, so that the rest of a step, the update, is known in the same run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ironrank.bench.memory import StepMemory, step_memory
from ironrank.errors import IronrankError, nearest

LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}

_CIFAR, _MNIST = (3, 32, 32), (1, 28, 28)
CORRECTION = "scalar"  # as in the published code; "exact" costs one more product of n r^2 for each basis
SHAPES = {"lenet5": _MNIST, "vgg16": _CIFAR, "wrn16-4": _CIFAR, "resnet18": _CIFAR}
CLASSES = 10


class Task(NamedTuple):
    """What a step is built for.

    Args:
        net: Name of the net.
        keep: Fraction of the rank that low-rank layers keep; 1 for a dense net.
        x: Images (b, c, h, w) in [0, 1].
        y: Classes (b,).
        lr: Learning rate.
        momentum: Momentum of SGD.
        tau: Bound of the condition number is 1 + tau.
    """

    net: str
    keep: float
    x: Tensor
    y: Tensor
    lr: float
    momentum: float
    tau: float


@dataclass
class Step:
    """One training step, ready to be run again and again.

    Args:
        model: The model.
        optimizer: Its optimizer.
        backward: Zeroes gradients, runs forward and backward pass, returns the loss.
        update: Runs the whole step, given ``backward``; returns the loss.
        state: Tensors of the method.
        clock: Returns the time, in seconds.
        backward_seconds: Time of forward and backward pass of each step so far.
        loss: Of the last step.
        failures: Steps that broke off; ``update`` counts them.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    backward: Callable[[], Tensor]
    update: Callable[[Callable[[], Tensor]], Tensor]
    state: dict[str, Tensor] = field(default_factory=dict)
    clock: Callable[[], float] = time.perf_counter
    backward_seconds: list[float] = field(default_factory=list)
    loss: float = math.nan
    failures: int = 0

    def __call__(self) -> None:
        """Run the step once and note the time of ``backward``."""
        spent = 0.0

        def timed() -> Tensor:
            nonlocal spent
            start = self.clock()
            loss = self.backward()
            spent += self.clock() - start
            return loss

        self.loss = float(self.update(timed).detach())
        self.backward_seconds.append(spent)

    def memory(self) -> StepMemory:
        """Return the memory of the step, by kind; call it after at least one step."""
        return step_memory(self.model, self.optimizer, self.backward, self.state)

    def parameters(self) -> int:
        """Return the number of trained numbers."""
        return sum(p.numel() for p in self.model.parameters())


def build(net: str) -> nn.Module:
    """Build a net of the benchmark with fresh weights.

    Args:
        net: ``lenet5``, ``vgg16``, ``wrn16-4`` or ``resnet18``.

    Returns:
        The model, for inputs in [0, 1] and ten classes.

    Raises:
        IronrankError: If the name is unknown.
    """
    from ironrank.data.base import DataSpec
    from ironrank.models import VGG16, LeNet5, Model, ResNet18, WideResNet

    if net not in SHAPES:
        raise IronrankError(f"net={net!r}: {nearest(net, list(SHAPES))}")
    settings: dict[str, Model] = {
        "lenet5": LeNet5(),
        "vgg16": VGG16(),
        "wrn16-4": WideResNet(depth=16, widen=4),
        "resnet18": ResNet18(),
    }
    shape = SHAPES[net]
    spec = DataSpec(shape=shape, classes=CLASSES, mean=(0.5,) * shape[0], std=(0.25,) * shape[0])
    return settings[net].build(spec)


def batch_of(net: str, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draw a batch of noise images and classes.

    Args:
        net: Name of the net, which fixes the shape.
        size: Number of images.
        seed: Seed of the draw.

    Returns:
        Images (size, c, h, w) in [0, 1] and classes (size,).

    Example:
        >>> batch_of("lenet5", 2)[0].shape
        torch.Size([2, 1, 28, 28])
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(size, *SHAPES[net], generator=generator)
    return x, torch.randint(CLASSES, (size,), generator=generator)


def backward_of(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """Return the function that fills the gradients of the cross-entropy on a fixed batch.

    Args:
        model: The model.
        x: Images.
        y: Classes.

    Returns:
        A function without arguments that returns the loss.
    """

    def backward() -> Tensor:
        for parameter in model.parameters():
            parameter.grad = None
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return backward


def method_step(method: Any, model: nn.Module, task: Task, layout: str) -> Step:
    """Make the training step of a method: the only place of the benchmarks that calls one.

    Args:
        method: A training method.
        model: A dense model, for its own use.
        task: Batch and hyper-parameters.
        layout: Memory format of images and weights: ``nchw`` or ``channels_last``.

    Returns:
        The step.
    """
    model = method.prepare(model).to(memory_format=LAYOUTS[layout]).train()
    optimizer = torch.optim.SGD(method.groups(model), lr=task.lr, momentum=task.momentum)
    state, count = method.init(model), iter(range(2**63))

    def update(backward: Callable[[], Tensor]) -> Tensor:
        return method.step(model, optimizer, state, backward, next(count))

    x = task.x.to(memory_format=LAYOUTS[layout])
    return Step(model, optimizer, backward_of(model, x, task.y), update, state)


def dense_step(task: Task, layout: str) -> Step:
    """Make the step of the dense net under plain SGD.

    Args:
        task: Batch and hyper-parameters.
        layout: ``nchw`` or ``channels_last``.

    Returns:
        The step.
    """
    from ironrank.methods import Dense

    return method_step(Dense(), build(task.net), task, layout)


def condlr_step(task: Task, layout: str = "channels_last") -> Step:
    """Make our CondLR step.

    Args:
        task: Batch and hyper-parameters.
        layout: ``nchw`` or ``channels_last``.

    Returns:
        The step.
    """
    from ironrank.methods import CondLR

    return method_step(
        CondLR(tau=task.tau, keep=task.keep, correction=CORRECTION), build(task.net), task, layout
    )

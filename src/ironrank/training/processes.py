"""Several processes as one: gradients averaged over the global batch, by plain `torch.distributed`."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from ironrank.errors import IronrankError


def join(device: str = "cpu") -> None:
    """Join the process group that ``torchrun`` announces in the environment; nothing where there is none.

    Args:
        device: Where to train. With "cuda" each process takes the card of its number on this machine.

    Raises:
        IronrankError: If all processes were to share one card, or this machine has too few.
    """
    world, place = int(os.environ.get("WORLD_SIZE", "1")), torch.device(device)
    if world < 2 or not dist.is_available() or dist.is_initialized():
        return
    if place.type != "cuda":
        dist.init_process_group("gloo")
        return
    if place.index is not None:
        raise IronrankError(
            f"device={device!r} with {world} processes: take cuda, each process gets a card of its own"
        )
    local, cards = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= cards:
        raise IronrankError(
            f"device='cuda' with process {local + 1} on this machine, which has {cards} cards: "
            "start as many processes as there are cards"
        )
    torch.cuda.set_device(local)  # what "cuda" means from here on
    dist.init_process_group("nccl", device_id=torch.device("cuda", local))


def process() -> tuple[int, int]:
    """Return rank and number of processes; (0, 1) where there is only this one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def barrier() -> None:
    """Wait for all processes."""
    if process()[1] > 1:
        dist.barrier()


def share_buffers(model: nn.Module) -> None:
    """Give all processes the buffers of the first; until then running statistics are of each one's own images.

    Args:
        model: Changed in place.
    """
    if process()[1] > 1:
        for buffer in (b for b in model.buffers() if b.is_floating_point()):
            dist.broadcast(buffer, 0)


def agreed(numbers: Sequence[float], device: torch.device | str) -> list[float]:
    """Return the numbers of the first process, so that all processes decide alike.

    Args:
        numbers: As many in every process.
        device: Where the processes talk.

    Returns:
        The numbers, in float64.
    """
    if process()[1] == 1:
        return list(numbers)
    told = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.broadcast(told, 0)
    return told.tolist()


def everywhere(fact: bool, device: torch.device | str) -> bool:
    """Return whether something holds in all processes, so that none goes on or stops alone.

    Args:
        fact: Whether it holds in this one.
        device: Where the processes talk.

    Returns:
        Whether it holds in all of them.
    """
    if process()[1] == 1:
        return fact
    told = torch.tensor(float(fact), device=device)
    dist.all_reduce(told, dist.ReduceOp.MIN)
    return bool(told.item())


def average_gradients(model: nn.Module, count: int) -> None:
    """Replace every gradient by its average over all samples of all processes, in place.

    Args:
        model: The model, with gradients that are means over this process's samples.
        count: Number of samples of this process.
    """
    if process()[1] == 1:
        return
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = torch.tensor(float(count), device=parameters[0].device)
    dist.all_reduce(total)
    for parameter in parameters:
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        gradient.mul_(count / total.item())
        dist.all_reduce(gradient)
        parameter.grad = gradient

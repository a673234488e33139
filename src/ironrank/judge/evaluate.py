"""One honest row: accuracy, robustness, size, cost, latency and conditioning of one net.

The net is judged in its deployed form (each factored layer as two thin layers, or one dense where that is smaller); the
gap between that form and the trained one is measured and stated. Attacks are white-box, on the gradients of
the very net that is judged.
"""

from __future__ import annotations

import copy
import dataclasses
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from ironrank import __version__
from ironrank.artifact import load_model
from ironrank.attacks import FGSM, PGD
from ironrank.attacks.base import Attack
from ironrank.attacks.threat import check_radius
from ironrank.bench.latency import latency
from ironrank.data import Data, Images, images_of
from ironrank.files import plain_json, write_json
from ironrank.judge.accuracy import accuracy, robust_accuracy
from ironrank.judge.both import BothPGD
from ironrank.judge.examples import write_examples
from ironrank.judge.first_look import look_at
from ironrank.layers import Factored
from ironrank.linalg import condition_number, orthonormality_error, singular_values
from ironrank.own import own
from ironrank.ranks.cost import count_macs, count_params, shapes_of
from ironrank.settings import encode
from ironrank.shell import folder_command
from ironrank.surgery import deploy, weighted_layers
from ironrank.training.run import Run, read_run

IMAGES = 1000  # judged by default: the first test images, in the published order
CURVE = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)  # multiples of eps


def evaluate(
    model: nn.Module,
    images: Data,
    attacks: Sequence[Attack],
    *,
    curve: Sequence[Attack] = (),
    seed: int = 0,
    latency_runs: int = 200,
    dense: nn.Module | None = None,
) -> dict[str, Any]:
    """Measure a net.

    Args:
        model: Maps pixels (b, c, h, w) in [0, 1] to logits (b, classes); layers may be factored.
        images: Test images; all of them are used. Or a data set, or pixels with classes: see `ironrank.data.images_of`.
        attacks: Attacks whose accuracies are stated.
        curve: Attacks of growing eps, for the curve of accuracy against eps.
        seed: Seed of the attacks' random starts.
        latency_runs: Number of timed batch-1 calls.
        dense: The dense net that it was made from, which its size is compared with; only its shapes matter. By default
            the net with its factors merged, which is smaller than that where filters were removed.

    Returns:
        Plain values: ``clean``, ``robust``, ``curve``, ``params_dense``, ``params_stored``, ``params_deployed``,
        ``macs_dense``, ``macs``, ``bytes``, ``latency_ms``, ``layers``, ``max_cond``, ``form_gap``, ``n``, ``seed``,
        ``device``, ``versions``. Accuracies are fractions, latency is in milliseconds, bytes are those of the deployed
        weights as a safetensors file, MACs are multiply-adds of one image.
    """
    images = images_of(images)
    judged, device = for_inference(model), images.device
    look_at(judged, images, "evaluate")
    robust = [
        _described(a) | {"accuracy": robust_accuracy(judged, images, a, seed), "n": len(images)}
        for a in attacks
    ]
    points = [{"eps": a.eps, "accuracy": robust_accuracy(judged, images, a, seed)} for a in curve]
    one = images.first(1).pixels(torch.tensor([0]))
    layers = [describe_layer(name, layer) for name, layer in weighted_layers(model)]
    return {
        "clean": accuracy(judged, images),
        "robust": robust,
        "curve": points,
        "curve_attack": curve[-1].describe() if curve else None,
        **_size(model, judged, one, dense),
        "latency_ms": latency(judged, one, latency_runs, torch.get_num_threads()),
        "layers": layers,
        "max_cond": max((layer["cond"] for layer in layers), default=1.0),
        "form_gap": _form_gap(model, judged, images),
        "n": len(images),
        "seed": seed,
        "device": str(device),
        "versions": {
            "ironrank": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def evaluate_folder(
    folder: Path | str,
    *,
    which: str = "best",
    data: str | None = None,
    n: int | None = None,
    norm: str | None = None,
    eps: Sequence[float] | None = None,
    steps: int = 20,
    restarts: int = 1,
    seed: int = 0,
    device: str = "cpu",
    latency_runs: int = 200,
    name: str | None = None,
    save: bool = True,
    model: nn.Module | str | None = None,
) -> dict[str, Any]:
    """Measure the net of a run folder, on its test set: FGSM, and PGD on cross-entropy and then on the margin.

    Args:
        folder: Run folder.
        which: "best" or "last".
        data: Folder with the data; by default the one that the run used.
        n: Number of test images, the first ones; None for 1,000, 0 for all.
        norm: "Linf" or "L2"; by default that of the run's validation attack.
        eps: Radii in pixel units; by default that of the run's validation attack.
        steps: Steps of PGD.
        restarts: Random starts of PGD; each image keeps its worst.
        seed: Seed of the attacks' random starts.
        device: Where to compute.
        latency_runs: Number of timed batch-1 calls.
        name: Label of the row; by default the folder's name.
        save: Whether to write ``evaluation.json`` and ``examples.safetensors`` into the folder.
        model: The dense module of your own, or ``MODULE:FUNCTION``, where the run's model is ``given``; a copy is used.

    Returns:
        What `evaluate` returns, and ``name``, ``recipe``, ``method``, ``data``, ``objective``, ``which``, ``command``.
    """
    folder, given = Path(folder), own(model)
    run = read_run(folder)
    dataset = run.data if data is None else dataclasses.replace(run.data, folder=data)
    net = load_model(folder, which, given).to(device)
    images = dataset.load("test")
    images = (images if n == 0 else images.first(n or IMAGES)).to(device)
    norm, radii = norm or run.validate.norm, tuple(eps or (run.validate.eps,))
    for radius in radii:
        check_radius(norm, radius)
    pgd = PGD(norm=norm, eps=radii[-1], steps=steps, restarts=restarts)
    attacks: list[Attack] = [FGSM(norm=norm, eps=radius) for radius in radii]
    attacks += [BothPGD(norm=norm, eps=radius, steps=steps, restarts=restarts) for radius in radii]
    curve = [BothPGD(norm=norm, eps=factor * max(radii), steps=steps) for factor in CURVE]
    result = evaluate(net, images, attacks, curve=curve, seed=seed, latency_runs=latency_runs,
                      dense=_architecture(run, given))  # fmt: skip
    result |= {
        "name": name or folder.resolve().name,
        "recipe": run.recipe,
        "method": encode(run.method),
        "objective": encode(run.objective),
        "data": f"{run.data.name}, first {len(images)} test images",
        "epochs": run.epochs,
        "train_seed": run.seed,
        "which": which,
        "command": folder_command(
            "evaluate", folder, which=which, data=data, model=model, device=device, norm=norm, eps=radii,
            steps=pgd.steps, restarts=pgd.restarts, n=len(images), seed=seed, latency_runs=latency_runs,
        ),
    }  # fmt: skip
    if save:
        write_json(folder / "evaluation.json", result)
        write_examples(folder, for_inference(net), images, pgd, seed)
    return plain_json(result)


def for_inference(model: nn.Module) -> nn.Module:
    """Return the deployed form of a model, in evaluation mode and with channels last."""
    return deploy(model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def describe_layer(name: str, layer: nn.Module) -> dict[str, Any]:
    """Describe one layer: form, rank, conditioning.

    Args:
        name: Full name.
        layer: A factored layer, or a dense linear or convolution layer.

    Returns:
        ``name``, ``kind``, ``form``, ``shape``, ``rank``, ``full_rank`` (two numbers each for Tucker-2), ``cond``,
        ``orthonormality_error`` (None without orthonormal bases), ``singular_values`` (largest first; the first
        ``rank`` ones of the matrix that the layer holds, for Tucker-2 those of the unfolding by output channels).
    """
    error = None
    if isinstance(layer, Factored):
        matrix, rank, full, shape = layer.matrix().detach(), layer.rank, layer.full_rank, layer.weight_shape
    else:
        weight: Any = layer.weight
        matrix, shape = weight.detach().flatten(1), tuple(weight.shape)
        rank = full = min(matrix.shape)
    kept = layer.U.shape[1] if isinstance(layer, Factored) else min(matrix.shape)
    if isinstance(layer, Factored) and layer.S is not None:
        error = max(orthonormality_error(basis.detach()).item() for basis in (layer.U, layer.V))
        core = layer.unfoldings()[0].detach()
        values, cond = singular_values(core), condition_number(core)
    else:
        values, cond = singular_values(matrix)[:kept], condition_number(matrix, kept)
    return {
        "name": name,
        "kind": type(layer).__name__,
        "form": layer.form if isinstance(layer, Factored) else "dense",
        "shape": list(shape),
        "rank": list(rank) if isinstance(rank, tuple) else rank,
        "full_rank": list(full) if isinstance(full, tuple) else full,
        "cond": cond.item(),
        "orthonormality_error": error,
        "singular_values": values.tolist(),
    }


def _architecture(run: Run, given: nn.Module | None) -> nn.Module:
    """Return the dense net of a run, on the meta device."""
    if given is not None:
        return shapes_of(given)
    with torch.device("meta"):
        return run.model.build(run.data.spec)


def _size(model: nn.Module, judged: nn.Module, x: Tensor, dense: nn.Module | None) -> dict[str, int]:
    dense = shapes_of(deploy(model, dense=True) if dense is None else dense).eval()
    weights = {name: tensor.cpu().contiguous() for name, tensor in judged.state_dict().items()}
    return {
        "params_dense": count_params(dense),
        "params_stored": count_params(model),
        "params_deployed": count_params(judged),
        "macs_dense": count_macs(dense, x.to("meta")),
        "macs": count_macs(judged, x),
        "bytes": len(to_bytes(weights)),
    }


@torch.no_grad()
def _form_gap(model: nn.Module, judged: nn.Module, images: Images) -> float:
    """Return the largest difference of a logit between the trained and the deployed form, on up to 256 images."""
    x = images.pixels(torch.arange(min(256, len(images))))
    return (copy.deepcopy(model).eval()(x) - judged(x)).abs().max().item()


def _described(attack: Attack) -> dict[str, Any]:
    steps = getattr(attack, "steps", 1)
    return {"attack": attack.describe(), "norm": attack.norm, "eps": attack.eps, "steps": steps,
            "restarts": getattr(attack, "restarts", 1)}  # fmt: skip

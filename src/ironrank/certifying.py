"""The verbs `ironrank certify` and `ironrank weakness`, and what they show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from ironrank.options import Data, Device, Folder, Json, Own

Which = Annotated[str, typer.Option("--which", metavar="best|last", help="Weights to judge.")]
Count = Annotated[int | None, typer.Option("--n", metavar="N", min=0, help="First test images; 0 for all.")]
Noise = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the noise.")]


def certify(
    folder: Folder,
    radii: Annotated[
        str, typer.Option("--radii", metavar="LIST", help="Radii in L2, pixel units.")
    ] = "36/255,72/255,108/255",
    n: Count = None,
    which: Which = "best",
    model: Own = None,
    data: Data = None,
    smoothing: Annotated[
        float | None,
        typer.Option("--smoothing", metavar="SIGMA", help="Smooth by noise of this deviation as well."),
    ] = None,
    draws: Annotated[
        int, typer.Option("--draws", metavar="N", min=1, help="Noisy copies of each image.")
    ] = 1000,
    alpha: Annotated[
        float, typer.Option("--alpha", metavar="P", help="Probability that a smoothed radius is too large.")
    ] = 0.001,
    seed: Noise = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Prove around each test image a radius in L2 within which the net keeps its class, or say that it is vacuous.

    The result is kept as FOLDER/certificate.json.
    """
    from ironrank import console, verbs

    result = verbs.certify(
        folder, radii=radii, n=n, which=which, data=data, sigma=smoothing, draws=draws, alpha=alpha, seed=seed,
        device=device or "cpu", model=model,
    )  # fmt: skip
    console.show(result, certificate, as_json)


def weakness(
    folder: Folder,
    before: Annotated[
        Path | None,
        typer.Option(
            "--before", metavar="FOLDER", help="A net to compare layers with; by default the start."
        ),
    ] = None,
    n: Count = None,
    which: Which = "best",
    model: Own = None,
    data: Data = None,
    norm: Annotated[
        str, typer.Option("--norm", metavar="Linf|L2", help="Norm of the universal perturbation.")
    ] = "Linf",
    eps: Annotated[str, typer.Option("--eps", metavar="EPS", help="Its radius, pixel units.")] = "8/255",
    seed: Noise = 0,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Say which directions carry a net's sensitivity, and which layers amplify them.

    The result is kept as FOLDER/weakness.json, the directions as images in FOLDER/weakness.safetensors.
    """
    from ironrank import console, verbs

    result = verbs.weakness(
        folder, before=before, n=200 if n is None else n, which=which, data=data, norm=norm, eps=eps, seed=seed,
        device=device or "cpu", model=model,
    )  # fmt: skip
    console.show(result, sensitivity, as_json)


def certificate(result: Mapping[str, Any]) -> Any:
    """Show a certificate: radii, constants of the layers, and the verdict.

    Args:
        result: What `ironrank.certificates.folders.certify_folder` returns.

    Returns:
        Lines and tables.
    """
    from rich.console import Group
    from rich.text import Text

    from ironrank.console import table

    smooth = result["smoothing"]
    head = (
        "radius, L2",
        "certified",
        "95 %",
        *(() if smooth is None else (f"smoothed, sigma {smooth['sigma']:g}",)),
    )
    rows = [
        (f"{radius:.4g}", f"{share:.1%}", f"{low:.1%} to {high:.1%}",
         *(() if smooth is None else (f"{smooth['certified'][i]:.1%}",)))
        for i, (radius, share, (low, high)) in enumerate(
            zip(result["radii"], result["certified"], result["interval"], strict=True)
        )
    ]  # fmt: skip
    layers = [
        (layer["name"], _number(layer["bound"]), _number(layer["lipschitz"]), layer["method"])
        for layer in result["lipschitz"]["layers"]
    ]
    return Group(
        Text(f"{result['name']}: {result['data']}, clean {result['clean']:.1%}"),
        table(("layer", "Lipschitz", "from the image", "bound by"), layers),
        table(head, rows),
        Text(f"rounding of the logits at most {result['rounding']['logits']:.2g}"),
        Text(f"{result['verdict']}: {result['reason']}", style="bold"),
    )


def sensitivity(result: Mapping[str, Any]) -> Any:
    """Show a weakness map.

    Args:
        result: What `ironrank.judge.folders.weakness_folder` returns.

    Returns:
        Lines and tables.
    """
    from rich.console import Group
    from rich.text import Text

    from ironrank.console import table

    layers = [
        (row["name"], *(_change(row, key) for key in ("norm", "stable_rank", "cond")))
        for row in result["layers"]
    ]
    pairs = [(f"{p['first']} to {p['second']}", f"{p['alignment']:.2f}") for p in result["compositions"]]
    margins, strength = result["margins"], result["universal"]
    k, jacobian = len(margins["energy"]), result["jacobian"]
    return Group(
        Text(f"{result['name']}: {result['data']}"),
        table(("layer", "norm", "stable rank", "cond"), layers),
        table(("layers", "alignment"), pairs),
        Text(
            f"norm of the Jacobian: {_number(jacobian['mean'])} on average, {_number(jacobian['largest'])} at most"
        ),
        Text(
            f"{k} directions of {margins['pixels']} hold {margins['energy'][-1]:.0%} of the margins' gradients"
        ),
        Text(
            f"one perturbation for all, {strength['norm']} {strength['eps']:.4g}: accuracy {strength['accuracy']:.1%} "
            f"({strength['clean']:.1%} without, {strength['noise']:.1%} with noise) on {strength['tried_on']} images"
        ),
    )


def _change(row: Mapping[str, Any], key: str) -> str:
    now = _number(row[key])
    return now if "before" not in row else f"{_number(row['before'][key])} -> {now}"


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4g}"

"""The verb `ironrank audit`: exit code 0 where a robust accuracy is proven, 3 where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ironrank.options import Data, Device, Json, Own, Quiet, path_named

NOT_PROVEN = 3  # exit code


def audit(
    what: Annotated[
        str,
        typer.Argument(metavar="FOLDER|FILE.onnx|MODULE:FUNCTION", help="The net; a function returns it."),
    ],
    data: Data = None,
    dataset: Annotated[
        str | None,
        typer.Option("--dataset", metavar="NAME", help="See `ironrank list data`; by default the run's."),
    ] = None,
    norm: Annotated[
        str | None, typer.Option("--norm", metavar="Linf|L2", help="Norm of the attacks.")
    ] = None,
    eps: Annotated[str | None, typer.Option("--eps", metavar="EPS", help="Radius, such as 8/255.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="1,000 images, minutes; the default.")] = False,
    standard: Annotated[bool, typer.Option("--standard", help="Longer attacks, and AutoAttack.")] = False,
    full: Annotated[bool, typer.Option("--full", help="All images, everything at length.")] = False,
    n: Annotated[
        int | None, typer.Option("--n", metavar="N", min=0, help="First test images; 0 for all.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything random.")] = 0,
    jobs: Annotated[
        int, typer.Option("--jobs", metavar="N", min=1, help="Processes that share the work.")
    ] = 1,
    twin: Annotated[
        str | None,
        typer.Option("--twin", metavar="NET", help="A net whose adversarial images are tried as well."),
    ] = None,
    model: Own = None,
    device: Device = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", parser=path_named, help="Result; by default FOLDER, or NAME-audit."
        ),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Attack a net in every way there is, test the attacks, and say what is proven; run again to go on.

    A function MODULE:FUNCTION is imported, and called without arguments: name only code that you trust.
    """  # noqa: DOC501
    from ironrank import console, verbs

    levels = {"quick": quick, "standard": standard, "full": full}
    with console.resumable(out or Path("the folder of the audit"), "the same", "results"):
        result = verbs.audit(
            what, dataset=dataset, data=data, norm=norm, eps=eps, levels=levels, n=n, seed=seed, jobs=jobs, twin=twin,
            device=device or "cpu", out=out, model=model, console=console.progress(quiet),
        )  # fmt: skip
    console.show(result, console.audit, as_json)
    if result["robust"] is None:
        raise typer.Exit(NOT_PROVEN)

"""The verb `ironrank compress`."""

from __future__ import annotations

from typing import Annotated

import typer

from ironrank.options import Data, Device, Json, Out, Overrides, Own, Quiet, Resume, Seed, Until


def compress(
    folder: Annotated[
        str,
        typer.Argument(metavar="FOLDER|MODULE:FUNCTION", help="A run folder; or a function returns the net."),
    ],
    method: Annotated[
        str, typer.Option("--method", metavar="NAME", help="See `ironrank list methods`.")
    ] = "svd",
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="COST=SIZE",
            help="Such as params=8x or bytes=25%; cstar, filters: macs too.",
        ),
    ] = None,
    condition: Annotated[
        float | None,
        typer.Option("--condition", metavar="TAU", min=0, help="Fine-tune by CondLR at this tau (cstar)."),
    ] = None,
    overrides: Overrides = None,
    model: Own = None,
    data: Data = None,
    out: Out = None,
    seed: Seed = None,
    device: Device = None,
    resume: Resume = False,
    until: Until = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the ranks, and write nothing.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compress a trained dense net and train it on, by default into FOLDER-METHOD.

    FOLDER is a run folder, or was written by ironrank.save. Neither a saved net nor a function says which data to train
    on: give --set data=..., and for a saved architecture of this package --set model=... too.
    """
    from ironrank import compression, config, console, verbs
    from ironrank.own import beside, source_of

    changes = [*(overrides or ()), *config.shorthand(data, seed, device)]
    source, given, settings = source_of(folder, model)
    run = compression.compress_run(source, method, changes, budget=budget, condition=condition, **settings)
    if dry_run:
        plan = compression.planned(run, given)
        console.show({"plan": plan}, lambda result: result["plan"], as_json)
        return
    out = out or beside(folder, method)
    with console.resumable(out):
        result = verbs.train(
            run, out, model=given, resume=resume, until=until, console=console.progress(quiet)
        )
    console.show(result, console.outcome, as_json)

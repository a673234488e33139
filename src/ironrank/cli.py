"""The command line: one verb, one call. Results go to stdout, everything else to stderr.

A mistake of the user is one line on stderr and exit code 2; an interrupted training exits with 130.
Torch is imported inside the verbs, so that ``--help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ironrank import __version__, auditing, certifying, comparing, compressing, reporting
from ironrank.errors import IronrankError
from ironrank.options import (
    Data,
    Device,
    Folder,
    Json,
    Out,
    Overrides,
    Own,
    Quiet,
    Resume,
    Seed,
    Until,
    path_named,
)

Usage: Any = typer.BadParameter.__mro__[1]  # what a wrong option raises; typer has no public name for it


class Verbs(TyperGroup):
    """The verbs; a mistake of the user in any of them becomes one line and exit code 2."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Read the options before the verb.

        Args:
            *args: As of typer.
            **kwargs: As of typer.

        Returns:
            The context.
        """
        with in_one_line():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb that was asked for.

        Args:
            ctx: The context of the command line.

        Returns:
            What the verb returns.
        """
        with in_one_line():
            return super().invoke(ctx)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Let a mistake of the user end in one line.

    Yields:
        Nothing.

    Raises:
        typer.Exit: With code 2, where an option is wrong, or an `IronrankError` was raised.
    """
    try:
        yield
        return
    except IronrankError as error:
        said = str(error)
    except Usage as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # not a mistake: it shows the help
            raise
        where = error.ctx.command_path if error.ctx else "ironrank"
        said = f"{error.format_message().rstrip('.')}; see {where} --help"
    typer.echo(f"error: {' '.join(said.splitlines())}", err=True)
    raise typer.Exit(2)


app = typer.Typer(
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"ironrank {__version__}")
        raise typer.Exit


@app.callback()
def ironrank(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Neural networks that are small, fast and hard to fool."""


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", parser=path_named, help="Runs and report.")
    ] = Path("demo"),
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of everything random.")] = 0,
    as_json: Json = False,
) -> None:
    """Train a few small nets on images inside the package, judge them, and write a report. No download."""
    from ironrank import console
    from ironrank.recipes.demo import run_demo

    with console.resumable(out, "the same"):
        result = run_demo(out, seed, console.progress())
    console.show(result, console.verdict, as_json)


@app.command(name="list")
def list_(
    family: Annotated[str | None, typer.Argument(metavar="[FAMILY]", help="Such as methods.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A member; show its settings.")] = None,
    as_json: Json = False,
) -> None:
    """Say what there is to choose from: recipes, methods, models, data, attacks and more."""
    from ironrank import catalog, console

    if family is not None and name is not None:
        member = catalog.settings_of(family, name)
        console.show(member, console.settings, as_json)
    else:
        console.show(catalog.members(family), console.catalogue, as_json)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="See `ironrank list recipes`.")],
    overrides: Overrides = None,
    model: Own = None,
    data: Data = None,
    out: Out = None,
    seed: Seed = None,
    device: Device = None,
    resume: Resume = False,
    until: Until = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a recipe into a run folder, by default runs/RECIPE."""
    from ironrank import config, console, verbs
    from ironrank.own import own

    out = out or Path("runs", recipe.replace("/", "-"))
    given = [] if model is None else ["model=given"]
    run = config.build_run(recipe, [*given, *(overrides or ()), *config.shorthand(data, seed, device)])
    with console.resumable(out):
        result = verbs.train(
            run, out, model=own(model), resume=resume, until=until, console=console.progress(quiet)
        )
    console.show(result, console.outcome, as_json)


@app.command()
def evaluate(
    folder: Folder,
    which: Annotated[str, typer.Option("--which", metavar="best|last", help="Weights to judge.")] = "best",
    model: Own = None,
    data: Data = None,
    n: Annotated[
        int | None, typer.Option("--n", metavar="N", min=0, help="First test images; 0 for all.")
    ] = None,
    norm: Annotated[
        str | None, typer.Option("--norm", metavar="Linf|L2", help="Norm of the attacks.")
    ] = None,
    eps: Annotated[
        str | None, typer.Option("--eps", metavar="LIST", help="Radii, such as 4/255,8/255.")
    ] = None,
    steps: Annotated[
        int, typer.Option("--steps", metavar="N", help="Steps of PGD, on each of two losses.")
    ] = 20,
    restarts: Annotated[int, typer.Option("--restarts", metavar="N", help="Random starts of PGD.")] = 1,
    seed: Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the random starts.")] = 0,
    device: Annotated[str, typer.Option("--device", metavar="D", help="Torch device.")] = "cpu",
    latency_runs: Annotated[
        int, typer.Option("--latency-runs", metavar="N", min=1, help="Timed calls.")
    ] = 200,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", parser=path_named, help="Where to write the result."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Judge a trained net: accuracy, clean and attacked, size, speed, conditioning.

    The result for the best weights is kept as FOLDER/evaluation.json, unless --out names another file.
    """
    from ironrank import console, verbs

    result = verbs.evaluate(
        folder, which=which, data=None if data is None else str(data), n=n, norm=norm, eps=eps, steps=steps,
        restarts=restarts, seed=seed, device=device, latency_runs=latency_runs, out=out, model=model,
    )  # fmt: skip
    console.show(result, console.evaluation, as_json)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    help="Write a trained net for other runtimes; not built yet.",
)
def export(folder: Folder) -> None:
    """Say that there is no export yet.

    Args:
        folder: A run folder.

    Raises:
        IronrankError: Always.
    """
    raise IronrankError(f"export of {folder}: not built yet; in Python, ironrank.load_model gives the net")


@app.command()
def bench(
    net: Annotated[
        list[str] | None, typer.Option("--net", metavar="NAME", help="A net; repeat at will.")
    ] = None,
    nominal: Annotated[
        list[int] | None, typer.Option("--nominal", metavar="PERCENT", help="A compression; repeat at will.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="Timed rounds.")] = 15,
    batch: Annotated[int, typer.Option("--batch", metavar="N", help="Images per step.")] = 128,
    tau: Annotated[
        float, typer.Option("--tau", metavar="TAU", help="Condition number at most 1 + tau.")
    ] = 0.1,
    momentum: Annotated[float, typer.Option("--momentum", metavar="MU", help="Momentum of SGD.")] = 0.45,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads of torch.")] = 2,
    layout: Annotated[
        str, typer.Option("--layout", metavar="NAME", help="channels_last or nchw.")
    ] = "channels_last",
    peak: Annotated[bool, typer.Option("--peak", help="Also measure peaks of resident memory.")] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="PATH", parser=path_named, help="Write PATH.json and PATH.md."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure time and memory of a CondLR training step against a dense one."""
    from ironrank import console
    from ironrank.bench import as_markdown, main_train_step
    from ironrank.bench.steps import SHAPES

    result = main_train_step(
        net or tuple(SHAPES), nominal or (50, 80), rounds, batch, tau, momentum, threads, layout=layout,
        peak=peak, out=out, progress=lambda text: typer.echo(text, err=True),
    )  # fmt: skip
    console.show(result, as_markdown, as_json)


compress = app.command()(compressing.compress)
report = app.command()(reporting.report)
audit = app.command()(auditing.audit)
compare = app.command()(comparing.compare)
certify = app.command()(certifying.certify)
weakness = app.command()(certifying.weakness)


def main(argv: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: Arguments; by default those of the process.
    """
    app(args=argv, prog_name="ironrank")

"""The audit: everything an expert would throw at a net, the worst case of it, and tests of the attacks themselves.

A number is called robust only where every sanity test is passed; else the verdict is ``not proven`` and names the test.

    ask       question.py: net, images, threat, level, seed       targets.py, samples.py: what these are
    test      behaviour.py: is the net one function?              slopes.py: are its gradients those of its loss?
    attack    ensemble.py: which attacks, where; blocks.py: block by block; ledger.py: what is kept
    compare   tally.py: what broke what; sanity.py: did a weak attack find what a strong one missed?
    judge     verdict.py; answer.py: what is written
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor, nn

from ironrank.data import Data
from ironrank.errors import IronrankError
from ironrank.files import plain_json
from ironrank.judge.answer import answer_of, survivors_of
from ironrank.judge.behaviour import behaviour, later
from ironrank.judge.blocks import Work, claimed, run_block
from ironrank.judge.check import Check, check_of
from ironrank.judge.ensemble import Level
from ironrank.judge.ledger import answered, finish, open_ledger
from ironrank.judge.question import Asked, Question
from ironrank.judge.sanity import sanity
from ironrank.judge.slopes import saturated, slopes
from ironrank.judge.tally import tally_of
from ironrank.judge.target import Target
from ironrank.judge.watch import watching
from ironrank.judge.worker import shared_out
from ironrank.linalg.precision import no_tf32

CHECKS = "checks"  # the entry of the ledger that is no attack
SATURATED, PROBABILITIES = "cross-entropy saturates", "output is probabilities"  # flags
FACELESS = "no slope at black or white pixels"


@no_tf32()
def audit(
    model: Target | nn.Module | Path | str,
    images: Data,
    *,
    norm: str = "Linf",
    eps: float,
    level: str | Level = "quick",
    n: int | None = None,
    seed: int = 0,
    out: Path | str | None = None,
    jobs: int = 1,
    twin: nn.Module | Path | str | None = None,
    device: str = "cpu",
    name: str | None = None,
    command: str = "",
    console: Console | None = None,
) -> dict[str, Any]:
    """Audit a net: attack it in many ways, test the attacks, and say what is proven.

    ``audit(net, MNIST(folder="data"), eps=0.3)["verdict"]["text"]`` is the whole of it in one line.

    Args:
        model: A module from pixels in [0, 1] to logits, a run folder, a ``.onnx`` file, or ``"module:function"``.
        images: `Images`, a data set (its test images are used), or a pair: pixels (n, c, h, w) and classes (n,).
        norm: ``Linf`` or ``L2``.
        eps: Radius, pixel units.
        level: "quick", "standard", "full", or a `Level`.
        n: Number of the first images; None for those of the level, 0 for all.
        seed: Seed of everything random.
        out: Folder for audit.json and audit.safetensors; what an interrupted audit left there is used. None for none.
        jobs: Number of processes, above 1 only where net and images are given by name.
        twin: A net of the same task (the same kinds of things), whose adversarial images are tried as well.
        device: Torch device.
        name: Label; by default that of the target.
        command: How it was asked for, for the record.
        console: Where progress goes; None for nowhere.

    Returns:
        The content of audit.json: ``verdict``, ``robust`` (None where not proven), ``clean``, ``attacks``, ``curve``,
        ``checks``, ``flags`` and what was asked.

    Raises:
        IronrankError: If something is missing or does not fit, or the folder holds another audit.
    """
    question = Question(what=model, data=images, norm=norm, eps=eps, level=level, n=n, seed=seed, twin=twin,
                        device=device)  # fmt: skip
    _check_jobs(question, jobs, out)
    asked, folder = question.opened(), None if out is None else Path(out)
    identity = asked.identity()
    answer = answered(folder, identity)
    if answer is not None:
        return answer
    work = asked.work(open_ledger(folder, identity))
    with asked.subject.judged(), watching(console) as watch:
        checks, flags = _run(asked, work, jobs, lambda what: watch(what, sum(work.left().values())))
    tally = tally_of(work.ledger, work.blocks, work.trials, eps)
    answer = plain_json(answer_of(asked, tally, checks, flags, name, command) | {"question": identity})
    if folder is not None:
        finish(folder, answer, survivors_of(tally))
    return answer


def _check_jobs(question: Question, jobs: int, out: Path | str | None) -> None:
    if jobs < 1:
        raise IronrankError(f"jobs={jobs}: at least 1 is needed")
    if jobs > 1:
        question.plain()
        if out is None:
            raise IronrankError(
                "jobs above 1: other processes leave what they find in a folder; name one (out)"
            )


def _run(asked: Asked, work: Work, jobs: int, done: Callable[[str], None]) -> tuple[list[Check], list[str]]:
    """Run tests and attacks, as far as they are not done yet, and return the tests and flags."""
    done("sanity tests")
    checks, flags, logits = _first(asked, work)
    if jobs > 1 and work.left():
        shared_out(asked.question, work, jobs, done)
    work.ledger.forget_claims()
    for block in claimed(work):
        run_block(work, block, done)
    tally = tally_of(work.ledger, work.blocks, work.trials, asked.subject.eps)
    checks += [later(asked.subject, asked.samples, logits), *sanity(tally, asked.subject.classes)]
    return checks, flags


def _first(asked: Asked, work: Work) -> tuple[list[Check], list[str], Tensor]:
    """Make the tests that come before the attacks; return also flags, and logits to compare with later ones."""
    entry = work.ledger.get(0, CHECKS)
    if entry is None:
        checks, logits = behaviour(asked.subject, asked.samples)
        probe = asked.samples.part(work.blocks[0])
        right = probe.take(asked.subject.right(probe))
        checks += slopes(asked.subject, right)
        found = {
            SATURATED: saturated(asked.subject, right),
            PROBABILITIES: asked.subject.probabilities,
            FACELESS: asked.subject.faceless,
        }
        notes = {
            "checks": [check.plain() for check in checks],
            "flags": [flag for flag in found if found[flag]],
        }
        entry = work.ledger.put(0, CHECKS, {"logits": logits}, plain_json(notes))
    return [check_of(check) for check in entry[1]["checks"]], entry[1]["flags"], entry[0]["logits"]

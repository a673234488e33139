"""The tests that compare attacks: each passes where it should and fails where it should; AutoAttack inside an audit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from ironrank.attacks import PGD
from ironrank.errors import IronrankError
from ironrank.judge.audit import audit
from ironrank.judge.check import Check, check_of
from ironrank.judge.ensemble import (
    AUTOATTACK,
    CURVE,
    FREE,
    GRADIENT,
    LEVELS,
    MORE_RESTARTS,
    MORE_STEPS,
    NOISE,
    SINGLE,
    TRANSFER,
    Level,
    Trial,
    grey,
)
from ironrank.judge.ledger import Ledger, open_ledger
from ironrank.judge.samples import blocks_of, samples_of
from ironrank.judge.sanity import curve_of, sanity
from ironrank.judge.tally import Result, Tally
from ironrank.judge.verdict import verdict_of
from small_nets import small_net, some_images

N = 100


def mask(*broken: int) -> Tensor:
    found = torch.zeros(N, dtype=torch.bool)
    found[list(broken)] = True
    return found


def result(name: str, kind: str, broken: range, eps: float = 0.1, **more) -> Result:
    trial = Trial(name, kind, PGD(eps=eps))
    given = {"free": mask(), "attacked": mask(*range(N)), **more}
    return Result(trial=trial, broken=mask(*broken), inside=eps <= 0.1, seconds=1.0, **given)


def curve(*accuracies: float) -> list[Result]:
    return [
        result(f"{CURVE}-{i:02d}", GRADIENT, range(N - round(N * accuracy)), 0.05 * (i + 1))
        for i, accuracy in enumerate(accuracies)
    ]


def outcome(*results: Result) -> dict[str, Check]:
    return {check.name: check for check in sanity(Tally(mask(*range(N)), N, results), 10)}


STRONG = result("pgd", GRADIENT, range(50))


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("noise below gradients", [result("n", NOISE, range(52))], [result("n", NOISE, range(53))]),
        ("gradient-free below gradients", [result("s", FREE, range(10))], [result("s", FREE, range(48, 60))]),
        ("transfer below gradients", [result("t", TRANSFER, range(20))], [result("t", TRANSFER, range(60))]),
        ("single step below many", [result(SINGLE, GRADIENT, range(50))], [result(SINGLE, GRADIENT, range(55))]),
        ("more steps", [result(MORE_STEPS, GRADIENT, range(50, 52))], [result(MORE_STEPS, GRADIENT, range(50, 54))]),
        ("more restarts", [result(MORE_RESTARTS, GRADIENT, range(0))],
         [result(MORE_RESTARTS, GRADIENT, range(50, 53))]),
        ("bigger eps never helps the net", curve(0.9, 0.5, 0.51, 0.1), curve(0.9, 0.3, 0.4, 0.1)),
        ("chance at large eps", curve(0.9, 0.1), curve(0.9, 0.3)),
        ("attacks ran", [], [result("x", GRADIENT, range(0), error="no gradient")]),
        ("AutoAttack without flags", [result(AUTOATTACK, GRADIENT, range(50))],
         [result(AUTOATTACK, GRADIENT, range(50), flags=("randomness",))]),
        ("Square below AutoAttack", [result(AUTOATTACK, GRADIENT, range(50), free=mask(1, 2))],
         [result(AUTOATTACK, GRADIENT, range(50), free=mask(1, 2, 3))]),
    ],
)  # fmt: skip
def test_each_passes_and_fails(name: str, good: list[Result], bad: list[Result]) -> None:
    assert outcome(STRONG, *good)[name].passed
    failed = outcome(STRONG, *bad)[name]
    assert not failed.passed and failed.value > failed.limit
    verdict, robust = verdict_of(50, N, 3, list(outcome(STRONG, *bad).values()))
    assert robust is None and name in verdict["failed"]


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_few_images_excuse_no_attack_that_fails_on_all_of_them(n: int) -> None:
    few, none = torch.ones(n, dtype=torch.bool), torch.zeros(n, dtype=torch.bool)
    results = tuple(
        Result(Trial(name, kind, PGD(eps=0.1)), few, broken, True, 1.0, none)
        for name, kind, broken in (("pgd", GRADIENT, none), ("square", FREE, few))
    )
    assert not {c.name: c for c in sanity(Tally(few, n, results), 10)}["gradient-free below gradients"].passed


def test_the_verdict_says_which_attacks_saw_the_first_images_only() -> None:
    text = verdict_of(90, N, 12, [], more=10, probe=20)[0]["text"]
    assert "worst case over 12 attacks and 10 more on the first 20, 100 images" in text


def test_what_did_not_run_is_not_tested() -> None:
    assert outcome(STRONG).keys() == {"attacks ran"}


def test_what_square_found_inside_autoattack_counts_as_gradient_free() -> None:
    found = outcome(
        result(AUTOATTACK, GRADIENT, range(50), free=mask(*range(40, 50))), result("s", FREE, range(5))
    )
    assert found["gradient-free below gradients"].value == pytest.approx(0.10)


def test_the_curve_starts_at_clean_and_goes_by_radius() -> None:
    points = curve(0.9, 0.5)
    tally = Tally(mask(*range(N)), N, (points[1], points[0]))
    assert curve_of(tally) == [(0.0, 1.0), (0.05, 0.9), (0.1, 0.5)]


def test_an_infinite_value_comes_back() -> None:
    check = Check("a", float("inf"), 1.0, "b")
    assert not check.passed and check_of({**check.plain(), "value": None}) == check


def test_a_nan_does_not_pass() -> None:
    assert not Check("a", float("nan"), 1.0, "b").passed


def test_grey_is_within_reach() -> None:
    x = torch.rand(4, 3, 8, 8)
    for norm, order in (("Linf", torch.inf), ("L2", 2)):
        away = torch.linalg.vector_norm((x - 0.5).flatten(1), order, dim=1)
        assert (away <= grey(norm, 0.01, 192)).all()


def test_levels_grow() -> None:
    quick, standard, full = (LEVELS[name] for name in ("quick", "standard", "full"))
    for name in ("steps", "restarts", "targets", "queries", "draws"):
        assert getattr(quick, name) <= getattr(standard, name) <= getattr(full, name)
    assert (quick.images, full.images, full.draws, standard.autoattack) == (1000, 0, 10_000, True)


def test_blocks_cover_all_images_once() -> None:
    for n in (1, 7, 8, 9, 40):
        blocks = blocks_of(n, min(8, n), 5)
        assert [i for block in blocks for i in range(block.start, block.stop)] == list(range(n))


def test_a_block_is_claimed_once(tmp_path: Path) -> None:
    first = open_ledger(tmp_path, {"a": 1})
    second = Ledger(first.folder)
    assert first.claim(0) and not second.claim(0) and second.claim(1)
    second.put(1, "x", {"broken": mask(3)}, {"seconds": 1.0})
    assert first.has(1, "x") and torch.equal(first.get(1, "x")[0]["broken"], mask(3))
    assert open_ledger(tmp_path, {"a": 1}).claim(0)  # a new audit of the same question
    with pytest.raises(IronrankError, match="differs in a"):
        open_ledger(tmp_path, {"a": 2})


@pytest.mark.parametrize(
    "data",
    [
        torch.rand(3, 1, 28, 28),
        (torch.rand(3, 1, 28, 28), torch.zeros(2, dtype=torch.int64)),
        (2 * torch.ones(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64)),
    ],
)
def test_what_is_no_data_is_refused(data) -> None:
    with pytest.raises(IronrankError):
        samples_of(data)


def test_pixels_between_bytes_are_refused_where_autoattack_runs() -> None:
    pytest.importorskip("pyautoattack")
    x, y = torch.rand(8, 1, 28, 28), torch.zeros(8, dtype=torch.int64)
    with pytest.raises(IronrankError, match="images of whole bytes"):
        audit(small_net(epochs=1), (x, y), eps=0.05, level="standard")


@pytest.mark.slow
def test_autoattack_in_an_audit_is_autoattack_alone(tmp_path: Path) -> None:
    pytest.importorskip("pyautoattack")
    from ironrank.judge.autoattack import autoattack

    net, images = small_net(eps=0.1), some_images(24)
    level = Level(
        images=24, probe=24, block=24, steps=4, queries=10, draws=10, targets=1, curve=(), autoattack=True
    )
    found = audit(net, images, eps=0.05, level=level, out=tmp_path)
    alone = autoattack(net, images, "Linf", 0.05, seed=0, batch_size=24)
    with safe_open(tmp_path / "audit.safetensors", "pt") as opened:
        broken = opened.get_tensor("autoattack.broken")
    assert torch.equal(broken, alone.broken_by >= 0) and broken.any() and not broken.all()
    row = next(row for row in found["attacks"] if row["name"] == "autoattack")
    assert row["accuracy"] == pytest.approx(alone.survivors.double().mean().item())

"""The report in a real browser: nothing on the console, every picture there, no request, room on a phone, on paper."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from browser import Browser, binary
from evaluations import HOSTILE, audited, certified, metrics, small
from ironrank.recipes import demo
from ironrank.report import build, png, weakness
from ironrank.training import train

pytestmark = pytest.mark.skipif(binary() is None, reason="no Chromium is installed")

TRIAL = Path(__file__).parents[1] / "docs/results/condlr-trial.html"
BROKEN = "[...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).length"
SPILLED = """[...document.querySelectorAll('main *')].filter(e => !e.closest('.scroll, pre, svg') &&
    e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
UNNAMED = """[...document.querySelectorAll('[role=img], [role=region], [role=group]')]
    .filter(e => !e.getAttribute('aria-label')).length"""
PAPER = "getComputedStyle(document.body).backgroundColor"


def example(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (3, 1, 28, 28), dtype=np.uint8)
    uris = dict(zip(("clean", "attacked", "change"), map(png.uri, pixels), strict=True))
    return {"index": seed, "label": 3, "read": 3, "read_attacked": 3 + seed % 2, "largest": 0.1, **uris}


def rows():
    shown = {"attack": "PGD-20 Linf", "norm": "Linf", "eps": 0.1, "seed": 0, "among": 64, "every": 1,
             "shown": [example(seed) for seed in range(6)]}  # fmt: skip
    weak = {"layers": [{"name": "fc1", "stable_rank": 2.5}], "pictures": weakness.drawn({"d": np.eye(28)})}
    honest = small("honest", audit=audited(0.4), certificate=certified(), examples=shown, weakness=weak)
    before = {"what": "first weights", "layers": honest["layers"]}
    masked = small(HOSTILE, audit=audited(0.9, ("noise never beats gradients",)), share=0.3, before=before)
    return [honest, masked]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Reports: the demo's, with nets not trained here, of audited nets with hostile names, and of CondLR's trial."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            demo, "train", lambda run, out, **_: train(dataclasses.replace(run, epochs=0, start=None), out)
        )
        shown = demo.run_demo(tmp_path_factory.mktemp("demo"), tiny=True)["report"]
    audited_page = tmp_path_factory.mktemp("page") / "audited.html"
    build(rows(), title=HOSTILE, runs=[metrics("honest", epochs=4)]).write_html(audited_page)
    return {"demo": Path(shown), "audited": audited_page, "trial": TRIAL}


@pytest.mark.parametrize("page", ["demo", "audited", "trial"])
def test_a_report_is_quiet_and_whole(browser, pages, page):
    grounds = set()
    for width in (1280, 390):
        for scheme in ("light", "dark"):
            browser.open(pages[page], width, scheme=scheme)
            assert browser.value("document.readyState") == "complete"
            assert browser.value("document.images.length") >= 3 and browser.value(BROKEN) == 0
            assert browser.value("[...document.images].every(i => i.alt)") is True
            assert browser.value(UNNAMED) == 0
            assert browser.value(SPILLED) == []
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert browser.complaints() == [] and browser.requests() == []
            grounds.add(browser.value(PAPER))
    assert len(grounds) == 2  # light and dark differ


@pytest.mark.parametrize("page", ["demo", "audited", "trial"])
def test_figures_and_samples_are_seen(browser, pages, page):
    browser.open(pages[page])
    assert browser.value("document.querySelectorAll('svg').length") > 10
    assert (
        browser.value("[...document.querySelectorAll('.drawing svg')].every(s => s.clientHeight > 80)")
        is True
    )
    strokes = "[...document.querySelectorAll('.drawing path')].map(p => getComputedStyle(p).stroke)"
    assert (
        browser.value(f"new Set({strokes}).size") >= 4
    )  # the variables of the style sheet reach the drawings


def test_what_is_hostile_stays_text(browser, pages):
    browser.open(pages["audited"])
    assert browser.value("document.scripts.length") == 0
    assert "alert('x')" in browser.value("document.title")
    assert browser.value("document.body.innerText.includes('not proven')") is True


def test_a_page_prints(browser, pages, tmp_path):
    browser.open(pages["audited"], scheme="dark")
    paper = browser.print(tmp_path / "page.pdf").read_bytes()
    assert paper.startswith(b"%PDF") and len(paper) > 20_000
    assert browser.value("matchMedia('print').matches") is False


@pytest.mark.parametrize(
    ("added", "seen"),
    [
        ("<script>console.error('x')</script>", "complaints"),
        ("<img src='https://nowhere.invalid/a.png' alt='a'>", "complaints"),
        ("<img src='data:image/png;base64,AAAA' alt='a'>", "broken"),
        ("<p style='width: 2000px'>wide</p>", "spilled"),
    ],
)
def test_the_browser_sees_what_it_is_asked_for(browser, pages, tmp_path, added, seen):
    source = pages["audited"].read_text(encoding="utf-8")
    page = tmp_path / "spoilt.html"
    page.write_text(source.replace("</main>", f"{added}</main>"), encoding="utf-8")
    browser.open(page)
    with contextlib.suppress(AssertionError):
        browser.value("new Promise(done => setTimeout(done, 200))")
    found = {
        "complaints": browser.complaints(),
        "broken": browser.value(BROKEN),
        "spilled": browser.value(SPILLED),
    }
    assert found[seen]

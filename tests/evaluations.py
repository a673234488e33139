"""Evaluations as the judge makes them, and a page that is walked: what the tests of the report share."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser

from ironrank.report import build

HOSTILE = "<script>alert('x')</script> | `a` $\\frac{1}$ & \"q\" ${7*7} {{ 7*7 }} ]]> --> \x00\ud800 名"
EPS = 8 / 255


SHAPES = {"conv1": (20, 3, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 1250), "fc2": (10, 500)}


def layer(name, shape, decay, share=1.0):
    full = min(shape[0], math.prod(shape[1:]))
    rank = max(2, int(share * full))
    values = [2.0 * (k + 1) ** -decay for k in range(rank)]
    kind = ("Factored" if share < 1 else "") + ("Linear" if len(shape) == 2 else "Conv2d")
    return {
        "name": name,
        "kind": kind,
        "shape": list(shape),
        "rank": rank,
        "full_rank": full,
        "cond": values[0] / values[-1],
        "orthonormality_error": 3.1e-7 if share < 1 else None,
        "singular_values": values,
    }


def attacked(attack, steps, accuracy, n):
    return {
        "attack": attack,
        "norm": "Linf",
        "eps": EPS,
        "steps": steps,
        "restarts": 1,
        "accuracy": accuracy,
        "n": n,
    }


def evaluation(name="dense", robust=0.46, clean=0.83, share=1.0, decay=0.9, n=1000, shapes=SHAPES, **more):
    layers = [layer(key, shape, decay, 1.0 if key == "fc2" else share) for key, shape in shapes.items()]
    falls = math.log(clean / max(robust, 0.01)) / 8
    params, macs = 656_810, 12_900_000
    return {
        "name": name,
        "clean": clean,
        "robust": [attacked("fgsm", 1, robust + 0.06, n), attacked("pgd", 20, robust, n)],
        "curve": [{"eps": k / 255, "accuracy": clean * math.exp(-k * falls)} for k in (0, 2, 4, 8, 12, 16)],
        "curve_attack": "PGD, 20 steps, L∞",
        "params_dense": params,
        "params_stored": int(params * share * 1.04),
        "params_deployed": int(params * share),
        "macs_dense": macs,
        "macs": int(macs * share),
        "bytes": int(4 * params * share) + 2312,
        "latency_ms": {
            "median": 0.34 + share,
            "q1": 0.31 + share,
            "q3": 0.42 + share,
            "threads": 1,
            "runs": 200,
        },
        "layers": layers,
        "max_cond": max(item["cond"] for item in layers),
        "n": n,
        "seed": 0,
        "device": "cpu",
        "versions": {"ironrank": "0.1.0", "torch": "2.11.0", "python": "3.11.9"},
        "recipe": "lenet5",
        "method": name,
        "data": "toy",
        "command": f"ironrank evaluate runs/{name} --n {n}",
        **more,
    }


def metrics(name="dense", epochs=30, top=0.8):
    grown = [1 - math.exp(-e / 8) for e in range(1, epochs + 1)]
    lines = [
        {"epoch": e, "loss": 2.6 - 2 * g, "lr": 0.1 * (1 - e / (epochs + 1)), "val_clean": top * g,
         "val_robust": 0.55 * top * g, "max_cond": 1 + 40 * g}
        for e, g in enumerate(grown, 1)
    ]  # fmt: skip
    return {"name": name, "metrics": lines}


def small(name="net", **more):
    """One layer: quick to draw."""
    return evaluation(name, shapes={"fc1": (40, 60)}, **more)


THREE = [
    evaluation("dense", 0.462, 0.831),
    evaluation("condlr, rank 30 %", 0.458, 0.824, 0.31, 0.04),
    evaluation("svd, rank 10 %", 0.301, 0.744, 0.12, 0.7),
]


PNG = "data:image/png;base64,"
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Walks a page, holds the balance, and keeps what the promises speak about."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.stack, self.ids, self.loads, self.tags, self.words = [], [], [], [], []
        self.labels, self.captions, self.figures, self.references, self.alts = [], 0, 0, [], []
        self.feed(source)
        self.close()
        assert self.stack == []

    def _see(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.figures += tag == "figure"
        self.captions += tag == "figcaption"
        self.ids += [found["id"]] if "id" in found else []
        self.loads += [
            v for k, v in attrs if k in ("src", "href", "srcset", "data", "action", "poster") and tag != "use"
        ]
        self.references += re.findall(
            r"#([\w-]+)", " ".join(v or "" for k, v in attrs if k in ("href", "clip-path"))
        )
        self.labels += [found.get("aria-label")] if found.get("role") == "img" else []
        self.alts += [found.get("alt")] if tag == "img" else []
        assert not any(name.startswith("on") for name in found)

    def handle_starttag(self, tag, attrs):
        self._see(tag, attrs)
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        self._see(tag, attrs)

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, tag

    def handle_data(self, data):
        if self.stack and self.stack[-1] != "style":
            self.words.append(data)

    @property
    def said(self):
        return " ".join(" ".join(self.words).split())


def page_of(evaluations, runs=None, title="Three nets"):
    source = build(evaluations, title=title, runs=runs).html()
    return Page(source), source


def held(page, source):
    """The promises that every page keeps."""
    assert "http:" not in source and "https:" not in source and "url(" not in source.replace("url(#", "")
    assert "script" not in page.tags and "iframe" not in page.tags
    assert page.loads[0] == "data:," and all(load.startswith(PNG) for load in page.loads[1:])
    assert len(page.alts) == page.tags.count("img") and all(alt and len(alt) > 15 for alt in page.alts)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.references) <= set(page.ids)
    assert page.figures == page.captions
    assert all(label and len(label) > 20 for label in page.labels)
    assert len(page.labels) == page.tags.count("svg") - source.count('class="key"')
    assert all(len(drawing) < 150_000 for drawing in re.findall("<svg.*?</svg>", source, re.S))
    assert page.tags.count("h1") == page.tags.count("main") == 1
    assert page.tags.count("table") == page.tags.count("caption")


def audited(robust=0.4, failed=(), n=1000, **more):
    """What an audit writes: a robust accuracy, or nothing where tests failed."""
    said = "not proven: " + ", ".join(failed) if failed else f"robust accuracy {100 * robust:.1f} %"
    verdict = {"kind": "not proven" if failed else "robust", "failed": list(failed), "text": said}
    attack = {"describe": "50 steps", "kind": "gradient", "n": n, "seconds": 2.5}
    names = ["more steps", "noise never beats gradients", *failed]
    return {
        "schema": 1, "name": "net", "target": "net", "level": "standard", "threat": {"norm": "Linf", "eps": EPS},
        "data": "toy, first 1000 test images", "n": n, "seed": 0, "clean": 0.8,
        "robust": None if failed else {"accuracy": robust, "interval": [robust - 0.03, robust + 0.03], "attacks": 2},
        "verdict": verdict,
        "attacks": [{"name": name, "accuracy": robust + more, **attack} for name, more in (("APGD", 0.02), ("FMN", 0))],
        "curve": [{"eps": k / 255, "accuracy": max(0.0, 0.8 - 0.05 * k)} for k in (0, 4, 8, 16)],
        "checks": [{"name": name, "passed": name not in failed, "value": 0.01, "limit": 0.02, "text": f"about {name}"}
                   for name in names],
        "flags": [], "universal": {"eps": EPS, "accuracy": 0.7}, "versions": {}, "hardware": {"cpu": "x86"},
        "command": "ironrank audit net --standard", **more,
    }  # fmt: skip


def certified(*accuracies, **more):
    """What a certificate says: accuracies at 36/255, 72/255, ..."""
    found = list(accuracies or (0.5, 0.2, 0.1))
    return {
        "schema": 1,
        "lipschitz": {"global": 12.5, "body": 8.0, "layers": [{"name": "fc1", "bound": 2.0, "method": "Gram"}]},
        "radii": [36 * (k + 1) / 255 for k in range(len(found))], "certified": found,
        "interval": [[max(0, a - 0.05), min(1, a + 0.05)] for a in found], "clean": 0.8, "n": 1000,
        "verdict": "certified" if any(found) else "vacuous", "smoothing": None, "rounding": {"unit": 6e-8},
        "versions": {}, "command": "ironrank certify net", **more,
    }  # fmt: skip

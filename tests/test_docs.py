"""The code that the documents show runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from ironrank.data import DATASETS
from ironrank.layers.factored import Factored
from ironrank.linalg import condition_number

ROOT = Path(__file__).parents[1]


def run_blocks(document: str) -> dict:
    """Run all Python blocks of a document, one after the other, in one namespace."""
    names: dict = {}
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.S)):
        exec(compile(block, f"{document}, block {number}", "exec"), names)
    return names


def test_the_guide_to_compression(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)  # the guide's net has random weights; not with all of them training begins to learn
    monkeypatch.setitem(DATASETS, "stripes", None)  # so that what the guide adds is gone afterwards
    names = run_blocks("docs/compress.md")
    assert 8 * names["result"]["params_deployed"] <= names["result"]["params_dense"]
    assert names["done"]["best"]["val_clean"] > 0.9
    layers = [layer for layer in names["own"].modules() if isinstance(layer, Factored)]
    assert layers and all(condition_number(layer.S) <= 1.1 + 1e-3 for layer in layers)
    plain = names["deploy"](names["aware"])
    assert 8 * sum(p.numel() for p in plain.parameters()) <= names["result"]["params_dense"]
    assert set(names["factors"]) == set(names["moments"]) == set(names["names"])
    assert any(isinstance(layer, Factored) for layer in names["small"].modules())
    assert not any(isinstance(layer, Factored) for layer in names["net"].modules())


@pytest.mark.slow
def test_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_blocks("README.md")
    assert names["result"]["max_cond"] <= 1.1 + 1e-3 and (tmp_path / "runs/tiny/run.json").is_file()

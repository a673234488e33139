"""CondLR on trial: the whole audit of every net of the LeNet5 table, dense, truncated, two-factor and conditioned.

    python benchmarks/lenet5_mnist.py --data DIR --out RUNS --seeds 3 --epochs 20     # trains the nets
    python benchmarks/condlr_trial.py --data DIR --runs RUNS --out TABLE              # audits them, two tables

audits each run folder of RUNS at level quick on 1,000 images, into the folder itself, and then at level standard, with
AutoAttack and longer attacks, on the first 128, into ``FOLDER/standard``. Audits that are done are used as they are,
one that was stopped goes on; ``--rows`` and ``--no-audit`` choose. TABLE receives ``table.json`` and ``table.md``.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from grid import markdown_table, mistakes, spread, write_table
from ironrank.data import MNIST
from ironrank.files import read_json, read_tensors
from ironrank.judge.audit import audit
from lenet5_mnist import ROWS, label

AUDITS = {"quick": (".", 1000), "standard": ("standard", 128)}  # folder, images
RADII = (0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)


def audited(folder: Path, level: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the audit of a run folder; None where it is not there and not to be made."""
    place, n = AUDITS[level]
    path = folder / place / "audit.json"
    if not path.is_file() and not options.no_audit:
        print(f"{folder.name}, {level}", flush=True)
        data = MNIST(folder=str(options.data))
        audit(folder, data, eps=options.eps, level=level, n=n, out=path.parent)
    return read_json(path) if path.is_file() else None


def row_of(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what the audits say of one row of the table, seed by seed."""
    row: dict[str, Any] = {"row": name, "label": label(name), "quick": [], "standard": [], "certificates": []}
    for seed in range(options.seeds):
        folder = options.runs / f"{name}_s{seed}"
        for level in AUDITS:
            found = audited(folder, level, options)
            row[level] += [] if found is None else [{"seed": seed} | seed_of(found, folder)]
        path = folder / "certificate.json"
        row["certificates"] += [certificate(read_json(path))] if path.is_file() else []
    return row


def seed_of(found: dict[str, Any], folder: Path) -> dict[str, Any]:
    attacks = {attack["name"]: attack["standing"] for attack in found["attacks"]}
    strongest = max(found["attacks"], key=lambda attack: attack["first_to_break"])["name"]
    return {
        "clean": found["clean"], "n": found["n"], "verdict": found["verdict"]["text"],
        "robust": None if found["robust"] is None else found["robust"]["accuracy"],
        "autoattack": attacks.get("autoattack"), "first": strongest,
        "curve": {f"{point['eps']:.3g}": point["accuracy"] for point in found["curve"]},
        "universal": found["universal"] and found["universal"]["accuracy"],
        "command": found["command"], "flags": found["flags"], "same": standing(folder, AUDITS["standard"][1]),
    }  # fmt: skip


def certificate(found: dict[str, Any]) -> dict[str, Any]:
    keys = ("verdict", "median_radius", "radii", "certified", "n")
    return {key: found.get(key) for key in keys} | {"largest": max(found["radius"], default=0.0)}


def standing(folder: Path, n: int) -> float | None:
    """Return the share of the first n images that survives everything in the quick audit."""
    path = folder / "audit.safetensors"
    return read_tensors(path)[0]["standing"][:n].double().mean().item() if path.is_file() else None


def differences(row: dict[str, Any], dense: dict[str, Any]) -> list[float]:
    """Return by how much more a row withstands than the dense net of the same seed, on the same images."""
    theirs = {seed["seed"]: seed["robust"] for seed in dense["quick"] if seed["robust"] is not None}
    ours = {seed["seed"]: seed["robust"] for seed in row["quick"] if seed["robust"] is not None}
    return [ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]


def markdown(rows: list[dict[str, Any]], eps: float) -> str:
    return worst_cases(rows, eps) + "\n" + curves(rows) + "\n" + longer(rows, eps)


def worst_cases(rows: list[dict[str, Any]], eps: float) -> str:
    columns = ["net", "seeds", "proven", "clean", f"worst case at Linf {eps:g}", "less dense, same seeds"]
    columns += ["universal change", "largest certified L2 radius"]
    found = []
    dense = next((row for row in rows if row["row"] == "dense"), None)
    for row in rows:
        seeds = row["quick"]
        robust = [seed["robust"] for seed in seeds if seed["robust"] is not None]
        gain = differences(row, dense) if dense is not None and row is not dense else []
        radii = [found["largest"] for found in row["certificates"]]
        cells = [row["label"], len(seeds), len(robust), spread([seed["clean"] for seed in seeds])]
        cells += [spread(robust, digits=1), spread(gain, digits=1) if gain else "-"]
        universal = [seed["universal"] for seed in seeds if seed["universal"] is not None]
        found.append([*cells, spread(universal, digits=1), f"{statistics.mean(radii):.3f}" if radii else "-"])
    return markdown_table(columns, found)


def curves(rows: list[dict[str, Any]]) -> str:
    """Return accuracies over eps, of the images of the probe that the net gets right."""
    found = []
    for row in rows:
        each = [[seed["curve"][f"{eps:.3g}"] for seed in row["quick"]] for eps in RADII]
        found.append([row["label"], *(spread(values, digits=1) for values in each)])
    return markdown_table(["net", *(f"eps {eps:g}" for eps in RADII)], found)


def longer(rows: list[dict[str, Any]], eps: float) -> str:
    """Return AutoAttack's figure beside ours, of the longer audits."""
    columns = [
        "net",
        "seeds",
        "proven",
        f"AutoAttack at Linf {eps:g}",
        "with all of ours",
        "quick, same images",
    ]
    found = []
    for row in (row for row in rows if row["standard"]):
        seeds = row["standard"]
        robust = [seed["robust"] for seed in seeds if seed["robust"] is not None]
        quick = [seed["same"] for seed in seeds]
        cells = [
            row["label"],
            len(seeds),
            len(robust),
            spread([seed["autoattack"] for seed in seeds], digits=1),
        ]
        found.append([*cells, spread(robust, digits=1), spread(quick, digits=1)])
    return markdown_table(columns, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with the MNIST files")
    parser.add_argument("--runs", type=Path, required=True, help="what lenet5_mnist.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="where the tables go")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--eps", type=float, default=0.1)
    parser.add_argument("--no-audit", action="store_true", help="only put together what is there")
    options = parser.parse_args()
    rows = [row_of(name, options) for name in options.rows.split(",")]
    rows = [row for row in rows if row["quick"]]
    write_table(options.out, {"eps": options.eps, "rows": rows}, markdown(rows, options.eps))


if __name__ == "__main__":
    with mistakes():
        main()

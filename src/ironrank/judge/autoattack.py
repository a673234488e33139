"""AutoAttack, run by the package that published figures come from, and what that package leaves open.

The attacks are those of `pyautoattack` (or of an installed `autoattack`), untouched; this file chooses batches, keeps
what is known of every image, and looks after what the package does not:

* fewer than ten classes: as many targets as there are wrong classes, and the margin where DLR does not exist;
* results of a batch are written as soon as they are there: nothing is lost, and several processes can share work;
* parameters' gradients, modes and torch's global generator are as before; nothing is printed;
* its warnings become flags by name.

How the package is called, and what we found in it, is in `ironrank.judge.adapter`.

A batch is judged as `run_standard_evaluation` on that batch alone would judge it, image by image. On more images than
one batch the package regroups those that are left, and since its random numbers depend on the company, so does its
result.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.attacks.base import under_attack
from ironrank.attacks.losses import predicts
from ironrank.attacks.threat import NORMS
from ironrank.data import Images
from ironrank.errors import IronrankError
from ironrank.files import read_tensors, write_tensors
from ironrank.judge.adapter import fit, installed, listening, named, run, takes
from ironrank.judge.fingerprint import fingerprint, tensor_bytes

VERSIONS: dict[str, tuple[str, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}
# What a warning says -> the flag's name.
WARNINGS = {
    "randomized defense": "randomness",
    "probability distribution": "softmax output",
    "zero gradient": "zero gradients",
    "dynamic defense": "gradients at inference",
}
SQUARE_FLAG = "square beats white-box"
SQUARE_SHARE = 0.002  # of all images; the package's own bound
SURVIVED, WRONG = -1, -2


@dataclass(frozen=True)
class AutoAttackResult:
    """What AutoAttack found, image by image.

    Attributes:
        indices: Position of each judged image, int64 (n,); all images, or those of the shard.
        broken_by: Index into ``attacks`` of the one that broke it, int64 (n,); -1 where it survived, -2 where the model
            was wrong without an attack.
        adversarial: Pixels that break it, or its own, float32 (n, c, h, w).
        attacks: Names, in the order in which they ran.
        flags: Names of the package's warnings, see `WARNINGS`, and ``"square beats white-box"``; none on a sound run.
        package: Name and version of the package that ran.
        log: What the package had to say.
    """

    indices: Tensor
    broken_by: Tensor
    adversarial: Tensor
    attacks: tuple[str, ...]
    flags: tuple[str, ...]
    package: str
    log: str

    @property
    def survivors(self) -> Tensor:
        """Which images are right, and right under every attack, bool (n,)."""
        return self.broken_by == SURVIVED

    def after(self) -> dict[str, float]:
        """Return the accuracy without an attack (``"clean"``) and after each attack, as fractions."""
        right = self.broken_by != WRONG
        shares = {"clean": right.double().mean().item()}
        for k, name in enumerate(self.attacks):
            right = right & (self.broken_by != k)
            shares[name] = right.double().mean().item()
        return shares


def autoattack(
    model: nn.Module,
    images: Images,
    norm: str = "Linf",
    eps: float = 8 / 255,
    *,
    version: str = "standard",
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    folder: Path | str | None = None,
    batch_size: int = 250,
    package: str | None = None,
    told: Callable[[int, int], None] | None = None,
) -> AutoAttackResult:
    """Judge a model by AutoAttack.

    Args:
        model: Maps pixels (b, c, h, w) in [0, 1] to logits (b, classes).
        images: The images.
        norm: "Linf" or "L2".
        eps: Radius, pixel units.
        version: Key of `VERSIONS`.
        seed: Seed of everything random in it.
        shard: Which batches to judge: (i, n) stands for every n-th, from the i-th on. n processes with one folder share
            the work; a last call with (0, 1) puts the results together.
        folder: Where the result of each batch is kept, and found again; what was asked is part of a file's name.
        batch_size: Images at a time.
        package: "pyautoattack" or "autoattack"; by default the first one that is installed.
        told: Called with the number of batches done and to do.

    Returns:
        What was found.

    Raises:
        IronrankError: If no package is installed, or something is asked for that it cannot do.
    """
    _check(images, norm, eps, version, shard)
    name, module = installed(package)
    asked: dict[str, Any] = {
        "norm": norm,
        "eps": eps,
        "version": version,
        "seed": seed,
        "package": named(name),
        "model": fingerprint(model),
    }
    starts = range(0, len(images), batch_size)[shard[0] :: shard[1]]
    found = []
    for done, start in enumerate(starts):
        at = torch.arange(start, min(start + batch_size, len(images)))
        x, y = images.pixels(at), images.y[at.to(images.device)]
        path = (
            None
            if folder is None
            else Path(folder) / f"autoattack-{start:06d}-{_key(asked, x, y)}.safetensors"
        )
        if path is None or not path.is_file():
            result = _judged(module, model, x, y, asked)
            if path is not None:
                _write(path, result, asked)
        else:
            result = _read(path)
        found.append((at, *result))
        if told is not None:
            told(done + 1, len(starts))
    return _together(found, VERSIONS[version], named(name), images)


def _check(images: Images, norm: str, eps: float, version: str, shard: tuple[int, int]) -> None:
    if norm not in NORMS:
        raise IronrankError(f"autoattack.norm={norm!r}: allowed is {', '.join(NORMS)}")
    if not eps > 0:
        raise IronrankError(f"autoattack.eps={eps}: allowed is above 0")
    if version not in VERSIONS:
        raise IronrankError(f"autoattack.version={version!r}: allowed is {', '.join(VERSIONS)}")
    if not 0 <= shard[0] < shard[1]:
        raise IronrankError(f"autoattack.shard={shard}: (i, n) with 0 <= i < n is needed")
    if norm == "L2" and min(images.x.shape[2:]) < 5:
        height, width = images.x.shape[2:]
        raise IronrankError(
            f"autoattack in L2 on images of {height} x {width}: at least 5 x 5 is needed; use apgd, fmn and square"
        )


def _judged(
    module: Any, model: nn.Module, x: Tensor, y: Tensor, asked: dict[str, Any]
) -> tuple[Tensor, Tensor, str]:
    """Return who broke each image of one batch (b,), the pixels that did (b, c, h, w), and the log."""
    device, names = x.device, VERSIONS[asked["version"]]
    broken_by, adversarial = torch.full_like(y, SURVIVED), x.clone()
    devices = [device] if device.type == "cuda" else []
    x = x.contiguous()
    with under_attack(model), torch.random.fork_rng(devices), listening(module) as log:
        with torch.no_grad():
            logits = model(x)
        broken_by[~predicts(logits, y)] = WRONG
        attack = module.AutoAttack(
            takes(model), norm=asked["norm"], eps=asked["eps"], seed=asked["seed"],
            version=asked["version"], device=str(device),
        )  # fmt: skip
        fit(attack, logits.shape[1])
        for k, name in enumerate(names):
            rows = (broken_by == SURVIVED).nonzero()[:, 0]
            if len(rows) == 0:
                break
            attack.attacks_to_run = [name]
            points, classes = run(module, attack, x[rows], y[rows])
            lost = classes != y[rows]
            broken_by[rows[lost]] = k
            adversarial[rows[lost]] = points[lost]
    return broken_by.cpu(), adversarial.cpu(), log.getvalue()


def _key(asked: dict[str, Any], x: Tensor, y: Tensor) -> str:
    """Return a short hash of what was asked about these images."""
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode())
    digest.update(tensor_bytes(x))
    digest.update(tensor_bytes(y))
    return digest.hexdigest()[:16]


def _write(path: Path, result: tuple[Tensor, Tensor, str], asked: dict[str, Any]) -> None:
    notes = {"asked": json.dumps(asked, sort_keys=True), "log": result[2]}
    write_tensors(path, {"broken_by": result[0], "adversarial": result[1]}, notes)


def _read(path: Path) -> tuple[Tensor, Tensor, str]:
    tensors, notes = read_tensors(path)
    return tensors["broken_by"], tensors["adversarial"], notes["log"]


def _together(
    found: list[tuple[Tensor, Tensor, Tensor, str]], attacks: tuple[str, ...], package: str, images: Images
) -> AutoAttackResult:
    log = "".join(log for *_, log in found)
    empty = torch.zeros(0, dtype=torch.int64)
    at = torch.cat([at for at, *_ in found]) if found else empty
    broken_by = torch.cat([by for _, by, *_ in found]) if found else empty
    pixels = torch.cat([x for *_, x, _ in found]) if found else torch.zeros(0, *images.x.shape[1:])
    flags = [name for words, name in WARNINGS.items() if words in log]
    if "square" in attacks and len(at):
        by_square = (broken_by == attacks.index("square")).double().mean().item()
        flags += [SQUARE_FLAG] if by_square > SQUARE_SHARE else []
    return AutoAttackResult(at, broken_by, pixels, attacks, tuple(flags), package, log)

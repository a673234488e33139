"""The certificate of a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from ironrank.certificates.certify import RADII, certify
from ironrank.certificates.smoothing import smooth
from ironrank.files import plain_json, write_json
from ironrank.judge.folders import opened
from ironrank.shell import folder_command

CERTIFICATE = "certificate.json"
IMAGES = 1000  # certified by default: the first test images, in the published order


def certify_folder(
    folder: Path | str,
    *,
    radii: Sequence[float] = RADII,
    n: int | None = None,
    which: str = "best",
    data: Path | str | None = None,
    device: str = "cpu",
    sigma: float | None = None,
    draws: int = 1000,
    alpha: float = 0.001,
    seed: int = 0,
    model: nn.Module | str | None = None,
    save: bool = True,
) -> dict[str, Any]:
    """Certify the net of a run folder on its test images.

    Args:
        folder: Run folder.
        radii: Radii in L2, pixel units, at which the certified accuracy is stated.
        n: Number of test images, the first ones; None for 1,000, 0 for all.
        which: "best" or "last".
        data: Folder with the data; by default the one that the run used.
        device: Where to compute.
        sigma: Standard deviation of randomized smoothing, pixel units; None for none.
        draws: Noisy images that count the class of each image.
        alpha: Probability that a smoothed radius is too large, at most.
        seed: Seed of the noise.
        model: The dense module of your own, or ``MODULE:FUNCTION``, where the run's model is ``given``.
        save: Whether to write ``certificate.json`` into the folder.

    Returns:
        What `certify` returns, with what `smooth` returns as ``smoothing`` if a sigma is given, and ``name``, ``data``,
        ``which``, ``command``.
    """
    folder = Path(folder)
    net, images, what = opened(
        folder, IMAGES if n is None else n, which=which, data=data, device=device, model=model
    )
    result = certify(net, images, radii)
    if sigma is not None:
        result["smoothing"] = smooth(net, images, sigma, radii, n=draws, alpha=alpha, seed=seed)
    noise = {} if sigma is None else {"smoothing": sigma, "draws": draws, "alpha": alpha, "seed": seed}
    result |= {
        "name": folder.resolve().name,
        "data": what,
        "which": which,
        "command": folder_command(
            "certify", folder, which=which, data=data, model=model, device=device, n=len(images), radii=radii, **noise
        ),
    }  # fmt: skip
    result = plain_json(result)
    if save:
        write_json(folder / CERTIFICATE, result)
    return result

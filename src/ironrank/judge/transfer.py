"""The transfer attack: adversarial examples of one net, tried on another.

It tells two things. Of an attacker without access to the net (a black box) it shows what a net of the same task, such
as the dense one beside its compressed form, gives away. And it checks a white-box result: a net that falls to the
examples of another but stands against its own gradients hides its gradients rather than being robust (Athalye, Carlini,
Wagner 2018).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ironrank.attacks.base import Attack
from ironrank.data import Images
from ironrank.judge.accuracy import withstood


def transferred(source: nn.Module, target: nn.Module, images: Images, attack: Attack, seed: int) -> Tensor:
    """Return, for each image, whether a net is right on it and still right on the example that fools another net.

    The examples follow the gradients of ``source`` alone; ``target`` only judges. Images that ``target`` gets wrong
    already are not attacked and count as lost; whether ``source`` gets them right does not matter.

    Args:
        source: The net that is attacked; maps pixels (b, c, h, w) to logits (b, classes).
        target: The net that is judged, of the same classes.
        images: The images.
        attack: The attack.
        seed: Seed of the attack's random starts.

    Returns:
        bool (n,), on the CPU: the images that survive. With ``source`` as ``target`` it is `withstood`.
    """

    def on_source(_: nn.Module, x: Tensor, y: Tensor, **how: Any) -> Tensor:
        return attack(source, x, y, **how)

    return withstood(target, images, on_source, seed)

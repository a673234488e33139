"""Attacks: settings, called as ``attack(model, x, y)``, that return changed pixels and leave no trace."""

from ironrank.attacks.base import Attack
from ironrank.attacks.fgsm import FGSM
from ironrank.attacks.pgd import PGD

ATTACKS: dict[str, type[Attack]] = {a.name: a for a in (FGSM, PGD)}

__all__ = ["ATTACKS", "Attack", "FGSM", "PGD"]

"""Attacks: settings, called as ``attack(model, x, y)``, that return changed pixels and leave no trace."""

from ironrank.attacks.apgd import APGD
from ironrank.attacks.base import Attack
from ironrank.attacks.fgsm import FGSM, FGSMRS, NFGSM
from ironrank.attacks.fmn import FMN
from ironrank.attacks.low_rank import LowRankPGD
from ironrank.attacks.noise import Noise
from ironrank.attacks.pgd import PGD, stronger
from ironrank.attacks.spectral import SpectralAttack
from ironrank.attacks.square import Square
from ironrank.attacks.universal import Universal, UniversalResult, universal

ATTACKS: dict[str, type[Attack]] = {
    a.name: a for a in (FGSM, FGSMRS, NFGSM, PGD, LowRankPGD, APGD, FMN, Square, Noise, SpectralAttack)
}

__all__ = [
    "ATTACKS",
    "Attack",
    "FGSM",
    "FGSMRS",
    "NFGSM",
    "PGD",
    "LowRankPGD",
    "APGD",
    "FMN",
    "Square",
    "Noise",
    "SpectralAttack",
    "Universal",
    "UniversalResult",
    "universal",
    "stronger",
]

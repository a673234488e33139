"""Guards against two ways in which adversarial training goes wrong while its loss falls.

Catastrophic overfitting: a net trained on a cheap attack learns to fool that attack. Within an epoch its accuracy under
one step (FGSM) rises and under many steps falls to nothing. The sign is the gap of the two on held-out images. Training
then goes back to the last good checkpoint and on with a stronger attack (see `Objective.stronger`).

Robust overfitting: robust accuracy on held-out images falls again, though on training images it rises. The best epoch
is kept in any case; here it is said when the fall is large, and training may be stopped.

Source: Wong, Rice, Kolter 2020 (catastrophic overfitting, and its detection by PGD on a batch); Rice, Wong, Kolter 2020
(robust overfitting). Going back and on with a stronger attack is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from ironrank.objectives import Objective
from ironrank.settings import Settings, setting

STEPS = 10  # of the attack that the guard believes


@dataclass(frozen=True, kw_only=True)
class Guard(Settings):
    """When training is to be corrected, and when it is to be reported.

    As far as published nets tell, the gap of a healthy one is below 0.1 at 8/255 on CIFAR-10, that of a collapsed one
    above 0.5: PGD leaves it next to nothing. The default lies between; we have not tuned it.
    """

    name = "guard"
    gap: float = setting(
        0.2, "accuracy under one step above that under 10 at which training goes back; 1 is off", gt=0, le=1
    )
    images: int = setting(256, "held-out images for the two accuracies, each epoch", ge=1)
    fall: float = setting(
        0.05, "fall of robust validation accuracy below its best that is reported", gt=0, le=1
    )
    patience: int = setting(0, "epochs without a new best after which training ends; 0 is never", ge=0)

    def looks(self, objective: Objective) -> bool:
        """Return whether to look: the attack has fewer steps than the guard's, and there is a stronger one."""
        weak = objective.threat is not None and 0 < objective.attack_steps < STEPS
        return self.gap < 1 and weak and objective.stronger() != objective  # else it would go back forever


def strengthened(objective: Objective, times: int) -> Objective:
    """Return the objective after so many alarms.

    Args:
        objective: That of the run.
        times: Number of alarms.

    Returns:
        The objective to go on with.
    """
    for _ in range(times):
        objective = objective.stronger()
    return objective

"""Surgery: replace layers of any `nn.Module` in place, by type and full name, and say what was done.

plan        which layers would become low-rank, in which form, at which rank, and why others stay
factorize   do it; the model computes nearly the same function (the same at full rank)
apply_plan  the same, for a plan made elsewhere
find_groups which filters hang together, and `remove`, which takes some of them out of the net for good
deploy      a copy made of plain torch layers only, each factored layer in its smaller form
"""

from ironrank.surgery.choose import last_match
from ironrank.surgery.cutting import Group
from ironrank.surgery.filters import find_groups, remove
from ironrank.surgery.find import (
    factored_layers,
    last_parameters,
    layers_with_core,
    replace,
    trained_cores,
    weight_matrices,
    weighted_layers,
)
from ironrank.surgery.planning import Pattern, plan
from ironrank.surgery.plans import Plan, Row
from ironrank.surgery.replacing import apply_plan, deploy, factorize

__all__ = [
    "plan",
    "factorize",
    "apply_plan",
    "deploy",
    "Plan",
    "Row",
    "Group",
    "find_groups",
    "remove",
    "Pattern",
    "factored_layers",
    "layers_with_core",
    "trained_cores",
    "last_match",
    "last_parameters",
    "weighted_layers",
    "weight_matrices",
    "replace",
]

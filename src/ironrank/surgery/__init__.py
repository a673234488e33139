"""Surgery: replace layers of any `nn.Module` in place, by type and full name, and say what was done.

plan        which layers would become low-rank, in which form, at which rank, and why others stay
factorize   do it; the model computes nearly the same function (the same at full rank)
apply_plan  the same, for a plan made elsewhere
deploy      a copy made of plain torch layers only, each factored layer in its smaller form
"""

from ironrank.surgery.find import factored_layers, replace, weight_matrices, weighted_layers
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
    "Pattern",
    "factored_layers",
    "weighted_layers",
    "weight_matrices",
    "replace",
]

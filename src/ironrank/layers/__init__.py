"""Layers that hold factors, act, and count their cost. They know nothing of training."""

from torch import nn

from ironrank.layers.conv import FactoredConv1d, FactoredConv2d, FactoredConv3d
from ironrank.layers.factored import Cost, Factored
from ironrank.layers.forms import FORMS, Rank, check_form, full_rank, natural_form, parts
from ironrank.layers.frozen import frozen
from ironrank.layers.linear import FactoredLinear
from ironrank.layers.tucker2 import Tucker2Conv1d, Tucker2Conv2d, Tucker2Conv3d
from ironrank.layers.widths import mark, narrow, narrowed, width_of, widths

# The dense type that each factored type stands for, in the matrix forms.
FACTORED: dict[type[nn.Module], type[Factored]] = {
    nn.Linear: FactoredLinear,
    nn.Conv1d: FactoredConv1d,
    nn.Conv2d: FactoredConv2d,
    nn.Conv3d: FactoredConv3d,
}
# The same for Tucker-2.
TUCKER2: dict[type[nn.Module], type[Factored]] = {
    nn.Conv1d: Tucker2Conv1d,
    nn.Conv2d: Tucker2Conv2d,
    nn.Conv3d: Tucker2Conv3d,
}


def factored_kind(dense: type[nn.Module], form: str = "channel") -> type[Factored]:
    """Return the factored type that stands for a dense type in a form.

    Args:
        dense: Type of the dense layer, a key of `FACTORED`.
        form: "channel", "spatial" or "tucker2".

    Returns:
        The factored type.

    Example:
        >>> factored_kind(nn.Conv2d, "tucker2").__name__, factored_kind(nn.Conv2d, "spatial").__name__
        ('Tucker2Conv2d', 'FactoredConv2d')
    """
    return TUCKER2[dense] if form == "tucker2" else FACTORED[dense]


__all__ = [
    "FactoredLinear",
    "FactoredConv1d",
    "FactoredConv2d",
    "FactoredConv3d",
    "Tucker2Conv1d",
    "Tucker2Conv2d",
    "Tucker2Conv3d",
    "Factored",
    "Cost",
    "FACTORED",
    "TUCKER2",
    "frozen",
    "factored_kind",
    "FORMS",
    "Rank",
    "check_form",
    "natural_form",
    "full_rank",
    "parts",
    "mark",
    "narrow",
    "narrowed",
    "width_of",
    "widths",
]

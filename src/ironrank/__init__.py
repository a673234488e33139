"""ironrank: neural networks that are small, fast and hard to fool.

    factorize, plan, deploy        make layers of any module low-rank, in place; plain layers for deployment
    CondLR, CSTAR, SVD, UV, ...    methods: in the training of this package, or attached to your own loop
    train, Run                     the one training loop and its configuration
    compress                       a trained net made small, and trained on
    evaluate, evaluate_folder      accuracy, robustness, size, cost, latency and conditioning of a net
    compare                        many methods on one recipe, at equal size or latency, judged alike
    audit                          attacks, tests of the attacks, and what is proven
    certify, smooth                radii within which no change in L2 changes the class: proven, or with a confidence
    load_model, save               models as JSON and safetensors, rebuilt without the method that made them

The names are looked up when they are first used, so that ``import ironrank`` and ``ironrank --help`` do not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ironrank.artifact import load_model, save
    from ironrank.certificates.certify import certify
    from ironrank.certificates.smoothing import smooth
    from ironrank.comparison.main import compare
    from ironrank.errors import IronrankError
    from ironrank.judge.audit import audit
    from ironrank.judge.evaluate import evaluate, evaluate_folder
    from ironrank.layers import (
        FactoredConv1d,
        FactoredConv2d,
        FactoredConv3d,
        FactoredLinear,
        Tucker2Conv1d,
        Tucker2Conv2d,
        Tucker2Conv3d,
    )
    from ironrank.methods import (
        CSTAR,
        DLRT,
        SVD,
        UV,
        ADMMFilters,
        Cayley,
        CondLR,
        Dense,
        Magnitude,
        Method,
        Projected,
        RobustDLRT,
        Scores,
        SoftOrthogonal,
        Spectral,
        SVDPrune,
    )
    from ironrank.surgery import deploy, factorize, plan
    from ironrank.training import Run, train
    from ironrank.verbs import compress

_HOMES = {
    "surgery": ("factorize", "plan", "deploy"),
    "layers": (
        "FactoredLinear",
        "FactoredConv1d",
        "FactoredConv2d",
        "FactoredConv3d",
        "Tucker2Conv1d",
        "Tucker2Conv2d",
        "Tucker2Conv3d",
    ),
    "methods": (
        "Method",
        "Magnitude",
        "Scores",
        "SVDPrune",
        "ADMMFilters",
        "Dense",
        "SVD",
        "UV",
        "CondLR",
        "CSTAR",
        "DLRT",
        "RobustDLRT",
        "Cayley",
        "Projected",
        "SoftOrthogonal",
        "Spectral",
    ),
    "training": ("Run", "train"),
    "verbs": ("compress",),
    "comparison.main": ("compare",),
    "judge.audit": ("audit",),
    "judge.evaluate": ("evaluate", "evaluate_folder"),
    "certificates.certify": ("certify",),
    "certificates.smoothing": ("smooth",),
    "artifact": ("load_model", "save"),
    "errors": ("IronrankError",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "factorize",
    "plan",
    "deploy",
    "FactoredLinear",
    "FactoredConv1d",
    "FactoredConv2d",
    "FactoredConv3d",
    "Tucker2Conv1d",
    "Tucker2Conv2d",
    "Tucker2Conv3d",
    "Method",
    "Dense",
    "SVD",
    "UV",
    "CondLR",
    "CSTAR",
    "DLRT",
    "RobustDLRT",
    "Cayley",
    "Projected",
    "SoftOrthogonal",
    "Spectral",
    "Magnitude",
    "Scores",
    "SVDPrune",
    "ADMMFilters",
    "Run",
    "train",
    "compress",
    "compare",
    "evaluate",
    "evaluate_folder",
    "audit",
    "certify",
    "smooth",
    "load_model",
    "save",
    "IronrankError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ironrank' has no attribute '{name}'")
    return getattr(import_module(f"ironrank.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

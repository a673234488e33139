"""Methods: each is one frozen dataclass in one file. To add one, see CONTRIBUTING.md."""

from ironrank.methods.admm_filters import ADMMFilters
from ironrank.methods.base import Backward, Method, State
from ironrank.methods.cayley import Cayley
from ironrank.methods.condlr import CondLR
from ironrank.methods.cstar import CSTAR
from ironrank.methods.dense import Dense
from ironrank.methods.dlrt import DLRT
from ironrank.methods.magnitude import Magnitude
from ironrank.methods.projected import Projected
from ironrank.methods.robust_dlrt import RobustDLRT
from ironrank.methods.scores import Scores
from ironrank.methods.soft_orthogonal import SoftOrthogonal
from ironrank.methods.spectral import Spectral
from ironrank.methods.svd import SVD
from ironrank.methods.svd_prune import SVDPrune
from ironrank.methods.uv import UV

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        Dense,
        SVD,
        UV,
        CondLR,
        CSTAR,
        DLRT,
        RobustDLRT,
        Cayley,
        Projected,
        SoftOrthogonal,
        Spectral,
        Magnitude,
        ADMMFilters,
        Scores,
        SVDPrune,
    )
}

__all__ = [
    "Method",
    "Backward",
    "State",
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
    "ADMMFilters",
    "Scores",
    "SVDPrune",
    "METHODS",
]

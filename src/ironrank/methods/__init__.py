"""Methods: each is one frozen dataclass in one file. To add one, see CONTRIBUTING.md."""

from ironrank.methods.base import Backward, Method, State
from ironrank.methods.condlr import CondLR
from ironrank.methods.cstar import CSTAR
from ironrank.methods.dense import Dense
from ironrank.methods.svd import SVD
from ironrank.methods.uv import UV

METHODS: dict[str, type[Method]] = {method.name: method for method in (Dense, SVD, UV, CondLR, CSTAR)}

__all__ = ["Method", "Backward", "State", "Dense", "SVD", "UV", "CondLR", "CSTAR", "METHODS"]

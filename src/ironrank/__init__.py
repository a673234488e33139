"""ironrank: neural networks that are small, fast and hard to fool.

factorize, plan, deploy        make layers of any module low-rank, in place; plain layers for deployment
CondLR, SVD, UV, Dense         methods: in the training of this package, or attached to your own loop
train, Run                     the one training loop and its configuration
evaluate, evaluate_folder      accuracy, robustness, size, cost, latency and conditioning of a net
load_model, save               models as JSON and safetensors, rebuilt without the method that made them
"""

__version__ = "0.1.0"

from ironrank.artifact import load_model, save
from ironrank.audit import evaluate, evaluate_folder
from ironrank.errors import IronrankError
from ironrank.layers import FactoredConv1d, FactoredConv2d, FactoredConv3d, FactoredLinear
from ironrank.methods import SVD, UV, CondLR, Dense, Method
from ironrank.surgery import deploy, factorize, plan
from ironrank.training import Run, train

__all__ = [
    "factorize",
    "plan",
    "deploy",
    "FactoredLinear",
    "FactoredConv1d",
    "FactoredConv2d",
    "FactoredConv3d",
    "Method",
    "Dense",
    "SVD",
    "UV",
    "CondLR",
    "Run",
    "train",
    "evaluate",
    "evaluate_folder",
    "load_model",
    "save",
    "IronrankError",
    "__version__",
]

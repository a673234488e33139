"""The judge: accuracy, robustness, cost and conditioning of a net."""

from ironrank.judge.accuracy import accuracy, robust_accuracy, withstood
from ironrank.judge.autoattack import AutoAttackResult, autoattack
from ironrank.judge.curve import curve_of, minimum_norm
from ironrank.judge.evaluate import evaluate, evaluate_folder
from ironrank.judge.transfer import transferred

__all__ = [
    "evaluate",
    "evaluate_folder",
    "accuracy",
    "robust_accuracy",
    "withstood",
    "minimum_norm",
    "curve_of",
    "autoattack",
    "AutoAttackResult",
    "transferred",
]

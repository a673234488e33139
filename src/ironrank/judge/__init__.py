"""The judge: accuracy, robustness, cost and conditioning of a net."""

from ironrank.judge.accuracy import accuracy, robust_accuracy, withstood
from ironrank.judge.evaluate import evaluate, evaluate_folder

__all__ = ["evaluate", "evaluate_folder", "accuracy", "robust_accuracy", "withstood"]

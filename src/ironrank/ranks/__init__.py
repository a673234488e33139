"""Ranks: how many directions each layer keeps, alone or under one budget for the whole net.

keep       a kept fraction of one layer's full rank
cost       what a layer costs in each of its forms
latency    the same, measured
menu       every form and rank of a layer, what it costs and what it loses
weighting  what the data says about a layer's directions: input second moments, sensitivity of the loss
budget     a limit for the whole net, read from text
choose     one option for each layer: within a budget, or by a rule
fit        all of it, for a model
cores      sizes at given ranks, for layers that hold cores already
"""

from ironrank.ranks.budget import Budget, parse_budget
from ironrank.ranks.choose import Choice, choose, energy, uniform, within
from ironrank.ranks.cost import Site, sites
from ironrank.ranks.fit import check_reach, fit
from ironrank.ranks.keep import keep_rank
from ironrank.ranks.latency import LatencyTable
from ironrank.ranks.menu import Menu, Option, menu
from ironrank.ranks.weighting import Moments, project, second_moments, sensitivity

__all__ = [
    "keep_rank",
    "fit",
    "check_reach",
    "Budget",
    "parse_budget",
    "Choice",
    "choose",
    "uniform",
    "energy",
    "within",
    "Menu",
    "Option",
    "menu",
    "Site",
    "sites",
    "LatencyTable",
    "Moments",
    "second_moments",
    "sensitivity",
    "project",
]

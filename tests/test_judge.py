"""The judge: known answers for every number of an evaluation."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import nn

from ironrank.attacks import FGSM, PGD
from ironrank.data import Images
from ironrank.judge import accuracy, evaluate, robust_accuracy, withstood
from ironrank.judge.evaluate import describe_layer
from ironrank.layers import FactoredConv2d, FactoredLinear
from ironrank.linalg import USV, UV
from ironrank.ranks.cost import count_macs
from ironrank.surgery import deploy, factorize


def bright_or_dark(n: int = 40) -> Images:
    """Class 1 is bright, class 0 is dark: grey levels 55 and 200."""
    y = torch.arange(n) % 2
    x = torch.where(y == 1, 200, 55).to(torch.uint8).reshape(n, 1, 1, 1).expand(n, 1, 2, 2).contiguous()
    return Images(x, y)


def threshold() -> nn.Module:
    """Logits +-(mean - 0.5): right for `bright_or_dark`, and turned round by Linf changes of more than 0.284."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[-0.25] * 4, [0.25] * 4]))
        net[1].bias.copy_(torch.tensor([0.5, -0.5]))
    return net


def test_accuracy_counts_the_last_smaller_batch() -> None:
    images = bright_or_dark(1001)
    wrong = Images(images.x, torch.where(torch.arange(1001) == 1000, 1, images.y))
    assert accuracy(threshold(), images) == 1.0
    assert accuracy(threshold(), wrong) == pytest.approx(1000 / 1001)


@pytest.mark.parametrize(("eps", "expected"), [(0.27, 1.0), (0.29, 0.0)])
def test_robust_accuracy_at_the_known_margin(eps: float, expected: float) -> None:
    # 200/255 - 0.5 = 0.2843, 0.5 - 55/255 = 0.2843
    assert robust_accuracy(threshold(), bright_or_dark(), PGD(eps=eps), seed=0) == expected
    assert robust_accuracy(threshold(), bright_or_dark(), FGSM(eps=eps), seed=0) == expected


def test_what_is_wrong_already_never_counts_as_robust() -> None:
    images = bright_or_dark()
    flipped = Images(images.x, 1 - images.y)
    assert not withstood(threshold(), flipped, PGD(eps=0.9), seed=0).any()


def test_evaluation_leaves_the_model_alone() -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2)
    ).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    evaluate(net, bright_or_dark(8), [PGD(eps=0.1, steps=2)], latency_runs=2)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def small_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 10), nn.Linear(10, 2)
    )


def test_counts_by_hand() -> None:
    torch.manual_seed(0)
    net = factorize(small_net(), ranks={"0": 2, "3": 3, "4": 2})
    found = evaluate(net, bright_or_dark(8), [FGSM(eps=0.1)], latency_runs=2)
    # conv 6 x 9 at rank 2, 4 pixels; linear 10 x 24 at rank 3; linear 2 x 10 at full rank 2, smaller dense: 20 <= 24
    assert found["params_dense"] == 54 + 6 + 240 + 10 + 20 + 2
    assert found["params_stored"] == 2 * 15 + 4 + 6 + 3 * 34 + 9 + 10 + 2 * 12 + 4 + 2
    assert found["params_deployed"] == 2 * 15 + 6 + 3 * 34 + 10 + 20 + 2
    assert found["macs_dense"] == 4 * 54 + 240 + 20
    assert found["macs"] == 4 * 2 * 15 + 3 * 34 + 20


def test_bytes_are_those_of_the_deployed_file() -> None:
    net = factorize(small_net(), 0.5)
    found = evaluate(net, bright_or_dark(4), [], latency_runs=2)
    whole = to_bytes({name: value.contiguous() for name, value in deploy(net).state_dict().items()})
    assert found["bytes"] == len(whole) and set(from_bytes(whole)) == set(deploy(net).state_dict())


def test_the_curve_falls_to_nothing_and_rows_say_what_was_done() -> None:
    radii = (0.0, 0.2, 0.3, 1.0)
    found = evaluate(
        threshold(), bright_or_dark(), [PGD(eps=0.2)], curve=[PGD(eps=eps) for eps in radii], latency_runs=2
    )
    assert [point["accuracy"] for point in found["curve"]] == [1.0, 1.0, 0.0, 0.0]
    assert found["robust"][0] == {"attack": "PGD-20 Linf", "norm": "Linf", "eps": 0.2, "steps": 20, "restarts": 1,
                                  "accuracy": 1.0, "n": 40}  # fmt: skip
    assert found["n"] == 40 and found["versions"]["torch"] == torch.__version__


def test_layer_description_of_each_form() -> None:
    dense = nn.Linear(3, 3, bias=False)
    dense.weight.data = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
    found = describe_layer("dense", dense)
    assert (
        found["cond"] == pytest.approx(4.0) and found["orthonormality_error"] is None and found["rank"] == 3
    )

    plain = FactoredLinear(3, 3, rank=2, core=False)
    plain.set_factors(UV(torch.eye(3)[:, :2] * 4, torch.eye(3)[:, :2] * torch.tensor([1.0, 0.5])))
    assert describe_layer("uv", plain)["cond"] == pytest.approx(2.0)

    layer = FactoredConv2d(1, 3, 2, rank=2)
    layer.set_factors(
        USV(torch.eye(3)[:, :2], torch.diag(torch.tensor([3.0, 2.0])), torch.eye(4)[:, :2] * 1.001)
    )
    found = describe_layer("usv", layer)
    assert found["cond"] == pytest.approx(1.5) and found["shape"] == [3, 1, 2, 2]
    assert found["orthonormality_error"] == pytest.approx(1.001**2 - 1, rel=1e-3)
    assert found["singular_values"] == pytest.approx([3.0, 2.0])


def test_rank_deficient_layers_have_infinite_condition_number() -> None:
    layer = nn.Linear(4, 4)
    layer.weight.data = torch.ones(4, 4)
    assert describe_layer("flat", layer)["cond"] == float("inf")


def test_macs_are_those_that_run_for_the_first_example() -> None:
    assert count_macs(nn.Conv2d(3, 8, 3, stride=2, padding=1), torch.zeros(2, 3, 8, 8)) == 16 * 8 * 27

"""The weakness map: nets whose sensitive directions are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ironrank.data import Images
from ironrank.errors import IronrankError
from ironrank.judge.weakness import weakness
from ironrank.surgery import factorize


def noise(n: int = 12, shape: tuple[int, ...] = (1, 4, 4), classes: int = 2) -> Images:
    x = torch.randint(60, 190, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Images(x, torch.arange(n) % classes)


def linear(rows: Tensor) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(rows.shape[1], rows.shape[0], bias=False))
    with torch.no_grad():
        net[1].weight.copy_(rows)
    return net


def test_a_linear_net_is_its_own_jacobian() -> None:
    rows = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    found, arrays = weakness(linear(rows), noise())
    s = torch.linalg.svdvals(rows.double())
    assert found["jacobian"]["of_mean"] == pytest.approx(s.tolist(), rel=1e-5)
    assert found["jacobian"]["mean"] == pytest.approx(s[0].item(), rel=1e-5)
    assert found["jacobian"]["largest"] == pytest.approx(s[0].item(), rel=1e-5)
    V = torch.linalg.svd(rows, full_matrices=False).Vh
    for direction, expected in zip(arrays["jacobian"].flatten(1), V, strict=True):
        assert abs(direction @ expected).item() == pytest.approx(1, abs=1e-4)


def test_margin_gradients_of_two_classes_share_one_direction() -> None:
    rows = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    found, arrays = weakness(linear(rows), noise())
    assert found["margins"]["energy"][0] == pytest.approx(1, abs=1e-6)
    steep = (rows[0] - rows[1]) / (rows[0] - rows[1]).norm()
    assert abs(arrays["margins"][0].flatten() @ steep).item() == pytest.approx(1, abs=1e-4)
    assert found["margins"]["pixels"] == 16


def test_no_shared_direction_has_a_flat_energy() -> None:
    class Apart(nn.Module):
        """The logit of each image leans on the pixel that is brightest in it."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x.flatten(1).amax(1), torch.zeros(len(x))], 1)

    x = torch.zeros(8, 1, 4, 4, dtype=torch.uint8)
    x.view(8, 16)[torch.arange(8), torch.arange(8)] = 200
    found, _ = weakness(Apart(), Images(x, torch.zeros(8, dtype=torch.int64)))
    assert found["margins"]["energy"] == pytest.approx([(k + 1) / 8 for k in range(8)])


def test_layers_and_their_alignment() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        net[1].weight.copy_(torch.diag(torch.tensor([4.0, 2.0, 1.0])) @ torch.eye(3, 16))
        net[3].weight.copy_(torch.tensor([[0.0, 0.0, 5.0], [0.0, 1.0, 0.0]]))
    found, _ = weakness(net, noise())
    first, second = found["layers"]
    assert first["norm"] == pytest.approx(4)
    assert first["stable_rank"] == pytest.approx(21 / 16)
    assert first["cond"] == pytest.approx(4)
    assert first["singular_values"] == pytest.approx([4, 2, 1])
    assert second["norm"] == pytest.approx(5)
    (pair,) = found["compositions"]
    assert (pair["first"], pair["second"]) == ("1", "3")
    assert pair["norm"] == pytest.approx(5)  # 5 times what the first one has least of
    assert pair["alignment"] == pytest.approx(5 / (4 * 5))


def test_convolutions_compose_over_their_channels_also_through_flatten() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 1), nn.Flatten(), nn.Linear(24, 2))
    found, _ = weakness(net, noise())
    names = [(pair["first"], pair["second"]) for pair in found["compositions"]]
    assert names == [("0", "1"), ("1", "3")]
    A, B = net[0].weight.detach().flatten(1), net[1].weight.detach().flatten(1)
    assert found["compositions"][0]["norm"] == pytest.approx(
        torch.linalg.matrix_norm(B @ A, 2).item(), rel=1e-5
    )
    C = net[3].weight.detach().view(2, 6, 4).permute(0, 2, 1).flatten(0, 1)
    assert found["compositions"][1]["norm"] == pytest.approx(
        torch.linalg.matrix_norm(C @ B, 2).item(), rel=1e-5
    )
    assert all(0 < pair["alignment"] <= 1 + 1e-9 for pair in found["compositions"])


def test_before_and_after_conditioning_side_by_side() -> None:
    torch.manual_seed(0)
    before = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    after = factorize(
        nn.Sequential(*[nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)]), ranks={"1": 4, "3": 2}
    )
    with torch.no_grad():
        after[1].S.copy_(torch.eye(4))
    found, _ = weakness(after, noise(), before=before)
    row = found["layers"][0]
    assert row["cond"] == pytest.approx(1, abs=1e-4)
    assert row["stable_rank"] == pytest.approx(4, rel=1e-4)
    dense = torch.linalg.svdvals(before[1].weight.detach().double())
    assert row["before"]["cond"] == pytest.approx((dense[0] / dense[-1]).item(), rel=1e-4)
    assert row["before"]["norm"] == pytest.approx(dense[0].item(), rel=1e-5)


@pytest.mark.parametrize(("norm", "eps", "size"), [("Linf", 0.2, 0.2), ("L2", 0.7, 0.7)])
def test_one_perturbation_turns_a_net_with_one_direction(norm: str, eps: float, size: float) -> None:
    rows = torch.stack([torch.ones(16), -torch.ones(16)])
    net = linear(rows)
    x = torch.full((20, 1, 4, 4), 140, dtype=torch.uint8)  # class 0 by a little
    net.append(Shift(0.5 * 16))
    found, arrays = weakness(net, Images(x, torch.zeros(20, dtype=torch.int64)), eps=eps, norm=norm)
    strength = found["universal"]
    assert strength["clean"] == 1.0
    assert strength["accuracy"] == 0.0
    assert strength["noise"] == 1.0
    assert (strength["made_on"], strength["tried_on"]) == (10, 10)
    length = arrays["universal"].abs().max() if norm == "Linf" else arrays["universal"].norm()
    assert 0 < length.item() <= size * (1 + 1e-6)


class Shift(nn.Module):
    """Logits (s, -s) become (s - c, c - s)."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = c

    def forward(self, x: Tensor) -> Tensor:
        return x - torch.tensor([self.c, -self.c])


def test_the_model_is_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2)).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    weakness(net, noise())
    assert all(module.training for module in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("wrong", [{"norm": "L1"}, {"directions": 0}, {"eps": 0.0}])
def test_settings_are_checked(wrong: dict) -> None:
    with pytest.raises(IronrankError, match="needed"):
        weakness(linear(torch.ones(2, 16)), noise(), **wrong)

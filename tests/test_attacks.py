"""Attacks: the promises that hold for every member and both norms, and each member's own known answers."""

import itertools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from ironrank.attacks import (
    APGD,
    ATTACKS,
    FGSM,
    FGSMRS,
    FMN,
    NFGSM,
    PGD,
    LowRankPGD,
    Noise,
    SpectralAttack,
    Square,
    stronger,
)
from ironrank.attacks.losses import LOSSES, cross_entropy, margin, spread
from ironrank.attacks.threat import project, random_start, steepest
from ironrank.errors import IronrankError
from ironrank.layers import FactoredConv2d, FactoredLinear
from ironrank.layers.frozen import frozen

CASES = {
    "fgsm": FGSM,
    "fgsm-rs": FGSMRS,
    "n-fgsm": NFGSM,
    "pgd": lambda **kw: PGD(steps=5, restarts=2, **kw),
    "pgd-last": lambda **kw: PGD(steps=5, keep="last", **kw),
    "pgd-from-x": lambda **kw: PGD(steps=5, random_start=False, **kw),
    "low-rank-pgd": lambda **kw: LowRankPGD(steps=5, rank=2, **kw),
    "pgd-targets": lambda **kw: PGD(steps=5, targets=2, stop=True, **kw),
    "apgd": lambda **kw: APGD(steps=9, stop=False, **kw),
    "apgd-targets": lambda **kw: APGD(steps=5, targets=2, restarts=2, **kw),
    "fmn": lambda **kw: FMN(steps=10, **kw),
    "square": lambda **kw: Square(queries=30, **kw),
    "noise": lambda **kw: Noise(draws=60, **kw),
    "spectral": lambda **kw: SpectralAttack(steps=6, directions=2, stop=False, **kw),
}
STOPS = {
    "pgd-targets",
    "apgd-targets",
    "fmn",
    "square",
    "noise",
}  # a sample keeps the first point that fools the model
SEARCHES = [case for case in CASES if case not in {"fgsm", "fgsm-rs", "n-fgsm", "pgd-last"}]
LEAVES_THE_BALL = {"n-fgsm": 3.0}  # by design; radius in units of eps, every other attack has 1
NOISY = {"fgsm-rs", "n-fgsm", "pgd-last"}  # what they return depends on the start
EPS = {"Linf": 0.1, "L2": 0.5}
each = pytest.mark.parametrize("case", CASES)
norms = pytest.mark.parametrize("norm", EPS)
losses = pytest.mark.parametrize("loss", LOSSES)


def test_every_attack_has_a_case():
    assert {CASES[case]().name for case in CASES} == ATTACKS.keys()


def network():
    torch.manual_seed(3)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4, momentum=1.0), nn.LeakyReLU(), nn.Dropout(0.5),
        nn.Flatten(), nn.Linear(36, 3),
    )  # fmt: skip
    net(torch.rand(16, 1, 8, 8))  # gives the batch norm statistics of its own
    return net.train()


def batch(n=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(5)
    x = torch.rand((n, 1, 8, 8), generator=generator, dtype=dtype)
    x[0], x[1, :, :4] = 0, 1  # faces of the box
    with torch.no_grad():
        y = network().eval().to(dtype)(x).argmax(1)
    y[5::6] = (
        y[5::6] + 1
    ) % 3  # most are right, so that attacks which stop where the model is wrong have work
    return x, y


def seeded(seed=7):
    return torch.Generator().manual_seed(seed)


def length(delta, norm):
    return delta.flatten(1).norm(p={"Linf": torch.inf, "L2": 2}[norm], dim=1)


@each
@norms
@losses
def test_inside_radius_and_box(case, norm, loss):
    attack, (x, y) = CASES[case](norm=norm, eps=EPS[norm], loss=loss), batch()
    adversarial = attack(network(), x, y, generator=seeded())
    assert attack.radius == pytest.approx(LEAVES_THE_BALL.get(case, 1.0) * EPS[norm])
    assert length(adversarial - x, norm).max() <= attack.radius + 1e-6
    assert length(adversarial - x, norm).max() > (0.01 if case == "fmn" else 0.5) * EPS[norm]
    assert adversarial.min() >= 0 and adversarial.max() <= 1
    assert adversarial.dtype == x.dtype and adversarial.shape == x.shape


@norms
@losses
@pytest.mark.parametrize("case", SEARCHES)
def test_loss_not_lower_than_clean_on_any_model(case, norm, loss):
    net, (x, y) = network().eval(), batch(32)
    adversarial = CASES[case](norm=norm, eps=EPS[norm], loss=loss)(net, x, y, generator=seeded())
    measure = measure_of(loss, net(x), y)
    clean, attacked = measure(net(x)), measure(net(adversarial))
    fooled = (net(adversarial).argmax(1) != y) if case in STOPS else torch.zeros(32, dtype=torch.bool)
    assert ((attacked >= clean) | fooled).all()
    assert attacked.mean() > clean.mean()
    was_right = net(x).argmax(1) == y
    assert (fooled & was_right).any() or case not in STOPS
    assert torch.equal(adversarial[~was_right], x[~was_right]) or case not in STOPS


def measure_of(loss, logits, y):
    """The loss as a function of logits, as an attack that began at these logits sees it."""
    if loss == "ce-scaled":
        return lambda here: cross_entropy(here / spread(logits), y)
    return lambda here: LOSSES[loss](here, y)


@norms
@losses
@pytest.mark.parametrize("case", [case for case in CASES if case not in NOISY])
def test_loss_not_lower_than_clean_on_a_linear_model(case, norm, loss):
    torch.manual_seed(0)
    net, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).double(), batch(16, torch.float64)
    measure = measure_of(loss, net(x), y)
    adversarial = CASES[case](norm=norm, eps=EPS[norm], loss=loss)(net, x, y)
    fooled = (net(adversarial).argmax(1) != y) if case in STOPS else torch.zeros(16, dtype=torch.bool)
    assert ((measure(net(adversarial)) >= measure(net(x)) - 1e-12) | fooled).all()


LONG = {  # steps long and many enough to forget the start
    "fgsm": lambda **kw: FGSM(**kw),
    "fgsm-rs": lambda **kw: FGSM(start=1, alpha=1e6, **kw),
    "n-fgsm": lambda **kw: NFGSM(noise=0, **kw),
    "pgd": lambda eps, **kw: PGD(eps=eps, step_size=eps, restarts=2, **kw),
    "pgd-last": lambda eps, **kw: PGD(eps=eps, step_size=eps, keep="last", **kw),
    "pgd-from-x": lambda **kw: PGD(random_start=False, **kw),
    "pgd-targets": lambda eps, **kw: PGD(eps=eps, step_size=eps, targets=1, **kw),
    "apgd": lambda **kw: APGD(stop=False, **kw),
    "apgd-targets": lambda **kw: APGD(stop=False, targets=1, **kw),
    "spectral": lambda **kw: SpectralAttack(stop=False, **kw),
}


@pytest.mark.parametrize("case", LONG)
@losses
@pytest.mark.parametrize(("norm", "box"), [("Linf", False), ("Linf", True), ("L2", False)])
def test_optimum_on_a_linear_model(case, loss, norm, box):
    torch.manual_seed(0)
    weight, eps = torch.randn(2, 20, dtype=torch.float64), EPS[norm]
    x = torch.rand(4, 20, dtype=torch.float64) if box else torch.full((4, 20), 0.5, dtype=torch.float64)
    y = torch.tensor([0, 1, 0, 1])
    rise = (1 - 2 * y[:, None]) * (weight[1] - weight[0])  # gradient of the margin
    if norm == "Linf":
        best = (rise * torch.where(rise > 0, x + eps, x - eps).clamp(0, 1)).sum(1)
    else:
        best = (rise * x).sum(1) + eps * rise.norm(dim=1)
    adversarial = LONG[case](norm=norm, eps=eps, loss=loss)(lambda x: x @ weight.T, x, y)
    torch.testing.assert_close((rise * adversarial).sum(1), best, rtol=1e-9, atol=1e-9)
    reached = F.cross_entropy(adversarial @ weight.T, y, reduction="none")
    torch.testing.assert_close(reached, F.softplus(best), rtol=1e-9, atol=1e-9)


@each
@norms
@pytest.mark.parametrize("training", [True, False, "mixed"])
def test_no_trace_on_the_model(case, norm, training):
    net, (x, y) = network(), batch()
    net.train(bool(training))
    if training == "mixed":
        net[1].eval()
    net[5].bias.requires_grad_(False)
    for p in net.parameters():
        p.grad = torch.full_like(p, 2.0)
    modes = [m.training for m in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    before = x.clone()
    adversarial = CASES[case](norm=norm, eps=EPS[norm])(net, x, y)
    assert [m.training for m in net.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert all((p.grad == 2).all() for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [True, True, True, True, True, False]
    assert not adversarial.requires_grad and adversarial.grad_fn is None
    assert torch.equal(x, before) and not x.requires_grad and x.grad is None


def test_modes_return_after_an_error():
    net, (x, y) = network(), batch()
    with pytest.raises(RuntimeError):
        FGSM()(net, x[:, :, :4], y)
    assert all(m.training for m in net.modules())


@each
def test_global_generator_moves_by_one_draw(case):
    net, (x, y) = network(), batch()
    torch.manual_seed(11)
    torch.randint(2**63 - 1, ())
    expected = torch.get_rng_state()
    torch.manual_seed(11)
    CASES[case]()(net, x, y)
    assert torch.equal(torch.get_rng_state(), expected)


@each
def test_own_generator_leaves_the_global_one_alone(case):
    net, (x, y) = network(), batch()
    before, generator = torch.get_rng_state(), seeded()
    CASES[case]()(net, x, y, generator=generator)
    assert torch.equal(torch.get_rng_state(), before)
    other = seeded()
    torch.randint(2**63 - 1, (), generator=other)
    assert torch.equal(generator.get_state(), other.get_state())


@each
@norms
def test_equal_generators_give_equal_results(case, norm):
    net, (x, y) = network(), batch()
    attack = CASES[case](norm=norm, eps=EPS[norm])
    first = attack(net, x, y, generator=seeded())
    assert torch.equal(first, attack(net, x, y, generator=seeded()))
    if case in NOISY:
        assert not torch.equal(first, attack(net, x, y, generator=seeded(8)))


@each
@norms
def test_result_does_not_depend_on_the_neighbours(case, norm):
    net, (x, y) = network().double(), batch(dtype=torch.float64)
    attack = CASES[case](norm=norm, eps=EPS[norm])
    together = attack(net, x, y, generator=seeded())
    changed = x.flip(3)
    changed[2] = x[2]
    other = attack(net, changed, torch.where(torch.arange(6) == 2, y, (y + 1) % 3), generator=seeded())
    torch.testing.assert_close(other[2], together[2], rtol=0, atol=1e-12)


@norms
@pytest.mark.parametrize("case", ["fgsm", "pgd-from-x"])
def test_a_sample_alone_equals_the_sample_in_a_batch(case, norm):
    net, (x, y) = network().double(), batch(dtype=torch.float64)
    attack = CASES[case](norm=norm, eps=EPS[norm])
    together = attack(net, x, y)
    torch.testing.assert_close(attack(net, x[3:4], y[3:4]), together[3:4], rtol=0, atol=1e-9)


@each
@norms
def test_double_precision(case, norm):
    net, (x, y) = network().double(), batch(dtype=torch.float64)
    attack = CASES[case](norm=norm, eps=EPS[norm])
    adversarial = attack(net, x, y)
    assert adversarial.dtype == torch.float64
    assert length(adversarial - x, norm).max() <= attack.radius + 1e-12


@each
@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(case, outside):
    net, (x, y) = network(), batch()
    attack = CASES[case]()
    expected = attack(net, x, y, generator=seeded())
    with outside():
        got = attack(net, x.clone(), y.clone(), generator=seeded())
        assert not torch.is_grad_enabled()
    assert torch.equal(got, expected)


@each
def test_autocast_outside_keeps_float32_pixels_and_weight_gradients(case):
    net, (x, y) = network(), batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adversarial = CASES[case]()(net, x, y)
        loss = F.cross_entropy(net(adversarial), y)
    loss.backward()
    assert adversarial.dtype == torch.float32
    assert all(p.grad is not None for p in net.parameters())


@each
def test_eps_zero_and_empty_batch_return_the_input(case):
    net, (x, y) = network(), batch()
    adversarial = CASES[case](eps=0)(net, x, y)
    assert torch.equal(adversarial, x) and adversarial is not x
    assert CASES[case]()(net, x[:0], y[:0]).shape == (0, 1, 8, 8)


@each
@norms
def test_a_flat_model_gives_finite_pixels(case, norm):
    x, y = batch()
    attack = CASES[case](norm=norm, eps=EPS[norm])
    adversarial = attack(lambda x: 0 * x.flatten(1)[:, :3], x, y)
    assert torch.isfinite(adversarial).all()
    assert length(adversarial - x, norm).max() <= attack.radius + 1e-6


@pytest.mark.parametrize("case", SEARCHES)
def test_a_loss_that_is_not_a_number_never_wins(case):
    x, y = batch()
    adversarial = CASES[case]()(lambda x: x.flatten(1)[:, :3] * torch.nan, x, y)
    assert torch.equal(adversarial, x)


def test_compiled_model():
    net, (x, y) = network(), batch()
    compiled = torch.compile(net, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = PGD(steps=2)(compiled, x, y, generator=seeded())
    torch.testing.assert_close(got, PGD(steps=2)(net, x, y, generator=seeded()))
    assert net.training


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.zeros(2, 1, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "divide uint8 by 255"),
        (torch.zeros(2, 1, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.int64), "autocast"),
        (torch.full((2, 1), 1.1), torch.zeros(2, dtype=torch.int64), "inside the model"),
        (torch.full((2, 1), -1e-3), torch.zeros(2, dtype=torch.int64), "inside the model"),
        (torch.full((2, 1), torch.nan), torch.zeros(2, dtype=torch.int64), "inside the model"),
        (torch.zeros(2, 1), torch.zeros(3, dtype=torch.int64), r"shape \(2,\)"),
        (torch.zeros(2, 1), torch.zeros(2), "int64"),
    ],
)
def test_a_wrong_batch_is_refused(x, y, words):
    with pytest.raises(IronrankError, match=words) as error:
        FGSM()(lambda x: x, x, y)
    assert "\n" not in str(error.value)


def test_pixels_off_by_rounding_are_accepted():
    x = torch.tensor([[1 + 5e-7, -5e-7]])
    adversarial = FGSM(eps=0.1)(lambda x: x, x, torch.tensor([0]))
    torch.testing.assert_close(adversarial, torch.tensor([[0.9, 0.1]]))


@pytest.mark.parametrize("model", [lambda x: x.detach(), lambda x: torch.zeros(2, 2, requires_grad=True) + 0])
def test_a_model_without_gradient_is_refused(model):
    with pytest.raises(IronrankError, match="without a gradient"):
        FGSM()(model, torch.rand(2, 2), torch.zeros(2, dtype=torch.int64))


def test_margin_survives_logits_so_large_that_cross_entropy_is_flat():
    torch.manual_seed(0)
    weight, x, y = torch.randn(2, 8), torch.full((1, 8), 0.5), torch.tensor([0])
    weight[0] += 4  # sure of class 0
    sure = lambda x: 1e4 * (x @ weight.T)  # noqa: E731
    flat = FGSM(eps=0.1)(sure, x, y)
    moved = FGSM(eps=0.1, loss="margin")(sure, x, y)
    assert torch.equal(flat, x)
    torch.testing.assert_close(moved, x + 0.1 * (weight[1] - weight[0]).sign())


def test_margin_is_the_lead_of_the_best_wrong_class():
    logits = torch.tensor([[2.0, 5.0, 1.0], [2.0, 5.0, 1.0]])
    assert margin(logits, torch.tensor([1, 2])).tolist() == [-3.0, 4.0]


def test_restarts_keep_the_worst_of_each_sample():
    net, (x, y) = network().eval(), batch(16)
    one = PGD(norm="L2", eps=1.0, steps=1, step_size=0.01)
    many = PGD(norm="L2", eps=1.0, steps=1, step_size=0.01, restarts=8)
    clean, first = (cross_entropy(net(point), y) for point in (x, one(net, x, y, generator=seeded())))
    worst = cross_entropy(net(many(net, x, y, generator=seeded())), y)
    assert (worst >= first).all() and (first >= clean).all()
    assert (worst > first).any()


def test_best_keeps_an_iterate_that_the_last_step_leaves():
    def hill(x):  # loss is highest at 0.6, the steps jump over it
        return torch.stack((20 * (x[:, 0] - 0.6).square(), torch.zeros(len(x))), 1)

    x, y = torch.tensor([[0.5]]), torch.tensor([0])
    attack = PGD(eps=0.3, steps=2, step_size=0.12, random_start=False)
    assert attack(hill, x, y).item() == pytest.approx(0.62)
    last = PGD(eps=0.3, steps=2, step_size=0.12, random_start=False, keep="last")
    assert last(hill, x, y).item() == pytest.approx(0.5)


def test_pgd_step_size_rule():
    x, y = torch.full((1, 2), 0.5), torch.tensor([0])
    one = PGD(eps=0.1, steps=5, random_start=False, keep="last")
    trail = []

    def model(x):
        trail.append(x.detach().clone())
        return x

    one(model, x, y)
    assert [round(abs(point[0, 0].item() - 0.5), 4) for point in trail] == [0.0, 0.05, 0.1, 0.1, 0.1]


def test_forward_passes():
    passes = 0

    def model(x):
        nonlocal passes
        passes += 1
        return x

    x, y = torch.full((1, 2), 0.5), torch.tensor([0])
    counts = []
    for keep in ("last", "best"):
        passes = 0
        PGD(steps=10, keep=keep)(model, x, y)
        counts.append(passes)
    assert counts == [10, 12]


# members of one step


def test_fgsm_rs_is_fgsm_with_the_settings_of_its_paper():
    net, (x, y) = network(), batch()
    one = FGSMRS(eps=0.1)(net, x, y, generator=seeded())
    assert torch.equal(one, FGSM(eps=0.1, start=1, alpha=1.25)(net, x, y, generator=seeded()))


def test_n_fgsm_adds_noise_of_twice_eps_and_a_full_step():
    x, y = torch.full((1, 4000), 0.5, dtype=torch.float64), torch.tensor([0])
    weight = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, 4000)
    delta = NFGSM(eps=0.1)(lambda x: x @ weight.T, x, y, generator=seeded()) - x
    # uniform in [-0.2, 0.2], then 0.1 up, and nothing cut at 0.1
    assert -0.1 <= delta.min() < -0.099 and 0.299 < delta.max() <= 0.3
    assert delta.mean().item() == pytest.approx(0.1, abs=0.005)
    assert delta.std().item() == pytest.approx(0.4 / 12**0.5, rel=0.03)


def test_n_fgsm_takes_its_gradient_at_the_noisy_point():
    seen = []

    def model(x):
        seen.append(x.detach().clone())
        return x

    x, y = torch.full((1, 2), 0.5), torch.tensor([0])
    adversarial = NFGSM(eps=0.1)(model, x, y, generator=seeded())
    assert len(seen) == 1 and (seen[0] - x).abs().max() > 0.01
    torch.testing.assert_close(adversarial, seen[0] + torch.tensor([[-0.1, 0.1]]))


@each
def test_an_attack_says_whether_it_leaves_x_before_the_first_gradient(case):
    seen = []

    def model(x):
        if x.requires_grad:
            seen.append(x.detach().clone())
        return x.flatten(1)[:, :3]

    attack, (x, y) = CASES[case](), batch()
    attack(model, x, y, generator=seeded())
    if attack.gradient_steps == 0:
        assert not seen and attack.leaves_x_first
    else:
        from_x = all(any(torch.equal(point, sample) for sample in x) for point in seen[0])
        assert attack.leaves_x_first == (not from_x)


def test_the_next_stronger_attack_keeps_the_ball():
    attack, steps = NFGSM(norm="L2", eps=0.3, loss="margin", precision="bfloat16"), []
    for _ in range(3):
        attack = stronger(attack)
        assert (attack.norm, attack.eps, attack.radius) == ("L2", 0.3, 0.3)
        assert (attack.loss, attack.precision) == ("margin", "bfloat16")
        steps.append(attack.steps)
    assert steps == [2, 4, 8]
    assert stronger(APGD(steps=9)).steps == 18
    assert stronger(PGD(steps=10, step_size=0.01, restarts=3)) == PGD(steps=20, step_size=0.01, restarts=3)


# what a step costs


class Operations(TorchDispatchMode):
    """Counts operations by name, and the weight gradients that are computed."""

    def __init__(self):
        super().__init__()
        self.calls, self.weight_gradients = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        if name == "convolution_backward":
            self.weight_gradients += args[-1][1] + args[-1][2]
        return function(*args, **(kwargs or {}))

    def matmuls(self):
        return sum(self.calls.get(name, 0) for name in ("mm", "addmm", "bmm"))


@each
def test_steps_compute_no_parameter_gradient(case):
    net, (x, y) = network(), batch()
    with Operations() as counted:
        CASES[case]()(net, x, y)
    steps = CASES[case]().gradient_steps
    assert (counted.calls.get("convolution_backward", 0) > 0) == (steps > 0) and counted.weight_gradients == 0
    with Operations() as counted:  # the count sees what it shall see
        F.cross_entropy(net(x), y).backward()
    assert counted.weight_gradients == 2


def factored_network(core=True):
    torch.manual_seed(3)
    return nn.Sequential(
        FactoredConv2d(1, 16, 3, 3, core=core), nn.LeakyReLU(), nn.Flatten(),
        FactoredLinear(576, 40, 4, core=core), nn.LeakyReLU(), FactoredLinear(40, 3, 3, core=core),
    )  # fmt: skip


@pytest.mark.parametrize("core", [True, False])
def test_each_step_more_builds_no_weight(core):
    """Thin and dense layers together: only the products with activations grow with the steps."""
    net, (x, y) = factored_network(core), batch()
    counts = []
    for steps in (1, 2, 3):
        with Operations() as counted:
            PGD(steps=steps, keep="last")(net, x, y, generator=seeded())
        counts.append(counted.matmuls())
    # a step: forward and input gradient of the thin linear layer (2 + 2) and of the dense one (1 + 1)
    assert [b - a for a, b in itertools.pairwise(counts)] == [6, 6]
    built, layers = counts[0] - 6, 3  # U S of each layer, and the dense weight of those that act dense
    assert layers * core < built <= layers * (core + 1)


def test_frozen_weights_are_the_weights():
    net, (x, _) = factored_network().double(), batch(dtype=torch.float64)
    outside = net(x)
    with frozen(net):
        inside = net(x)
        assert not inside.requires_grad and net[3]._kept
    torch.testing.assert_close(inside, outside, rtol=1e-12, atol=1e-12)
    assert net(x).requires_grad and net[3]._kept is None
    with torch.no_grad():
        net[3].S.mul_(2.0)
    assert (net(x) - outside).abs().max() > 1e-3, "nothing of the old weights is kept"


def test_frozen_may_be_nested_and_ends_after_an_error():
    net, (x, y) = factored_network(), batch()
    with frozen(net):
        PGD(steps=2)(net, x, y)
        assert net[0]._kept and not net[0].U.requires_grad
    with pytest.raises(RuntimeError):
        PGD(steps=2)(net, x[:, :, :4], y)
    assert net[0]._kept is None and net[0].U.requires_grad


def test_autocast_inside_does_not_make_the_kept_weights_rough():
    net, (x, _) = factored_network(), batch()
    with frozen(net), torch.autocast("cpu", dtype=torch.bfloat16):
        net(x)
        assert net[0].merged().U.dtype == torch.float32


# precision


@each
@norms
def test_bfloat16_steps_stay_inside_and_near(case, norm):
    net, (x, y) = network(), batch(64)
    plain, fast = (CASES[case](norm=norm, eps=EPS[norm], precision=p) for p in ("float32", "bfloat16"))
    one, two = (attack(net, x, y, generator=seeded()) for attack in (plain, fast))
    assert two.dtype == torch.float32 and two.min() >= 0 and two.max() <= 1
    assert length(two - x, norm).max() <= fast.radius + 1e-6
    assert torch.equal(one, two) == (plain.gradient_steps == 0)
    rise = [
        cross_entropy(net.eval()(point), y).mean() - cross_entropy(net(x), y).mean() for point in (one, two)
    ]
    assert rise[1] > (0.5 if case in STOPS else 0.9) * rise[0] > 0


def test_bfloat16_takes_gradients_in_bfloat16_and_compares_in_float32():
    kinds = []

    def model(x):
        logits = x @ torch.eye(2)
        kinds.append((x.requires_grad, logits.dtype))
        return logits

    x, y = torch.full((1, 2), 0.5), torch.tensor([0])
    PGD(steps=2, precision="bfloat16")(model, x, y)
    step, look = (True, torch.bfloat16), (False, torch.float32)
    assert kinds == [look, step, look, step, look, look]
    kinds.clear()
    FGSM(precision="bfloat16")(model, x, y)
    assert kinds == [step]
    kinds.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        PGD(steps=1, random_start=False)(model, x, y)
        PGD(steps=1, random_start=False, precision="float32")(model, x, y)
    assert [kind for _, kind in kinds] == [torch.bfloat16] * 2 + [torch.float32] * 2


@norms
def test_the_kept_point_is_not_below_clean_in_float32(norm):
    """A loss so flat that bfloat16 sees no difference between points: float32 must choose."""
    net, (x, y) = network().eval(), batch(32)
    net[5].weight.data.mul_(1e-3)
    net[5].bias.data.copy_(torch.tensor([1.0, 0.0, -1.0]))
    adversarial = PGD(norm=norm, eps=EPS[norm], steps=5, precision="bfloat16")(net, x, y, generator=seeded())
    assert (cross_entropy(net(adversarial), y) >= cross_entropy(net(x), y)).all()


# a measure in place of the loss


def test_maximise_drives_up_any_measure():
    x, y = torch.full((1, 3), 0.5), torch.tensor([0])
    attack = PGD(eps=0.1, steps=5)
    down = attack.maximise(lambda x: x, x, lambda logits, point: -point.sum(1) + 0 * logits.sum(1))
    torch.testing.assert_close(down, x - 0.1)
    same = attack.maximise(lambda x: x, x, lambda logits, _: cross_entropy(logits, y), generator=seeded())
    assert torch.equal(same, attack(lambda x: x, x, y, generator=seeded()))


def test_fgsm_rs_starts_anew_and_steps_farther():
    x, y = torch.full((1, 40), 0.5), torch.tensor([0])
    weight = torch.ones(2, 40) * torch.tensor([[0.0], [1.0]])
    delta = FGSM(eps=0.1, start=1, alpha=1.25)(lambda x: x @ weight.T, x, y, generator=seeded()) - x
    # start uniform in [-0.1, 0.1], then 0.125 up, cut at 0.1
    assert delta.max() == pytest.approx(0.1) and 0.02 < delta.min() < 0.1


@norms
def test_fgsm_start_is_a_share_of_eps(norm):
    x, y = torch.full((50, 3), 0.5), torch.zeros(50, dtype=torch.int64)
    delta = FGSM(norm=norm, eps=0.2, start=0.5, alpha=1e-4)(lambda x: x, x, y, generator=seeded()) - x
    assert 0.09 < length(delta, norm).max() < 0.101


@pytest.mark.parametrize(
    ("attack", "text"),
    [
        (PGD(steps=20, restarts=5), "PGD-20 x5 Linf"),
        (PGD(steps=7, norm="L2", loss="margin"), "PGD-7 L2 margin"),
        (FGSM(), "FGSM Linf"),
        (FGSM(start=1, alpha=1.25), "FGSM-RS Linf alpha=1.25"),
        (FGSMRS(), "FGSM-RS Linf alpha=1.25"),
        (NFGSM(norm="L2", loss="margin"), "N-FGSM L2 margin k=2"),
    ],
)
def test_describe(attack, text):
    assert attack.describe() == text


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: PGD(norm="L1"),
        lambda: PGD(eps=-1),
        lambda: PGD(steps=0),
        lambda: PGD(loss="mse"),
        lambda: PGD(restarts=2, random_start=False),
        lambda: PGD(restarts=2, keep="last"),
        lambda: FGSM(start=2),
    ],
)
def test_settings_are_checked_at_the_door(wrong):
    with pytest.raises(IronrankError):
        wrong()


def test_eps_may_be_a_fraction():
    assert PGD(eps="8/255").eps == 8 / 255


# threat models


@norms
def test_projection_keeps_allowed_points_and_is_idempotent(norm):
    torch.manual_seed(0)
    x, far = torch.rand(8, 30).double(), torch.randn(8, 30).double()
    point = project(far, x, EPS[norm], norm)
    assert length(point - x, norm).max() <= EPS[norm] + 1e-12
    torch.testing.assert_close(project(point, x, EPS[norm], norm), point, rtol=0, atol=1e-12)


def test_linf_projection_is_the_nearest_allowed_point():
    torch.manual_seed(0)
    x, far = torch.rand(1, 10).double(), torch.randn(1, 10).double()
    nearest = (project(far, x, 0.1, "Linf") - far).norm()
    others = project(x + 0.2 * torch.randn(1000, 10).double(), x.expand(1000, 10), 0.1, "Linf")
    assert ((others - far).norm(dim=1) >= nearest - 1e-12).all()


def test_l2_projection_shortens_to_eps():
    x = torch.full((1, 2), 0.5)
    torch.testing.assert_close(
        project(x + torch.tensor([[0.3, 0.4]]), x, 0.1, "L2"), x + torch.tensor([[0.06, 0.08]])
    )


def test_random_start_is_uniform_in_the_ball():
    x = torch.full((4000, 3), 0.5, dtype=torch.float64)
    for norm in EPS:
        radius = length(random_start(x, 0.2, norm, seeded()) - x, norm) / 0.2
        assert radius.max() <= 1 + 1e-12
        assert (radius**3).mean().item() == pytest.approx(0.5, abs=0.02)  # volume is uniform: r^d ~ U(0, 1)


def test_random_start_stays_in_the_box():
    point = random_start(torch.zeros(10, 5), 0.3, "L2", seeded())
    assert point.min() >= 0 and point.max() > 0


@norms
def test_steepest_direction_has_length_one_at_any_scale(norm):
    gradient = torch.tensor([[3.0, -4.0], [3e-30, -4e-30], [3e30, -4e30], [0.0, 0.0]])
    direction = steepest(gradient, norm)
    torch.testing.assert_close(direction[:3], direction[:1].expand(3, 2))
    torch.testing.assert_close(length(direction, norm), torch.tensor([1.0, 1.0, 1.0, 0.0]))

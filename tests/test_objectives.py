"""Objectives: the promises that hold for every member, slow float64 twins, and an adversary that stays hidden."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cases import OBJECTIVE_CASES
from ironrank.attacks import FGSM, FGSMRS, NFGSM, PGD, Attack
from ironrank.errors import IronrankError
from ironrank.layers import FactoredLinear
from ironrank.objectives import OBJECTIVES, Clean, Distill, Free, Madry, Mart, Memory, Robust, Trades
from ironrank.objectives.awp import perturbed
from ironrank.objectives.mart import lead

ATTACK = PGD(eps=0.1, steps=3)
each = pytest.mark.parametrize("name", OBJECTIVE_CASES)
attacked = pytest.mark.parametrize("name", [name for name in OBJECTIVE_CASES if name != "clean"])


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.LeakyReLU(), nn.Linear(8, 3))
    net(torch.rand(64, 1, 4, 4))  # gives the batch norm statistics of its own
    return net


def batch(dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand((10, 1, 4, 4), generator=generator, dtype=dtype)
    return x, torch.randint(3, (10,), generator=generator)


def seeded(seed=2):
    return torch.Generator().manual_seed(seed)


def value_of(name, net, eps=0.1, memory=None, seed=2, **settings):
    case, (x, y) = OBJECTIVE_CASES[name], batch()
    memory = case.memory(net) if memory is None else memory
    return case.make(eps, **settings)(net, x, y, generator=seeded(seed), memory=memory)


# ---- promises


def test_every_objective_has_a_case():
    assert {case.make().name for case in OBJECTIVE_CASES.values()} == OBJECTIVES.keys()


@each
def test_loss_is_a_finite_scalar_with_gradients_of_all_weights(name):
    net = network()
    loss = value_of(name, net)
    assert loss.shape == () and torch.isfinite(loss) and loss.dtype == torch.float32
    loss.backward()
    for p in net.parameters():
        assert p.grad is not None and torch.isfinite(p.grad).all()
    assert all(p.grad.abs().max() > 0 for p in net.parameters() if p.ndim > 1)


@each
@pytest.mark.parametrize("training", [True, False])
def test_no_trace_but_one_update_of_the_statistics(name, training):
    net = network().train(training)
    net[2].eval() if not training else None
    for p in net.parameters():
        p.grad = torch.full_like(p, 2.0)
    learned = {key: p.detach().clone() for key, p in net.named_parameters()}
    buffers = {key: b.clone() for key, b in net.named_buffers()}
    value_of(name, net)
    assert [m.training for m in net.modules()] == [training] * 6
    assert net[2].track_running_stats
    for key, p in net.named_parameters():
        assert torch.equal(p, learned[key]) and (p.grad == 2).all() and p.requires_grad
    assert all(not hasattr(m, "_kept") or m._kept is None for m in net.modules())
    changed = [key for key, b in net.named_buffers() if not torch.equal(b, buffers[key])]
    assert changed == (["2.running_mean", "2.running_var", "2.num_batches_tracked"] if training else [])
    if training:
        assert net[2].num_batches_tracked == buffers["2.num_batches_tracked"] + 1


@each
def test_the_statistics_are_those_of_the_attacked_images(name):
    """The batch norm sees many batches; the one that counts is the one the loss is taken at."""
    net, seen = network().train(), []
    memory, norm = OBJECTIVE_CASES[name].memory(net), net[2]

    def spy(layer, inputs, output):
        seen.append((norm.training, norm.track_running_stats, inputs[0], output))

    net[1].register_forward_hook(spy)
    before = norm.running_mean.clone()
    value_of(name, net, memory=memory)
    training = [entry for entry in seen if entry[0]]
    counted = [entry for entry in training if entry[1]]
    assert len(training) == OBJECTIVE_CASES[name].passes and len(counted) == 1
    torch.testing.assert_close(norm.running_mean, 0.9 * before + 0.1 * counted[0][3].mean(0))
    x = batch()[0].flatten(1)
    moved = (counted[0][2] - x).abs().max()
    assert moved <= 0.1 + 1e-6 and (moved > 0.09) == (name not in {"clean", "free"})  # delta starts at 0


@each
def test_equal_generators_give_equal_losses_and_gradients(name):
    values = []
    for _ in range(2):
        net = network()
        loss = value_of(name, net)
        loss.backward()
        values.append((loss.detach(), *(p.grad for p in net.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*values, strict=True))
    if name not in {"clean", "free"}:
        assert not torch.equal(values[0][0], value_of(name, network(), seed=3).detach())


@each
def test_called_twice_at_the_same_weights_it_gives_the_same_gradient(name):
    """The contract of `backward`: also with a memory, until `advance`."""
    net = network().eval()
    memory, gradients = OBJECTIVE_CASES[name].memory(net), []
    for _ in range(2):
        net.zero_grad()
        value_of(name, net, memory=memory).backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@each
def test_at_eps_zero_it_is_clean_where_it_should_be(name):
    net, (x, y) = network().eval(), batch()
    value, clean = value_of(name, net, eps=0.0), F.cross_entropy(net(x), y)
    assert (abs(value - clean) < 1e-6) == OBJECTIVE_CASES[name].clean_at_zero


@each
def test_draws_one_number_at_most_from_the_given_generator_and_none_from_the_global_one(name):
    net, generator, (x, y) = network(), seeded(), batch()
    state = torch.get_rng_state()
    memory = OBJECTIVE_CASES[name].memory(net)
    OBJECTIVE_CASES[name].make()(net, x, y, generator=generator, memory=memory)
    assert torch.equal(torch.get_rng_state(), state)
    none, one = seeded(), seeded()
    torch.randint(2**63 - 1, (), generator=one)
    expected = none if name in {"clean", "free"} else one
    assert torch.equal(generator.get_state(), expected.get_state())


@each
def test_losses_are_float32_under_autocast(name):
    net = network()
    plain = value_of(name, net.eval())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = value_of(name, net)
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    assert abs(loss - plain) < 0.1 * plain + 0.02


@each
def test_works_on_factored_layers(name):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), FactoredLinear(16, 8, 3), nn.LeakyReLU(), nn.Linear(8, 3))
    value_of(name, net).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


@attacked
def test_it_says_what_it_trains_against_and_has_a_stronger_form(name):
    objective = OBJECTIVE_CASES[name].make(0.25)
    assert objective.threat == ("Linf", 0.25)
    harder = objective.stronger()
    assert type(harder) is type(objective) and harder.threat == objective.threat
    if isinstance(objective, Free):
        assert (harder.replays, harder.steps_per_batch) == (4, 4)
    else:
        assert harder.attack == PGD(eps=0.25, steps=6, keep="last") and harder.steps_per_batch == 1
        assert harder.awp == objective.awp


def test_clean_has_no_threat():
    assert Clean().threat is None and Clean().stronger() == Clean() and Clean().steps_per_batch == 1


@each
@pytest.mark.parametrize("wrong", [1.0, -0.1])
def test_label_smoothing_is_bounded(name, wrong):
    with pytest.raises(IronrankError, match="label_smoothing"):
        OBJECTIVE_CASES[name].make(label_smoothing=wrong)


@attacked
@pytest.mark.parametrize("bad", [torch.full((2, 1), 1.5), torch.zeros((2, 1), dtype=torch.uint8)])
def test_a_wrong_batch_is_refused(name, bad):
    memory = Memory(teacher=nn.Identity())
    with pytest.raises(IronrankError, match="attack"):
        OBJECTIVE_CASES[name].make()(lambda x: x, bad, torch.zeros(2, dtype=torch.int64), memory=memory)


# ---- what a step costs (the table of docs/objectives.md)


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.passes = nn.Linear(16, 3), [0, 0]

    def forward(self, x):
        self.passes[0] += 1
        out = self.layer(x.flatten(1))
        if out.requires_grad:
            out.register_hook(self.count)
        return out

    def count(self, gradient):
        self.passes[1] += 1


TEN = PGD(steps=10, keep="last")


@pytest.mark.parametrize("objective, student, teacher", [
    (Clean(), [1, 1], [0, 0]), (Free(), [1, 1], [0, 0]), (Madry(attack=NFGSM()), [2, 2], [0, 0]),
    (Madry(attack=TEN), [11, 11], [0, 0]), (Madry(attack=PGD(steps=10)), [13, 11], [0, 0]),
    (Mart(attack=TEN), [12, 12], [0, 0]), (Trades(attack=TEN), [13, 12], [0, 0]),
    (Distill(attack=TEN), [12, 12], [1, 0]), (Distill(attack=TEN, style="adaad"), [11, 11], [12, 10]),
    (Madry(attack=TEN, awp=0.01), [12, 12], [0, 0]), (Trades(attack=TEN, awp=0.01), [15, 14], [0, 0]),
])  # fmt: skip
def test_forward_and_backward_passes(objective, student, teacher):
    net, guide, (x, y) = Counted(), Counted().requires_grad_(False), batch()
    objective(net, x, y, memory=Memory(teacher=guide)).backward()
    assert (net.passes, guide.passes) == (student, teacher)


# ---- slow twins: numpy, float64, one sample after the other, gradients by central differences


@dataclass(frozen=True, kw_only=True)
class Shift(Attack):
    """A stand-in: every pixel goes up by eps."""

    name = "shift"

    @property
    def leaves_x_first(self):
        return True

    def perturb(self, loss, x, generator):
        return (x + self.eps).clamp(0, 1)


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def kl(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def smoothed_ce(p, y, s):
    return sum(-((1 - s) * (k == y) + s / len(p)) * math.log(p[k]) for k in range(len(p)))


def twin_clean(p, p2, t, t2, y, s):
    return smoothed_ce(p, y, s)


def twin_madry(p, p2, t, t2, y, s):
    return smoothed_ce(p2, y, s)


def twin_trades(p, p2, t, t2, y, s):
    return smoothed_ce(p, y, s) + 6.0 * kl(p, p2)


def twin_mart(p, p2, t, t2, y, s):
    wrong = max(p2[k] for k in range(len(p2)) if k != y)
    return smoothed_ce(p2, y, s) - math.log(1 - wrong) + 5.0 * kl(p, p2) * (1 - p[y])


def mixed(t, s):
    return [(1 - s) * a + s / len(t) for a in t]


def twin_rslad(p, p2, t, t2, y, s):
    return 1 / 6 * kl(mixed(t, s), p) + 5 / 6 * kl(mixed(t, s), p2)


def twin_adaad(p, p2, t, t2, y, s):
    return 0.25 * kl(mixed(t, s), p) + 0.75 * kl(mixed(t2, s), p2)


TWINS = {
    "clean": (Clean, twin_clean),
    "madry": (lambda **kw: Madry(attack=Shift(eps=0.1), **kw), twin_madry),
    "trades": (lambda **kw: Trades(attack=Shift(eps=0.1), **kw), twin_trades),
    "mart": (lambda **kw: Mart(attack=Shift(eps=0.1), **kw), twin_mart),
    "rslad": (lambda **kw: Distill(attack=Shift(eps=0.1), **kw), twin_rslad),
    "adaad": (lambda **kw: Distill(attack=Shift(eps=0.1), style="adaad", alpha=0.75, **kw), twin_adaad),
}


def problem():
    """A model that is linear but for a square, a teacher, and images."""
    rng = np.random.default_rng(3)
    W, T = rng.normal(size=(3, 5)), rng.normal(size=(3, 5))
    return W, T, rng.uniform(0, 0.85, size=(4, 5)), np.array([0, 2, 1, 2])


def logits_of(W, x):
    return W @ (x + x * x)


def twin_loss(twin, W, s):
    _, T, x, y = problem()
    total = 0.0
    for i in range(len(y)):
        p, p2, t, t2 = (softmax(logits_of(M, v)) for M in (W, T) for v in (x[i], x[i] + 0.1))
        total += twin(p, p2, t, t2, y[i], s)
    return total / len(y)


def central(function, W, h=1e-5):
    gradient = np.zeros_like(W)
    for index in np.ndindex(*W.shape):
        up, down = W.copy(), W.copy()
        up[index] += h
        down[index] -= h
        gradient[index] = (function(up) - function(down)) / (2 * h)
    return gradient


class Squared(nn.Module):
    def __init__(self, W):
        super().__init__()
        self.weight = nn.Parameter(torch.from_numpy(W.copy()))

    def forward(self, x):
        return (x + x * x) @ self.weight.T


@pytest.mark.parametrize("s", [0.0, 0.3])
@pytest.mark.parametrize("name", TWINS)
def test_value_and_gradient_agree_with_the_twin(name, s):
    make, twin = TWINS[name]
    W, T, x, y = problem()
    net = Squared(W)
    memory = Memory(teacher=Squared(T).requires_grad_(False))
    loss = make(label_smoothing=s)(net, torch.from_numpy(x), torch.from_numpy(y), memory=memory)
    loss.backward()
    assert loss.item() == pytest.approx(twin_loss(twin, W, s), rel=1e-12)
    np.testing.assert_allclose(net.weight.grad, central(lambda M: twin_loss(twin, M, s), W), atol=1e-8)


@pytest.mark.parametrize("name", ["madry", "trades", "mart", "rslad", "adaad"])
def test_awp_agrees_with_the_twin(name):
    """The gradient at w + v, with v = gamma ||w|| g / ||g|| a constant, found by central differences too."""
    make, twin = TWINS[name]
    W, T, x, y = problem()
    g = central(lambda M: twin_loss(twin, M, 0.1), W)
    v = 0.02 * np.linalg.norm(W) * g / np.linalg.norm(g)
    net = Squared(W)
    memory = Memory(teacher=Squared(T).requires_grad_(False))
    objective = make(label_smoothing=0.1, awp=0.02)
    loss = objective(net, torch.from_numpy(x), torch.from_numpy(y), memory=memory)
    loss.backward()
    assert loss.item() == pytest.approx(twin_loss(twin, W + v, 0.1), rel=1e-8)
    assert loss.item() > twin_loss(twin, W, 0.1) + 1e-3, "worse weights"
    np.testing.assert_allclose(net.weight.grad, central(lambda M: twin_loss(twin, M + v, 0.1), W), atol=1e-7)
    assert torch.equal(net.weight.detach(), torch.from_numpy(W))


def test_free_agrees_with_the_twin():
    """Two batches of unequal size, three replays each: losses, and the perturbation that is carried on."""
    eps, W = 0.1, problem()[0]
    rng = np.random.default_rng(5)
    batches = [(rng.uniform(0, 1, size=(n, 5)), rng.integers(0, 3, size=n)) for n in (3, 4, 2)]
    net, memory, objective = Squared(W), Memory(), Free(eps=eps, replays=3)
    delta = np.zeros((4, 5))
    for x, y in batches:
        for _ in range(3):
            point = np.clip(x + delta[: len(y)], 0, 1)
            expected = np.mean(
                [-math.log(softmax(logits_of(W, a))[k]) for a, k in zip(point, y, strict=True)]
            )
            loss = objective(net, torch.from_numpy(x), torch.from_numpy(y), memory=memory)
            loss.backward()
            objective.advance(memory)
            assert loss.item() == pytest.approx(expected, rel=1e-12)
            for i, k in enumerate(y):
                for j in range(5):
                    if 0 <= x[i, j] + delta[i, j] <= 1:  # no gradient through the box
                        p = softmax(logits_of(W, point[i])) - np.eye(3)[k]
                        slope = (p @ W)[j] * (1 + 2 * point[i, j])
                        delta[i, j] = np.clip(delta[i, j] + eps * np.sign(slope), -eps, eps)
        np.testing.assert_allclose(memory.tensors["delta"][: len(y)], delta[: len(y)], atol=1e-15)
    assert memory.tensors["delta"].shape == (4, 5) and memory.pending is None


# ---- known answers of each


def test_clean_is_cross_entropy_and_draws_nothing():
    net, (x, y) = network().eval(), batch()
    state = torch.get_rng_state()
    torch.testing.assert_close(Clean()(net, x, y), F.cross_entropy(net(x), y))
    assert torch.equal(torch.get_rng_state(), state)


def test_madry_is_the_loss_at_the_attacked_pixels_in_the_mode_of_the_model():
    net, twin, (x, y) = network(), network(), batch()
    loss = Madry(attack=ATTACK)(net, x, y, generator=seeded())
    point = ATTACK(twin, x, y, generator=seeded())
    torch.testing.assert_close(loss, F.cross_entropy(twin(point), y))
    torch.testing.assert_close(net[2].running_mean, twin[2].running_mean)


def test_madry_is_not_below_clean():
    net, (x, y) = network().eval(), batch()
    assert Madry(attack=ATTACK)(net, x, y) > Clean()(net, x, y) + 0.01


@pytest.mark.parametrize("attack", [FGSM(eps=0.1), FGSMRS(eps=0.1), NFGSM(eps=0.1), PGD(eps=0.1, steps=2)])
def test_madry_takes_any_attack(attack):
    net, (x, y) = network().eval(), batch()
    expected = F.cross_entropy(net(attack(net, x, y, generator=seeded())), y)
    torch.testing.assert_close(Madry(attack=attack)(net, x, y, generator=seeded()), expected)


def divergence_at(net, x, point):
    return F.kl_div(net(point).log_softmax(1), net(x).softmax(1), reduction="none").sum(1)


def test_trades_searches_where_the_divergence_is_large_not_the_loss():
    net, (x, y) = network().eval(), batch()
    attack = PGD(eps=0.1, steps=10, keep="last")
    found = (Trades(attack=attack, beta=1)(net, x, y, generator=seeded()) - F.cross_entropy(net(x), y)).item()
    by_loss = divergence_at(net, x, attack(net, x, y, generator=seeded())).mean().item()
    random = divergence_at(net, x, (x + 0.1 * torch.randn_like(x).sign()).clamp(0, 1)).mean().item()
    assert found > by_loss > 0 and found > 2 * random
    # the worst of both signs of the gradient of a logit gap is near the largest there is
    best = torch.stack([divergence_at(net, x, attack(net, x, torch.full_like(y, k))) for k in range(3)]).amax(
        0
    )
    assert found > 0.95 * best.mean().item()


@pytest.mark.parametrize("attack", [FGSM(), PGD(random_start=False), NFGSM(noise=0)])
def test_trades_refuses_an_attack_that_cannot_leave_x(attack):
    with pytest.raises(IronrankError, match="random start"):
        Trades(attack=attack)
    assert Mart(attack=attack).attack == attack


def test_mart_lead_is_exact_where_probabilities_saturate():
    logits = torch.tensor([[0.0, 200.0, 0.0], [0.0, 200.0, 0.0], [1.0, 1.0, 1.0]])
    got = lead(logits, torch.tensor([0, 1, 2]))
    expected = [math.log(2) - 200, 0.0, math.log(2 / 3)]
    torch.testing.assert_close(got, torch.tensor(expected))


def test_adaad_searches_where_student_and_teacher_differ_rslad_where_the_student_leaves_the_clean_answer():
    net, (x, y) = network().eval(), batch()
    twin = OBJECTIVE_CASES["distill"].memory(net).teacher
    same = Memory(teacher=network().eval().requires_grad_(False))
    attack = PGD(eps=0.1, steps=10, keep="last")
    values = {style: Distill(attack=attack, style=style, alpha=1)(net, x, y, generator=seeded(), memory=same).item()
              for style in ("rslad", "adaad")}  # fmt: skip
    assert values["adaad"] == pytest.approx(0, abs=1e-6), "a student that is its teacher differs nowhere"
    assert values["rslad"] > 1e-3
    gap = Distill(attack=attack, style="adaad")(
        net, x, y, generator=seeded(), memory=Memory(teacher=twin)
    ).item()
    still = F.kl_div(net(x).log_softmax(1), twin(x).softmax(1), reduction="batchmean").item()
    assert gap > still + 1e-3


def test_distillation_asks_for_its_teacher():
    x, y = torch.rand(2, 3), torch.tensor([0, 1])
    with pytest.raises(IronrankError, match="without a teacher"):
        Distill()(nn.Identity(), x, y)
    with pytest.raises(IronrankError, match="name the run folder"):
        Distill().begin(lambda folder: nn.Identity())
    asked = []
    memory = Distill(teacher="runs/dense").begin(
        lambda folder: asked.append(folder) or nn.Linear(3, 3).train()
    )
    assert asked == ["runs/dense"] and not memory.teacher.training
    assert not any(p.requires_grad for p in memory.teacher.parameters())


@pytest.mark.parametrize("style", ["rslad", "adaad"])
@pytest.mark.parametrize("classes", [1, 7])
def test_a_teacher_of_other_classes_is_refused(style, classes):
    (x, y), teacher = batch(), nn.Sequential(nn.Flatten(), nn.Linear(16, classes))
    with pytest.raises(IronrankError, match=f"{classes} and 3 classes"):
        Distill(attack=ATTACK, style=style)(network(), x, y, memory=Memory(teacher=teacher))


def test_the_teacher_learns_nothing_and_keeps_its_statistics():
    net, (x, y) = network(), batch()
    memory = OBJECTIVE_CASES["distill"].memory(net)
    before = {key: value.clone() for key, value in memory.teacher.state_dict().items()}
    for style in ("rslad", "adaad"):
        Distill(attack=ATTACK, style=style)(net, x, y, memory=memory).backward()
    assert all(torch.equal(value, before[key]) for key, value in memory.teacher.state_dict().items())
    assert all(p.grad is None for p in memory.teacher.parameters())


@pytest.mark.parametrize("precision, expected", [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
@pytest.mark.parametrize(
    "objective", [Distill(style="adaad"), Distill(style="rslad"), Trades()], ids=["adaad", "rslad", "trades"]
)
def test_the_attack_asks_teacher_and_student_in_its_own_precision(objective, precision, expected):
    """In a run of the other precision: whatever is asked before the loss is taken is part of the attack."""
    (x, y), met, memory = batch(), [], Memory(teacher=network().eval().requires_grad_(False))
    net = network()
    for asked in (memory.teacher, net):
        asked.register_forward_hook(lambda module, args, logits: met.append((module.training, logits.dtype)))
    attack = PGD(eps=0.1, steps=3, keep="last", precision=precision)
    other = precision == "float32"
    with torch.autocast("cpu", torch.bfloat16, enabled=other):
        objective = dataclasses.replace(objective, attack=attack)
        objective.at_worst(net, x, y, seeded(), memory)
    answers = [
        dtype
        for _, dtype in met[: -1 if objective.label() == "distill" and objective.style == "adaad" else None]
    ]
    assert len(answers) >= 4 and set(answers) == {expected}


def test_free_without_a_memory_is_clean_and_stays_in_the_ball_with_one():
    net, (x, y) = network().eval(), batch()
    torch.testing.assert_close(Free()(net, x, y), F.cross_entropy(net(x), y))
    for norm, p in (("Linf", torch.inf), ("L2", 2)):
        objective, memory, losses = Free(norm=norm, eps=0.2, alpha=0.4), Memory(), []
        for _ in range(6):
            loss = objective(net, x, y, memory=memory)
            loss.backward()
            objective.advance(memory)
            losses.append(loss.item())
        assert memory.tensors["delta"].flatten(1).norm(p=p, dim=1).max() <= 0.2 + 1e-6
        assert losses[-1] > losses[0] + 0.01, "delta climbs"


def test_free_moves_only_when_told_and_only_with_a_gradient():
    net, (x, y), memory, objective = network().eval(), batch(), Memory(), Free(eps=0.1)
    objective(net, x, y, memory=memory)
    objective.advance(memory)  # no backward pass
    assert (memory.tensors["delta"] == 0).all()
    objective(net, x, y, memory=memory).backward()
    assert (memory.tensors["delta"] == 0).all()
    objective.advance(memory)
    held = memory.tensors["delta"].clone()
    assert (held.abs() > 0).any()
    objective.advance(memory)  # once for each step
    assert torch.equal(memory.tensors["delta"], held)


def test_awp_moves_matrices_only_and_each_by_its_share():
    net, (x, y) = network().eval(), batch()
    seen = []

    class Spy(Robust):
        def at_worst(self, model, x, y, generator, memory):
            def loss(run):
                seen.append({key: p.detach().clone() for key, p in net.named_parameters()})
                return F.cross_entropy(run(x), y)

            return loss

    hook = lambda *_: seen.append({key: p.detach().clone() for key, p in net.named_parameters()})  # noqa: E731
    net[4].register_forward_hook(hook)
    Spy(attack=ATTACK, awp=0.05)(net, x, y).backward()
    (_, first, _, second) = seen  # told by the loss, seen in the forward pass: at w, then at w + v
    for key, w in first.items():
        v = second[key] - w
        assert v.norm() == pytest.approx(0.05 * w.norm().item() if w.ndim > 1 else 0.0, rel=1e-3)


@pytest.mark.parametrize("size", [0.0, 1e-25, 1e25])
def test_awp_moves_as_far_whatever_the_size_of_the_gradient(size):
    net = nn.Linear(3, 3, bias=False).requires_grad_()
    with torch.no_grad():
        net.weight.fill_(10.0)
    worse = perturbed(net, lambda run: run(torch.eye(3)).sum() * size, gamma=0.5)
    expected = 15.0 if size else 10.0
    torch.testing.assert_close(worse(torch.eye(3)), torch.full((3, 3), expected))


def test_awp_leaves_pruned_weights_at_zero():
    net = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 2.0]]))
    worse = perturbed(net, lambda run: run(torch.eye(3)).square().sum() + run(torch.eye(3)).sum(), gamma=0.5)
    moved = worse(torch.eye(3)).T - net.weight
    assert moved.norm().item() == pytest.approx(1.5, rel=1e-5)
    assert torch.equal(moved != 0, net.weight != 0)


def test_awp_needs_weights_that_learn():
    x, y = torch.rand(2, 3), torch.tensor([0, 1])
    with pytest.raises(IronrankError, match="a torch module is needed"):
        Madry(attack=ATTACK, awp=0.01)(lambda x: x, x, y)
    with pytest.raises(IronrankError, match="without weights that learn"):
        Madry(attack=ATTACK, awp=0.01)(nn.Linear(3, 3).requires_grad_(False), x, y)


def test_default_adversary_suits_training():
    attack = Madry().attack
    assert (attack.norm, attack.eps, attack.keep) == ("Linf", 8 / 255, "last")
    with pytest.raises(IronrankError, match="Attack is needed"):
        Madry(attack="pgd")

"""The audit: known answers, what is kept and resumed, what is refused, and the verb."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

import ironrank
from ironrank.attacks import PGD
from ironrank.cli import main
from ironrank.config import build_run
from ironrank.data import MNIST, Images
from ironrank.errors import IronrankError
from ironrank.files import read_json
from ironrank.judge.audit import audit
from ironrank.judge.ensemble import LEVELS, Level
from ironrank.judge.interval import wilson
from ironrank.training import train
from small_nets import TINY

SCHEMA = {"schema", "name", "target", "level", "threat", "data", "n", "seed", "clean", "robust", "verdict", "attacks",
          "curve", "checks", "flags", "universal", "versions", "hardware", "command"}  # fmt: skip
NET = "audited_net:make"
SOURCE = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

def raises():
    raise OSError("no weights here")

def returns_text():
    return "net"

def colour():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(2704, 10))

def images_back():
    return nn.Identity()

def two_classes():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 2))
"""


def grey(n: int = 40, classes: int = 2) -> Images:
    """Class 1 is bright, class 0 is dark: grey levels 55 and 200."""
    y = torch.arange(n) % classes
    x = torch.where(y == 1, 200, 55).to(torch.uint8).reshape(n, 1, 1, 1).expand(n, 1, 2, 2)
    spread = torch.arange(n).reshape(n, 1, 1, 1) % 4  # no two images are the same
    return Images((x + spread).to(torch.uint8).contiguous(), y)


def threshold() -> nn.Module:
    """Logits +-(mean - 0.5): Linf changes of 0.284 turn what is bright, of 0.272 to 0.284 what is dark."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([[-0.25] * 4, [0.25] * 4]))
        net[1].bias.copy_(torch.tensor([0.5, -0.5]))
    return net


@pytest.mark.parametrize(("eps", "left"), [(0.26, 1.0), (0.30, 0.0)])
def test_the_known_margin_of_a_threshold(eps: float, left: float) -> None:
    found = audit(threshold(), grey(), eps=eps, level=TINY)
    low, high = wilson(left, 40)
    assert found["clean"] == 1.0
    assert found["robust"] == {"accuracy": left, "interval": [low, high], "attacks": len(found["attacks"])}
    assert found["verdict"]["text"] == (
        f"robust accuracy {100 * left:.1f} % (worst case over {len(found['attacks'])} attacks, 40 images, "
        f"95 % interval [{100 * low:.1f}, {100 * high:.1f}])"
    )
    assert (
        found["curve"][0] == {"eps": 0.0, "accuracy": 1.0, "n": 40} and found["curve"][-1]["accuracy"] <= 0.7
    )


class NoSecondDerivative(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope


class Once(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return NoSecondDerivative.apply(self.net(x))


def test_an_attack_that_could_not_be_run_counts_for_nothing() -> None:
    found = audit(Once(threshold()), grey(), eps=0.26, level=TINY)
    names = [row["name"] for row in found["attacks"]]
    assert any(flag.startswith("spectral could not be run") for flag in found["flags"])
    assert "spectral" not in names and found["robust"]["attacks"] == len(names)


def test_a_radius_in_steps_of_255_is_refused() -> None:
    with pytest.raises(IronrankError, match="8/255"):
        audit(threshold(), grey(), eps=8, level=TINY)


def test_l2_at_the_known_margin() -> None:
    # all four pixels move by 0.272 to 0.284: an L2 length of twice that
    assert audit(threshold(), grey(), norm="L2", eps=0.5, level=TINY)["robust"]["accuracy"] == 1.0
    assert audit(threshold(), grey(), norm="L2", eps=0.6, level=TINY)["robust"]["accuracy"] == 0.0


def test_what_is_returned_is_as_documented() -> None:
    found = ironrank.audit(threshold(), grey(), eps=0.1, level=TINY, seed=3)
    assert found.keys() >= SCHEMA and found["schema"] == 1 and found["seed"] == 3
    assert found["threat"] == {"norm": "Linf", "eps": 0.1} and found["n"] == 40
    for row in found["attacks"]:
        assert row.keys() >= {"name", "describe", "kind", "accuracy", "n", "seconds"}
        assert row["kind"] in ("gradient", "gradient-free", "transfer", "noise", "minimum-norm")
        assert row["eps"] <= 0.1
    for row in found["checks"]:
        assert row.keys() == {"name", "passed", "value", "limit", "text"}
        assert row["passed"] == (row["value"] <= row["limit"]), row
    json.dumps(found, allow_nan=False)


def test_pixels_and_classes_do_as_well_as_images() -> None:
    images = grey()
    pixels = images.pixels(torch.arange(40)), images.y
    ours, theirs = (audit(threshold(), data, eps=0.28, level=TINY) for data in (images, pixels))
    assert ours["robust"] == theirs["robust"] and ours["checks"] == theirs["checks"]


def test_the_module_is_left_as_it_was() -> None:
    net = threshold().train()
    net[1].weight.grad = torch.ones(2, 4)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    audit(net, grey(), eps=0.1, level=TINY)
    assert net.training and net[1].training and net[1].weight.grad.eq(1).all()
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_one_image_and_one_that_is_wrong() -> None:
    images = grey()
    assert audit(threshold(), images.first(1), eps=0.1, level=TINY)["n"] == 1
    wrong = audit(threshold(), Images(images.x, 1 - images.y), eps=0.1, level=TINY)
    assert wrong["clean"] == 0.0 and (wrong["robust"] is None or wrong["robust"]["accuracy"] == 0.0)


# ---- what is kept


def kept(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "audit.safetensors", "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118


def test_an_interrupted_audit_goes_on_and_comes_to_the_same(tmp_path: Path, monkeypatch) -> None:
    level = Level(images=40, probe=8, block=8, steps=4, queries=20, draws=10, targets=1, curve=(2.0,))
    calls, perturb = [], PGD.perturb

    def counted(self, *arguments):
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return perturb(self, *arguments)

    monkeypatch.setattr(PGD, "perturb", counted)
    stop, ask = 0, {"eps": 0.278, "level": level}
    straight = audit(threshold(), grey(), out=tmp_path / "straight", **ask)
    whole, stop = len(calls), len(calls) // 2
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        audit(threshold(), grey(), out=tmp_path / "halting", **ask)
    assert not (tmp_path / "halting" / "audit.json").exists()
    resumed = audit(threshold(), grey(), out=tmp_path / "halting", **ask)
    assert len(calls) == whole + 1  # the one that was interrupted ran again, and nothing else
    for key in ("clean", "robust", "curve", "checks", "verdict", "flags"):
        assert resumed[key] == straight[key]
    one, other = kept(tmp_path / "straight"), kept(tmp_path / "halting")
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert one["standing"].shape == (40,) and 0 < one["standing"].sum() < 40
    assert not (tmp_path / "halting" / "audit.partial").exists()

    calls.clear()
    assert audit(threshold(), grey(), out=tmp_path / "halting", **ask) == read_json(
        tmp_path / "halting/audit.json"
    )
    assert not calls  # a finished audit is read


@pytest.mark.parametrize(
    "change", [{"eps": 0.2}, {"seed": 1}, {"norm": "L2"}, {"n": 10}, {"level": LEVELS["quick"]}]
)
def test_a_folder_of_another_question_is_refused(tmp_path: Path, change: dict) -> None:
    audit(threshold(), grey(), out=tmp_path, **{"eps": 0.1, "level": TINY})
    with pytest.raises(IronrankError, match=r"holds another audit \(it differs in .*choose another folder"):
        audit(threshold(), grey(), out=tmp_path, **{"eps": 0.1, "level": TINY, **change})
    net = threshold()
    net[1].bias.data += 1e-6
    warm = threshold()
    warm.temperature = 2.0  # a number that is no tensor and that repr does not show
    for other in (net, warm):
        with pytest.raises(IronrankError, match="differs in net"):
            audit(other, grey(), out=tmp_path, eps=0.1, level=TINY)


# ---- the command line


@pytest.fixture
def run(capsys, tmp_path: Path, monkeypatch):
    """Run the verb in a folder with a module; return exit code, stdout and stderr."""
    (tmp_path / "audited_net.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("audited_net", None)

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(["audit", *map(str, arguments)])
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return call


def test_a_function_and_its_exit_codes(run, mnist: str, tmp_path: Path) -> None:
    ask = (NET, "--data", mnist, "--dataset", "mnist", "--n", "16")
    code, out, err = run(*ask, "--eps", "8/255", "--json", "--quiet")
    found = json.loads(out)
    assert (code, err) == (0 if found["robust"] else 3, "")
    assert (
        found["command"]
        == f"ironrank audit {NET} --dataset mnist --data {mnist} --norm Linf --eps 8/255 --quick --n 16 --seed 0"
    )
    assert read_json(tmp_path / "make-audit" / "audit.json") == found
    code, out, _ = run(*ask, "--eps", "8/255")
    assert found["verdict"]["text"][:30] in out and "sanity test" in out
    assert run(*ask, "--eps", "1/255")[::2] == (2, "error: make-audit holds another audit (it differs in eps): "
                                                   "choose another folder (--out)\n")  # fmt: skip


def test_what_is_not_proven_ends_with_code_3(run, mnist: str, tmp_path: Path) -> None:
    (tmp_path / "audited_net.py").write_text(SOURCE + "\nclass R(nn.Sequential):\n    def forward(self, x):\n"
        "        return super().forward((8 * x).round() / 8)\n\ndef rounded():\n    return R(*make())\n")  # fmt: skip
    code, out, _ = run(
        "audited_net:rounded", "--data", mnist, "--dataset", "mnist", "--n", "16", "--eps", "0.1"
    )
    assert code == 3 and "not proven: gradient not zero" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "no such folder or file; allowed: a run folder, FILE.onnx, module:function"),
        (["nowhere.onnx"], "nowhere.onnx"),
        (["no_such_module:make"], "No module named 'no_such_module'"),
        (["audited_net:nothing"], "module 'audited_net' has no function 'nothing'"),
        (["audited_net:raises"], "the function raised OSError: no weights here"),
        (["audited_net:returns_text"], "it returned a str; a torch.nn.Module is needed"),
        (["audited_net:colour"], "it does not take images of shape (8, 1, 28, 28)"),
        (
            ["audited_net:images_back"],
            "it returned (8, 1, 28, 28); logits (b, classes) of at least two classes are needed",
        ),
        (["audited_net:two_classes"], "2 logits, but a label is"),
        ([NET, "--eps", "0"], "audit with eps=0: a number above 0 is needed"),
        ([NET, "--eps", "-1/255"], "a number above 0 is needed"),
        ([NET, "--eps", "much"], "eps='much': a number, such as 0.1"),
        ([NET, "--norm", "L1"], "audit with norm='L1': allowed is Linf, L2"),
        ([NET, "--dataset", "mnisd"], "data set 'mnisd': did you mean 'mnist'?"),
        ([NET, "--quick", "--full"], "audit with --quick and --full: one level is needed"),
        ([NET, "--data", "nowhere"], "nowhere"),
        ([NET, "--out", "audited_net.py"], "audited_net.py is a file: name a folder"),
        ([NET, "--twin", "nowhere"], "no such folder or file"),
        ([NET, "--device", "abacus"], "device='abacus'"),
    ],
)
def test_mistakes_are_one_line_and_code_2(run, mnist: str, arguments: list[str], said: str) -> None:
    defaults = {"--data": mnist, "--dataset": "mnist", "--eps": "0.1"}
    more = [word for key, value in defaults.items() if key not in arguments for word in (key, value)]
    code, out, err = run(*arguments, *more)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ") and said in err, err


def test_what_only_a_run_folder_knows_has_to_be_said(run, mnist: str) -> None:
    assert "a radius is needed, such as --eps 8/255" in run(NET, "--data", mnist, "--dataset", "mnist")[2]
    assert "a data set is needed, such as --dataset mnist" in run(NET, "--eps", "0.1")[2]


def test_a_run_folder_brings_data_threat_and_twins(run, mnist: str, tmp_path: Path) -> None:
    settings = ("tiny=true", "validate.steps=2", "epochs=1", f"data.folder={mnist}")
    train(build_run("condlr/lenet5-mnist", [*settings, "validate.eps=0.05"]), tmp_path / "run")
    code, out, _ = run("run", "--json", "--n", "16")
    found = json.loads(out)
    assert found["threat"] == {"norm": "Linf", "eps": 0.05} and found["data"] == "first 16 mnist test images"
    assert "forms agree" in [check["name"] for check in found["checks"] if check["passed"]]
    assert "transfer-merged-twin" in [row["name"] for row in found["attacks"]]
    assert code == (0 if found["robust"] else 3) and (tmp_path / "run" / "audit.json").is_file()


def test_processes_share_the_work(mnist: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "audited_net.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    ask = {"eps": 0.05, "level": TINY, "n": 32}
    for jobs in (1, 2):
        audit(NET, MNIST(folder=mnist), jobs=jobs, out=f"jobs{jobs}", **ask)
    one, two = kept(tmp_path / "jobs1"), kept(tmp_path / "jobs2")
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_a_module_in_memory_is_not_shared_out() -> None:
    with pytest.raises(
        IronrankError, match="jobs above 1: other processes have to find net and images by name"
    ):
        audit(threshold(), grey(), eps=0.1, jobs=2)

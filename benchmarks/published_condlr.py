"""One training step: the published CondLR code, ours and dense, in one paired run on the same batch.

    python benchmarks/published_condlr.py --published DIR [--nets vgg16] [--nominal 50 80] [--rounds 15]

DIR is a checkout of the published code, github.com/COMPiLELab/CondLR, measured at commit bf658e0. It is
AGPL-3.0: it is imported from there at run time and run as it is; nothing of it is part of this project.

What is timed, per step and on the same 128 noise images:

    published  zero gradients; forward and backward pass of its net in its wrapper, built as its main script
               does (mode ``approx_orth``, eps = 1 + tau, rank fraction 1 - nominal on all layers, full rank
               on the last); cross-entropy; its ``usv_step``: projected SGD with momentum, QR of U and V, SVD
               and clamp of S. Layout NCHW, as it comes.
    ours       zero gradients; forward and backward pass, normalization of the input included; cross-entropy;
               the step of CondLR: momentum, tangent projection, retraction of U and V, clamp of S.
    dense      our dense net under SGD with momentum, in NCHW and in channels_last.

Not timed: data loading, augmentation, attacks, the accuracy that the published loop computes per batch,
construction.

What to know about the published side: its wrapper lists the layers of a net and runs them in order. For the
wide residual net it computes the sum of shortcut and branch but goes on with the branch alone, so that net
trains without residual sums (all its layers run); we time it as it is. Its convolutions always have a bias,
ours none next to batch norm: hence a few thousand parameters more. The two sides start from their own initial
weights. The learning rate is small, because the batch is noise. Its clamp leaves many equal singular
values, on which the float32 SVD of some LAPACK builds fails now and then; such a step ends early (which
favours the published side), its factors start afresh, and the result counts it under "failures".

``--check`` builds the published side only and runs two steps of each net: it shows that DIR works.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import types
import warnings
from pathlib import Path

import torch

from grid import mistakes
from ironrank.bench.main import main_train_step
from ironrank.bench.memory import peak_of
from ironrank.bench.peak import measure
from ironrank.bench.steps import Step, Task, backward_of, batch_of
from ironrank.bench.table import as_markdown
from ironrank.errors import IronrankError

NETS = ("lenet5", "vgg16", "wrn16-4")


def open_checkout(folder: Path) -> None:
    """Make the published modules importable."""
    if not (folder / "CondLR_utils" / "wrapper" / "wrapper_usv.py").exists():
        raise IronrankError(
            f"--published {folder}: no CondLR_utils/wrapper/wrapper_usv.py there; give a checkout of it"
        )
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    stand_in("einops", "rearrange")  # only layers that are never built here would call it


def stand_in(package: str, member: str) -> bool:
    """Let the import of a package and one member succeed without it; return whether it is missing."""

    def missing(*_: object, **__: object) -> None:
        raise RuntimeError(f"this path of the published code needs {package}: pip install {package}")

    try:
        importlib.import_module(package)
    except ImportError:
        module = types.ModuleType(package)
        setattr(module, member, missing)
        sys.modules[package] = module
        return True
    return False


def published_net(net: str) -> torch.nn.Module:
    """Build the dense net of the published code."""
    if net == "lenet5":
        return importlib.import_module("models.lenet5").Lenet5()
    if net == "vgg16":
        vgg = importlib.import_module("models.vgg")
        return vgg.VGG(vgg.VGG_types["VGG16"], 3, 32, 32, 512, 10)
    return importlib.import_module("models.wrn").WideResNet(16, 10, widen_factor=4)


def published_step(task: Task) -> Step | None:
    """Make the training step of the published code; it has no ResNet-18."""
    if task.net not in NETS:
        return None
    with warnings.catch_warnings():  # its modules silence all warnings for good
        wrapper = importlib.import_module("CondLR_utils.wrapper.wrapper_usv")
        optimizers = importlib.import_module("CondLR_utils.optimizer_LR.usv_optimizer")
        warnings.simplefilter("ignore")
        dense = published_net(task.net)
        model = wrapper.module_usv(
            dense,
            rank=_fractions(dense, task.keep),
            device="cpu",
            baseline=False,
            mean=False,
            approx_orth=True,
        )
    optimizer = optimizers.opt_USV(
        model, baseline=False, lr=task.lr, momentum=task.momentum, weight_decay=0.0,
        stiefel_opt="approx_orth", retraction_opt="qr", eps=1 + task.tau,
    )  # fmt: skip

    def update(backward):
        loss = backward()
        try:
            optimizer.usv_step()
        except torch.linalg.LinAlgError:
            step.failures += 1
            _start_again(model, optimizer.integrator)
        return loss

    model.train()
    step = Step(model, optimizer.integrator, backward_of(model, task.x, task.y), update)
    return step


@torch.no_grad()
def _start_again(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Give all factors fresh values after a failed SVD, so that the next step is an ordinary one."""
    for layer in model.lr_model:
        if getattr(layer, "lr", False):
            layer.U.data = torch.linalg.qr(layer.U.data)[0]
            layer.V.data = torch.linalg.qr(layer.V.data)[0]
            layer.S_hat.data = torch.diag(0.5 + torch.rand(len(layer.S_hat)))
    for slot in optimizer.state.values():
        slot["momentum_buffer"].zero_()


def _fractions(dense: torch.nn.Module, keep: float) -> list[float]:
    layers = [m for m in dense.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    return [round(1 - keep, 4)] * (len(layers) - 1) + [0.0]


def check(nets: list[str], nominal: list[int], momentum: float, tau: float) -> str:
    """Run two steps of the published side alone, on eight images."""
    lines = []
    for net in nets:
        x, y = batch_of(net, 8)
        for value in nominal:
            torch.manual_seed(0)
            step = published_step(Task(net, 1 - value / 100, x, y, 0.01, momentum, tau))
            step()
            step()
            conds, ranks = step.model.get_conds(), step.model.get_ranks()
            lines.append(
                f"{net} {value} %: loss {step.loss:.3f}, ranks {ranks}, largest cond {max(conds):.4f}"
            )
    return "\n".join(lines)


def add_peaks(result: dict, folder: Path) -> None:
    """Add the peak of the published step, one fresh process each."""
    told = result["settings"]
    for row in result["rows"]:
        if "published" in row["extra_over_ours"]:
            spec = {key: told[key] for key in ("batch", "tau", "momentum", "threads")}
            spec |= {"net": row["net"], "keep": row["keep"]}
            command = [__file__, "--published", str(folder), "--peak-child", json.dumps(spec)]
            row["peak"]["published"] = peak_of(command, told["threads"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--published", type=Path, required=True, metavar="DIR", help="checkout of the published code"
    )
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=NETS)
    parser.add_argument("--nominal", nargs="+", type=int, default=[50, 80], help="compressions in percent")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--tau", type=float, default=0.1)
    parser.add_argument("--momentum", type=float, default=0.45)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--layout", default="channels_last", choices=("channels_last", "nchw"), help="of our step"
    )
    parser.add_argument("--peak", action="store_true", help="also measure peaks of resident memory")
    parser.add_argument("--out", type=Path, help="write OUT.json and OUT.md")
    parser.add_argument(
        "--check", action="store_true", help="two steps of the published side, no measurement"
    )
    parser.add_argument("--peak-child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = _arguments()
    open_checkout(args.published.resolve())
    if args.peak_child:
        print(json.dumps(measure(json.loads(args.peak_child), published_step)))
    elif args.check:
        print(check(args.nets, args.nominal, args.momentum, args.tau))
    else:
        result = main_train_step(
            args.nets, args.nominal, args.rounds, args.batch, args.tau, args.momentum, args.threads,
            {"published": published_step}, layout=args.layout, peak=args.peak,
            progress=lambda text: print(text, file=sys.stderr),
        )  # fmt: skip
        finish(result, args)


def finish(result: dict, args: argparse.Namespace) -> None:
    from ironrank.bench.main import save

    if args.peak:
        add_peaks(result, args.published.resolve())
    if args.out:
        save(result, args.out)
    print(as_markdown(result))


if __name__ == "__main__":
    with mistakes():
        main()

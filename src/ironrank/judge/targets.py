"""What is audited: a run folder, an ONNX file, a function that returns a module, or a module itself.

Every target becomes one module from pixels to logits, the form that is judged, and beside it other forms of the same
function, which must agree with it, and sources: other nets whose adversarial images are tried on it.

    target            judged                        other forms            sources
    run folder        deployed                      as trained, merged     merged twin, dense net it started from
    FILE.onnx         the file, read into torch     onnxruntime            the net of --twin
    module:function   what the function returns                            the net of --twin
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from ironrank.artifact import WHICH, load_model
from ironrank.errors import IronrankError
from ironrank.judge.evaluate import for_inference
from ironrank.judge.onnx_file import of_onnx
from ironrank.judge.target import Target
from ironrank.own import is_named, named
from ironrank.surgery import deploy, factored_layers
from ironrank.training.run import Run, read_run

_CHAIN = 8  # earlier stages that are looked through for a dense net


def open_target(
    what: Target | nn.Module | Path | str,
    twin: nn.Module | Path | str | None = None,
    model: nn.Module | None = None,
) -> Target:
    """Find out what is to be audited, and load it.

    Args:
        what: A target, a module, a run folder, a ``.safetensors`` or ``.onnx`` file, or ``"module:function"``,
            which is imported.
        twin: The same kinds of things: a net of the same task, whose adversarial images are tried as well.

        model: The dense module of your own, for a run folder whose model is ``given``.

    Returns:
        The target; modes are left as they are.

    Raises:
        IronrankError: If there is no such thing, or it is no net.
    """
    target = what if isinstance(what, Target) else _open(what, model)
    if twin is None:
        return target
    other = _open(twin)
    if other.blind:
        raise IronrankError(f"twin {other.text}: {other.blind}; a twin needs gradients")
    return replace(target, sources={**target.sources, "twin": other.model})


def _open(what: nn.Module | Path | str, model: nn.Module | None = None) -> Target:
    if isinstance(what, nn.Module):
        return of_module(what, type(what).__name__)
    path = Path(what)
    if path.is_dir() or (path.is_file() and path.suffix == ".safetensors"):
        return of_folder(path, model)
    if path.suffix == ".onnx":
        return of_onnx(path)
    if not is_named(str(what)):
        raise IronrankError(
            f"audit of '{what}': no such folder or file; allowed: a run folder, FILE.onnx, module:function"
        )
    net = named(str(what), "audit of")
    return replace(of_module(net, str(what).partition(":")[2]), text=str(what))


def of_module(model: nn.Module, name: str) -> Target:
    """Return the target of a module; where it holds factored layers, it is judged as it would be deployed.

    Args:
        model: Maps pixels (b, c, h, w) in [0, 1] to logits (b, classes).
        name: What people call it.

    Returns:
        The target.
    """
    if not factored_layers(model):
        return Target(name, name, model)
    merged = deploy(model, dense=True)
    forms = {"as trained": model, "merged": merged}
    return Target(name, name, for_inference(model), forms, {"merged twin": merged})


def of_folder(folder: Path, model: nn.Module | None = None) -> Target:
    """Return the target of a run folder, or of one of its ``.safetensors`` files; its best weights are judged.

    Args:
        folder: The folder or file.
        model: The dense module of your own, where the run's model is ``given``.

    Returns:
        The target, with the dense net that it started from among the sources, where the folder holds it.
    """
    run = read_run(folder) if (folder / "run.json").is_file() else None
    name = folder.resolve().name if folder.is_dir() else folder.stem
    target = of_module(load_model(folder, model=model), name)
    dense = (
        _dense_start(folder, run, model)
        if factored_layers(target.forms.get("as trained", target.model))
        else None
    )
    sources = dict(target.sources) if dense is None else {**target.sources, "dense twin": dense}
    return replace(target, text=str(folder), sources=sources, run=run)


def _dense_start(folder: Path, run: Run | None, model: nn.Module | None) -> nn.Module | None:
    """Return the nearest dense net among the earlier stages of a run, or None."""
    for _ in range(_CHAIN):
        inner, named = folder / "start", run.start if run else None
        folder = Path(named) if isinstance(named, str) and not inner.is_dir() else inner
        if not (folder / WHICH["best"]).is_file():
            return None
        net = load_model(folder, model=model)
        if not factored_layers(net):
            return net
        run = read_run(folder) if (folder / "run.json").is_file() else None
    return None

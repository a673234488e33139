"""The command line: verbs, their options, what goes to which stream, exit codes."""

from __future__ import annotations

import ast
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer

import ironrank
from ironrank import catalog, cli, console, verbs
from ironrank.artifact import load_model
from ironrank.attacks import FGSM
from ironrank.cli import app, main
from ironrank.config import build_run
from ironrank.data import MNIST
from ironrank.files import plain_json, read_json, read_lines, write_json
from ironrank.linalg import condition_number
from ironrank.methods import METHODS, CondLR, Dense
from ironrank.models import LeNet5
from ironrank.objectives import Madry
from ironrank.settings import encode
from ironrank.surgery import deploy, factored_layers
from ironrank.training import Run, decode_run, loop

LENET = "condlr/lenet5-mnist"
TINY = ("tiny=true", "validate.steps=2")


@pytest.fixture
def run(capsys):
    """Run the command line; return exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return call


@pytest.fixture(scope="module")
def trained(mnist: str, tmp_path_factory) -> Path:
    """A folder with two trained run folders, dense and condlr."""
    folder = tmp_path_factory.mktemp("runs")
    for mode in ("dense", "condlr"):
        verbs.train(build_run(LENET, [f"mode={mode}", *TINY, f"data.folder={mnist}"]), folder / mode)
    return folder


def sets(*overrides: str) -> list[str]:
    return [word for text in (*TINY, *overrides) for word in ("--set", text)]


def train(mnist: str, out: Path, *more: object) -> tuple[object, ...]:
    return ("train", LENET, *sets("mode=dense"), "--data", mnist, "--out", out, *more)


# ---- the shape of the command line

TRAINING = {"--set", "--model", "--data", "--out", "--seed", "--device", "--resume", "--until", "--json",
            "--quiet"}  # fmt: skip
OPTIONS = {
    "demo": {"--out", "--seed", "--json"},
    "list": {"family", "name", "--json"},
    "train": {"recipe", *TRAINING},
    "compress": {"folder", "--method", "--budget", "--condition", "--dry-run", *TRAINING},
    "audit": {"what", "--data", "--dataset", "--norm", "--eps", "--quick", "--standard", "--full", "--n", "--seed",
              "--jobs", "--twin", "--model", "--device", "--out", "--json", "--quiet"},
    "compare": {"recipe", "--methods", "--budgets", "--seeds", "--equal", "--train", "--ablation", "--set", "--data",
                "--device", "--out", "--jobs", "--n", "--steps", "--restarts", "--dry-run", "--json", "--quiet"},
    "certify": {"folder", "--radii", "--n", "--which", "--model", "--data", "--smoothing", "--draws", "--alpha",
                "--seed", "--device", "--json"},
    "weakness": {"folder", "--before", "--n", "--which", "--model", "--data", "--norm", "--eps", "--seed", "--device",
                 "--json"},
    "evaluate": {"folder", "--which", "--model", "--data", "--n", "--norm", "--eps", "--steps", "--restarts", "--seed",
                 "--device", "--latency-runs", "--out", "--json"},
    "export": {"folder"},
    "report": {"folders", "--html", "--markdown", "--json", "--card", "--model", "--data", "--title", "--group"},
    "bench": {"--net", "--nominal", "--rounds", "--batch", "--tau", "--momentum", "--threads", "--layout",
              "--peak", "--out", "--json"},
}  # fmt: skip


def test_verbs_and_options_are_as_documented() -> None:
    commands = typer.main.get_command(app).commands
    found = {
        verb: {name for param in command.params for name in param.opts if name not in ("--help", "-h")}
        for verb, command in commands.items()
    }
    assert found == OPTIONS


def test_every_option_says_what_it_does() -> None:
    for verb, command in typer.main.get_command(app).commands.items():
        assert command.get_short_help_str(), verb
        for param in command.params:
            assert param.name == "help" or param.help, f"{verb} {param.name}"


def test_version(run) -> None:
    assert run("--version") == (0, f"ironrank {ironrank.__version__}\n", "")


def test_help_names_every_verb(run) -> None:
    for arguments in (["--help"], ["-h"]):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        assert all(f" {verb} " in out for verb in OPTIONS)


def test_as_a_module() -> None:
    command = [sys.executable, "-m", "ironrank", "train", "condlr/lenet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("error: recipe 'condlr/lenet': did you mean 'condlr/lenet5-mnist'?")


def test_heavy_imports_wait_until_a_verb_runs() -> None:
    tree = ast.parse(Path(cli.__file__).read_text(encoding="utf-8"))
    names = {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    names |= {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert {name for name in names if name.split(".")[0] not in sys.stdlib_module_names} == {
        "typer", "typer.core", "ironrank", "ironrank.errors", "ironrank.options"
    }  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [["--nope"], ["--nope", "train", LENET], ["trian"], ["train"], ["train", LENET, "--sett", "x"],
     ["train", LENET, "--seed", "one"],
     ["train", LENET, "--until", "0"], ["evaluate"], ["report"], ["train", LENET, "--set"]],
)  # fmt: skip
def test_misuse_ends_with_code_2_and_says_so_on_stderr(run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith(" --help\n")


# ---- list


@pytest.mark.parametrize("family", [None, *catalog.CATALOG])
def test_list_names_every_member(run, family: str | None) -> None:
    code, out, _ = run("list", *([family] if family else []), "--json")
    assert code == 0
    found = json.loads(out)
    expected = [family] if family else list(catalog.CATALOG)
    assert {name: list(found[name]) for name in found} == {
        name: list(catalog.CATALOG[name]) for name in expected
    }
    texts = [text for members in found.values() for text in members.values()]
    assert all(len(text) > 20 and text.endswith(".") and ":math:" not in text for text in texts)
    shown = run("list", *([family] if family else []))[1]
    assert all(f" {name} " in shown for members in found.values() for name in members)


MEMBERS = [(family, name) for family, known in catalog.CATALOG.items() for name in known]


@pytest.mark.parametrize(("family", "name"), MEMBERS, ids=lambda item: item.replace("/", "-"))
def test_list_shows_the_settings_of_every_member(run, family: str, name: str) -> None:
    code, out, _ = run("list", family, name, "--json")
    member = json.loads(out)
    assert (code, member["family"], member["name"]) == (0, family, name)
    for row in member["settings"]:
        assert row["meaning"] and row["allowed"], row
    shown = "".join(run("list", family, name)[1].split())
    for row in member["settings"]:
        assert row["field"][:8] in shown


def test_list_tells_default_bounds_and_paper() -> None:
    rows = {row["field"]: row for row in catalog.settings_of("methods", "condlr")["settings"]}
    assert rows["tau"] == {"field": "tau", "default": 0.1, "meaning": "allowed excess of the condition number",
                           "allowed": "number >= 0", "paper": "0, 0.1, 0.5"}  # fmt: skip
    assert rows["keep"]["allowed"] == "number > 0, <= 1"
    assert rows["ranks"]["allowed"] == "JSON: whole number or list of whole numbers by name"
    assert rows["exclude"]["allowed"] == "list of texts"
    assert rows["centre"]["allowed"] == "mean, rms"
    rows = {row["field"]: row for row in catalog.settings_of("run", "run")["settings"]}
    assert rows["method"]["allowed"] == ", ".join(METHODS)
    assert rows["channels_last"]["allowed"] == "true, false"
    assert rows["start"]["allowed"] == "text, none"
    assert "recipe" not in rows


def test_recipes_of_one_file_share_their_words() -> None:
    rows = catalog.settings_of("recipes", "condlr/wrn16-4-cifar100")["settings"]
    assert {row["field"]: row["default"] for row in rows}["nominal"] == 50
    assert {row["field"]: row["meaning"] for row in rows}[
        "tau"
    ] == "CondLR's bound on the condition number is 1 + tau."


def test_list_refuses_the_unknown(run) -> None:
    assert run("list", "method")[2].startswith("error: family 'method': did you mean 'methods'?")
    assert run("list", "methods", "condrl")[2].startswith("error: methods 'condrl': did you mean 'condlr'?")


# ---- train


def test_train_leaves_a_run_folder_and_says_how_good_it_is(run, mnist: str, tmp_path: Path) -> None:
    code, out, err = run(*train(mnist, tmp_path / "a", "--seed", 5))
    assert code == 0
    assert out.startswith(f"{tmp_path / 'a'}; best epoch 1: validation clean ") and out.count("\n") == 1
    assert "epoch 1  loss" in err
    made = decode_run(read_json(tmp_path / "a" / "run.json"))
    assert (made.seed, made.data.folder, made.recipe) == (5, mnist, LENET)
    assert (tmp_path / "a" / "model.safetensors").is_file()


def test_train_json_is_all_that_is_on_stdout(run, mnist: str, tmp_path: Path) -> None:
    code, out, err = run(*train(mnist, tmp_path / "a", "--json"))
    result = json.loads(out)
    (line,) = read_lines(tmp_path / "a" / "metrics.jsonl")
    assert (code, result) == (
        0,
        {
            "folder": str(tmp_path / "a"),
            "best": line,
            "epochs": 1,
            "epochs_planned": 1,
            "finished": True,
            "events": [],
        },
    )
    assert "epoch 1" in err


def test_quiet_shows_nothing(run, mnist: str, tmp_path: Path) -> None:
    assert run(*train(mnist, tmp_path / "a", "--quiet"))[2] == ""


def test_only_the_first_of_several_processes_speaks(run, mnist: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run(*train(mnist, tmp_path / "a")) == (0, "", "")


def test_the_default_folder_is_named_after_the_recipe(run, mnist: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("train", LENET, *sets("mode=dense"), "--data", mnist)[1].startswith(
        "runs/condlr-lenet5-mnist;"
    )
    assert Path("runs", "condlr-lenet5-mnist", "run.json").is_file()


def test_until_stops_and_resume_goes_on(run, mnist: str, tmp_path: Path) -> None:
    out = tmp_path / "a"
    command = ("train", LENET, "--set", "mode=dense", "--set", "model.width=0.1", "--set", "epochs=2",
               "--set", "validate.steps=1", "--data", mnist, "--out", out)  # fmt: skip
    code, shown, _ = run(*command, "--until", 1)
    assert code == 0 and shown.endswith("1 of 2 epochs done: go on with --resume\n")
    assert not (out / "model.safetensors").exists()
    code, shown, _ = run(*command, "--resume")
    assert code == 0 and "go on" not in shown and (out / "model.safetensors").is_file()
    assert [line["epoch"] for line in read_lines(out / "metrics.jsonl")] == [1, 2]


def test_an_interrupt_says_how_to_go_on(run, mnist: str, tmp_path: Path, monkeypatch) -> None:
    def interrupted(job, watcher) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Job, "epoch", interrupted)
        code, out, err = run(*train(mnist, tmp_path / "a", "--quiet"))
    assert (code, out, err.count("\n")) == (130, "", 1)
    assert err.startswith("stopped;") and str(tmp_path / "a") in err and "--resume" in err
    assert run(*train(mnist, tmp_path / "a", "--quiet", "--resume"))[0] == 0


def test_the_best_epoch_is_the_one_whose_weights_are_kept(tmp_path: Path, monkeypatch) -> None:
    run = build_run(LENET, ["epochs=5", "objective=madry"])
    scores = [(0.1, 0.9), (0.3, 0.5), (0.3, 0.6), (0.3, 0.6), (0.2, 1.0)]
    lines = [
        {"step": 3},
        *({"epoch": i, "val_robust": r, "val_clean": c} for i, (r, c) in enumerate(scores, 1)),
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "run.json").write_text(json.dumps(encode(run)), encoding="utf-8")
    result = verbs.outcome(tmp_path)
    assert (result["best"]["epoch"], result["epochs"], result["epochs_planned"]) == (4, 5, 5)
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}', encoding="utf-8")
    assert "best epoch 2: the last, for want of validation; 2 of 5" in console.outcome(
        verbs.outcome(tmp_path)
    )
    (tmp_path / "metrics.jsonl").unlink()
    assert verbs.outcome(tmp_path)["best"] is None


def test_the_outcome_says_what_guards_saw_and_that_patience_ended(tmp_path: Path) -> None:
    lines = [{"epoch": 1}, {"event": "robust overfitting", "at_epoch": 2, "robust_fall": 0.1}, {"epoch": 2}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "run.json").write_text(json.dumps(encode(build_run(LENET, ["epochs=5"]))), encoding="utf-8")
    result = verbs.outcome(tmp_path)
    assert result["events"] == [lines[1]] and not result["finished"]
    assert "robust overfitting in epoch 2; 2 of 5 epochs done: go on" in console.outcome(result)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert console.outcome(verbs.outcome(tmp_path)).endswith("2 of 5 epochs done: out of patience")


# ---- compress


def test_compress_starts_from_the_dense_run(run, trained: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "compress", trained / "dense", "--out", tmp_path / "a", "--set", "method.keep=0.5", "--json"
    )
    assert (code, json.loads(out)["folder"]) == (0, str(tmp_path / "a"))
    made = decode_run(read_json(tmp_path / "a" / "run.json"))
    assert (made.method.name, made.method.keep, made.epochs, made.start) == (
        "svd",
        0.5,
        1,
        str(trained / "dense"),
    )
    assert read_json(tmp_path / "a" / "layout.json")["layers"]["fc1"]["rank"] == 63  # of 125


def test_compress_names_its_folder_after_the_method(run, trained: Path) -> None:
    code, out, _ = run("compress", trained / "dense", "--method", "condlr", "--quiet")
    assert code == 0 and out.startswith(str(trained / "dense-condlr"))


CSTAR = ("--method", "cstar", "--budget", "params=4x", "--set", "method.last=low-rank", "--set", "epochs=3")


def test_compress_to_a_budget_fine_tunes_what_is_left(run, trained: Path, tmp_path: Path) -> None:
    code, out, _ = run("compress", trained / "dense", *CSTAR, "--out", tmp_path / "a", "--json")
    assert (code, json.loads(out)["folder"]) == (0, str(tmp_path / "a"))
    made = decode_run(read_json(tmp_path / "a" / "run.json"))
    assert (made.method.name, made.epochs, made.start.method.name, made.start.epochs) == (
        "dense",
        1,
        "cstar",
        2,
    )
    assert (made.start.method.budget, made.start.start) == ("params=4x", str(trained / "dense"))
    small, whole = load_model(tmp_path / "a"), load_model(trained / "dense")
    sizes = [sum(p.numel() for p in deploy(net).parameters()) for net in (small, whole)]
    assert factored_layers(small) and sizes[0] <= sizes[1] / 4


def test_compress_with_a_condition_keeps_it(run, trained: Path, tmp_path: Path) -> None:
    options = (*CSTAR, "--set", "method.form=channel", "--condition", 0.5, "--out", tmp_path / "a", "--quiet")
    assert run("compress", trained / "dense", *options)[0] == 0
    made = decode_run(read_json(tmp_path / "a" / "run.json"))
    assert (made.method, made.start.method.form) == (CondLR(tau=0.5), "channel")
    layers = factored_layers(load_model(tmp_path / "a"))
    assert layers and all(condition_number(layer.S.detach()) <= 1.5 + 1e-4 for _, layer in layers)


@pytest.mark.parametrize("method", ["cstar", "svd"])
def test_a_dry_run_shows_the_ranks_and_writes_nothing(
    run, trained: Path, tmp_path: Path, method: str
) -> None:
    before = sorted(trained.rglob("*"))
    words = CSTAR if method == "cstar" else ("--method", "svd", "--set", "method.keep=0.25")
    code, out, err = run("compress", trained / "dense", *words, "--dry-run", "--out", tmp_path / "a")
    assert (code, err) == (0, "") and "fc1" in out and "rank" in out
    assert ("params=4x: at most" in out) == (method == "cstar")
    assert (
        json.loads(run("compress", trained / "dense", *words, "--dry-run", "--json")[1])["plan"] + "\n" == out
    )
    assert sorted(trained.rglob("*")) == before and not (tmp_path / "a").exists()
    assert run("compress", trained / "dense", "--method", "dense", "--dry-run")[2].startswith(
        "error: method dense"
    )


@pytest.mark.parametrize("method", ["robust-dlrt", "svd-prune", "cstar", "uv"])
def test_a_dry_run_says_where_ranks_are_found_in_training(run, trained: Path, method: str) -> None:
    words = ("--method", method, "--budget", "params=4x", "--dry-run")
    code, out, _ = run("compress", trained / "dense", *words)
    assert code == 0
    assert (f"ranks at the start; {method} finds its own in training, within params=4x" in out) == (
        method != "uv"
    )


OWN_NET = """
import torch
from torch import nn

def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(49, 40), nn.ReLU(), nn.Linear(40, 10))

def colour():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 10))

def few():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
"""


def test_a_net_of_ones_own_goes_the_whole_way(run, mnist: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "own_net.py").write_text(OWN_NET, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "own_net", raising=False)
    net = "own_net:net"
    few = [word for text in ("epochs=2", "batch_size=32", "validate_images=4") for word in ("--set", text)]
    data = ("--set", "data=mnist", "--data", mnist)
    assert "params=3x: at most" in run("compress", net, "--budget", "params=3x", *data, "--dry-run")[1]
    code, _, err = run("compress", net, "--budget", "params=2x", *few, *data, "--quiet")
    assert (code, err) == (0, "")
    small = Path("runs", "net-svd")
    code, _, err = run("evaluate", small, "--n", 4)
    assert code == 2 and "pass the dense model of your own" in err and err.count("\n") == 1
    code, out, _ = run("evaluate", small, "--model", net, "--n", 4, "--latency-runs", 1, "--json")
    found = json.loads(out)
    assert code == 0 and found["params_deployed"] <= found["params_dense"] / 2
    assert f" --model {net} " in found["command"]
    for verb in ("certify", "weakness", "audit"):
        code, out, _ = run(verb, small, "--model", net, "--n", 4, "--json")
        assert code in (0, 3) and f"--model {net}" in json.loads(out)["command"]
    Path(small, "evaluation.json").unlink()
    assert run("report", small, "--model", net, "--markdown", "report.md")[0] == 0
    assert f"--model {net}" in Path("report.md").read_text(encoding="utf-8")
    again = ("compress", small, "--model", net, "--method", "uv")
    assert run(*again)[::2] == (
        2,
        f"error: {small} holds a net that is low-rank already: start from a dense run\n",
    )
    for name, words in (("colour", "does not take this data"), ("few", "answers 2 images by (2, 3)")):
        code, _, err = run("compress", f"own_net:{name}", "--set", "method.keep=0.5", *few, *data)
        assert code == 2 and words in err and err.count("\n") == 1
        assert not Path("runs", f"{name}-svd").exists()


def test_an_empty_name_for_a_folder_is_refused(run, mnist: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (train(mnist, ""), ("compare", LENET, "--out", ""), ("demo", "--out", ""),
                  ("evaluate", tmp_path, "--out", ""), ("report", tmp_path, "--html", "")):  # fmt: skip
        code, _, err = run(*words)
        assert code == 2 and "the name is empty" in err
    assert not list(tmp_path.iterdir())


def test_a_folder_with_a_comparison_takes_no_run(run, mnist: str, tmp_path: Path) -> None:
    write_json(tmp_path / "comparison.json", {})
    code, _, err = run(*train(mnist, tmp_path))
    assert (code, err) == (2, f"error: {tmp_path} holds a comparison: choose another folder for the run\n")


def test_a_radius_in_steps_of_a_byte_is_refused(run, trained: Path, mnist: str, tmp_path: Path) -> None:
    said = "pixels lie in [0, 1], so at most 1 is allowed; 8 of 255 steps is 8/255"
    sets = ("--set", "objective=madry", "--set", "objective.attack.eps=8")
    for words in (("evaluate", trained / "dense", "--eps", "8"), ("audit", trained / "dense", "--eps", "8"),
                  train(mnist, tmp_path / "a", *sets)):  # fmt: skip
        code, _, err = run(*words)
        assert code == 2 and said in err and err.count("\n") == 1
    assert not (tmp_path / "a").exists()
    l2 = ("--set", "objective.attack.eps=8", "--set", "objective.attack.norm=L2")
    assert build_run(LENET, ["objective=madry", *l2[1::2]]).objective.threat == ("L2", 8.0)


def test_compress_a_saved_net(run, trained: Path, mnist: str, tmp_path: Path) -> None:
    saved = ironrank.save(load_model(trained / "dense"), tmp_path / "saved")
    code, _, err = run("compress", saved, "--method", "uv")
    assert (
        code == 2
        and err.startswith(f"error: {saved} comes without a run.json: say data=")
        and err.count("\n") == 1
    )
    known = sets("data=mnist", "model=lenet5", "model.width=0.25", "epochs=1")[4:]  # not those of a recipe
    assert (
        run(
            "compress", saved, "--method", "uv", *known, "--set", "batch_size=32", "--data", mnist, "--quiet"
        )[0]
        == 0
    )
    made = decode_run(read_json(tmp_path / "saved-uv" / "run.json"))
    assert (made.start, made.method.name) == (str(saved), "uv")


def test_compress_a_module_of_ones_own(mnist: str, tmp_path: Path) -> None:
    net = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(784, 60), torch.nn.ReLU(), torch.nn.Linear(60, 10)
    )
    settings = {"data": MNIST(folder=mnist, validation=0.25), "objective": Madry(attack=FGSM(eps=0.1)), "epochs": 2,
                "validate": FGSM(eps=0.1), "batch_size": 16}  # fmt: skip
    overrides = ["method.first=low-rank"]
    result = ironrank.compress(net, "cstar", overrides, budget="params=4x", out=tmp_path / "a", **settings)
    assert (result["epochs"], result["epochs_planned"]) == (1, 1)
    small = load_model(tmp_path / "a", model=net)
    assert not factored_layers(net) and factored_layers(small)
    assert sum(p.numel() for p in deploy(small).parameters()) <= 47710 / 4
    saved = ironrank.save(net, tmp_path / "saved")
    ironrank.compress(saved, "uv", out=tmp_path / "b", model=net, **settings)
    assert factored_layers(load_model(tmp_path / "b", model=net))


# ---- evaluate and report

FEW = ("--n", 10, "--steps", 2, "--latency-runs", 2)


def test_evaluate_prints_and_keeps_the_row(run, trained: Path) -> None:
    code, out, err = run("evaluate", trained / "condlr", *FEW, "--eps", "8/255,0.1", "--seed", 3, "--json")
    assert (code, err) == (0, "")
    row = json.loads(out)
    assert row == read_json(trained / "condlr" / "evaluation.json") == plain_json(row)
    assert (row["n"], row["seed"]) == (10, 3)
    assert sorted({hit["eps"] for hit in row["robust"]}) == [8 / 255, 0.1]
    shown = run("evaluate", trained / "condlr", *FEW)[1]
    for word in (
        "accuracy, clean",
        "parameters, deployed",
        "% of dense",
        "FactoredLinear",
        "largest condition number",
    ):
        assert word in shown


def test_evaluate_writes_elsewhere_on_request(run, trained: Path, tmp_path: Path) -> None:
    kept = trained / "dense" / "evaluation.json"
    assert not kept.exists()
    run("evaluate", trained / "dense", *FEW, "--out", tmp_path / "row.json")
    assert not kept.exists() and read_json(tmp_path / "row.json")["n"] == 10
    run("evaluate", trained / "dense", *FEW, "--which", "last")
    assert not kept.exists()


def test_report_judges_what_was_not_judged(run, trained: Path, tmp_path: Path, monkeypatch) -> None:
    asked = []
    judge = verbs.evaluate_folder

    def quick(folder: Path, **options: object) -> dict:
        asked.append(Path(folder).name)
        return judge(folder, **(options | {"n": 8, "steps": 1, "latency_runs": 2}))

    monkeypatch.setattr(verbs, "evaluate_folder", quick)
    run("evaluate", trained / "condlr", *FEW)
    (trained / "dense" / "evaluation.json").unlink(missing_ok=True)
    asked.clear()
    files = {kind: tmp_path / f"out.{kind}" for kind in ("html", "markdown", "json")}
    options = [word for kind, path in files.items() for word in (f"--{kind}", path)]
    code, out, _ = run("report", trained / "dense", trained / "condlr", *options, "--title", "Two nets")
    assert (code, asked) == (0, ["dense"])
    assert out.splitlines()[1:] == [str(path) for path in files.values()]
    page = files["html"].read_text(encoding="utf-8")
    assert "Two nets" in page and "condlr" in page
    assert [row["name"] for row in read_json(files["json"])["rows"]] == ["dense", "condlr"]
    assert run("report", trained / "dense", "--markdown", tmp_path / "b.md")[0] == 0
    assert asked == ["dense"]  # kept from the first time
    code, _, err = run("report", trained / "dense", trained / "condlr" / ".." / "dense")
    assert code == 2 and "named more than once" in err
    copied = tmp_path / "other" / "dense"
    shutil.copytree(trained / "dense", copied)
    made = verbs.report([trained / "dense", copied], group=False).data()
    assert [row["name"] for row in made["rows"]] == [f"{trained.name}/dense", "other/dense"]
    assert shlex.split(made["command"]) == ["ironrank", "report", str(trained / "dense"), str(copied), "--title",
                                            "Small, fast and hard to fool", "--no-group"]  # fmt: skip


def test_the_report_draws_the_residuals_of_an_earlier_stage(tmp_path: Path) -> None:
    folders = {"net": (Dense(), {}), "net/start": (METHODS["cstar"](), {"primal": 0.5, "dual": 0.2})}
    for name, (method, more) in folders.items():
        folder = tmp_path / name
        folder.mkdir()
        write_json(folder / "run.json", encode(Run(data=MNIST(), model=LeNet5(), method=method)))
        lines = [
            {"epoch": e, "loss": 1.0, **{key: value / e for key, value in more.items()}} for e in (1, 2, 3)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    attacked = {"attack": "PGD", "norm": "Linf", "eps": 0.1, "accuracy": 0.4, "n": 100}
    row = {"clean": 0.5, "robust": [attacked], "params_deployed": 100}
    write_json(tmp_path / "net" / "evaluation.json", row)
    page = verbs.report([tmp_path / "net"]).html()
    assert "net, earlier: cstar" in page
    assert "primal residual of ADMM" in page and "dual residual of ADMM" in page
    (tmp_path / "net" / "start" / "metrics.jsonl").unlink()
    assert "residual of ADMM" not in verbs.report([tmp_path / "net"]).html()


def test_report_goes_to_report_html(run, trained: Path, tmp_path: Path, monkeypatch) -> None:
    run("evaluate", trained / "dense", *FEW)
    monkeypatch.chdir(tmp_path)
    assert run("report", trained / "dense")[1].splitlines()[-1] == "report.html"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


# ---- the other verbs: each is one call


def test_demo_is_one_call(run, tmp_path: Path, monkeypatch) -> None:
    calls = []

    def run_demo(out: Path, seed: int, console) -> dict:
        calls.append((out, seed, console.stderr))
        return {"rows": [], "verdict": "all is well", "report": str(out / "report.html")}

    monkeypatch.setattr("ironrank.recipes.demo.run_demo", run_demo)
    code, out, _ = run("demo", "--out", tmp_path, "--seed", 2)
    assert code == 0 and out.endswith(f"all is well\n{tmp_path}/report.html\n")
    assert json.loads(run("demo", "--out", tmp_path, "--json")[1])["verdict"] == "all is well"
    assert calls == [(tmp_path, 2, True), (tmp_path, 0, True)]


def test_bench_is_one_call(run, tmp_path: Path, monkeypatch) -> None:
    calls = []

    def measure(*arguments: object, progress, **options: object) -> dict:
        calls.append((arguments, options))
        progress("lenet5")
        return {"rows": []}

    monkeypatch.setattr("ironrank.bench.main_train_step", measure)
    code, out, err = run("bench", "--net", "lenet5", "--nominal", 80, "--rounds", 3, "--threads", 1, "--json")
    assert (code, json.loads(out), err) == (0, {"rows": []}, "lenet5\n")
    assert calls == [
        ((["lenet5"], [80], 3, 128, 0.1, 0.45, 1), {"layout": "channels_last", "peak": False, "out": None})
    ]
    run("bench", "--json")
    assert calls[1][0][:2] == (("lenet5", "vgg16", "wrn16-4", "resnet18"), (50, 80))


def test_export_says_that_it_is_not_built(run) -> None:
    code, out, err = run("export", "runs/a", "--to", "onnx")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: export of runs/a: not built yet")

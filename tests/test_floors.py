"""The house stands: imports go down the floors, files make no circle, and the axes do not know each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ironrank
from ironrank.attacks import ATTACKS
from ironrank.data import DATASETS
from ironrank.methods import METHODS
from ironrank.models import MODELS
from ironrank.objectives import OBJECTIVES

SOURCE = Path(ironrank.__file__).parent
FLOORS = (
    ("errors", "settings", "files", "shell", "devices", "linalg"),
    ("layers", "models", "data", "attacks"),
    ("ranks", "surgery", "optim", "objectives", "own"),
    ("methods", "artifact"),
    ("training", "judge", "report", "bench", "export", "certificates"),
    ("recipes", "config", "compression", "comparison", "catalog"),
    ("verbs", "console", "options", "auditing", "certifying", "comparing", "compressing", "reporting", "cli"),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
DOORS = ("__init__", "__main__")  # what a user imports: it names rooms of every floor
AXES = {"models": MODELS, "data": DATASETS, "objectives": OBJECTIVES, "methods": METHODS, "attacks": ATTACKS}
ALLOWED_CALLS = {"os.register_at_fork"}  # threads do not survive a fork
ALLOWED = {("objectives", "PGD")}  # the adversary that Madry trains against by default


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[int, str, str]]:
    """Line, room and name of everything that a file takes from this package, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            module = (node.module or "").split(".")
            for alias in node.names if module[0] == "ironrank" else ():
                room = module[1] if len(module) > 1 else alias.name
                found.append((node.lineno, room, alias.name))
        elif isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
            found += [
                (node.lineno, name[1], name[1]) for name in names if name[0] == "ironrank" and len(name) > 1
            ]
    return found


FILES = sorted(path for path in SOURCE.rglob("*.py") if room_of(path) not in DOORS)


def test_every_room_has_a_floor():
    rooms = {room_of(path) for path in FILES}
    assert len(FILES) > 40
    assert rooms <= FLOOR.keys(), (
        f"give {sorted(rooms - FLOOR.keys())} a floor here and in docs/architecture.md"
    )


def test_imports_go_down():
    for path in FILES:
        floor = FLOOR[room_of(path)]
        for line, room, name in imports(path):
            if room != "__version__":
                assert FLOOR[room] <= floor, f"{path}:{line}: floor {floor} imports {room}.{name} from above"


def target(module: str, name: str) -> Path:
    """The file that ``from module import name`` reads."""
    place = SOURCE.joinpath(*module.split(".")[1:])
    inner = (
        place / f"{name}.py",
        place / name / "__init__.py",
        place / "__init__.py",
        place.with_suffix(".py"),
    )
    return next(path for path in inner if path.is_file())


def test_files_make_no_circle():
    below: dict[Path, set[Path]] = {}
    for path in FILES + sorted(SOURCE.glob("*/__init__.py")):
        nodes = ast.parse(path.read_text(encoding="utf-8")).body
        froms = [
            node for node in nodes if isinstance(node, ast.ImportFrom) and node.module.startswith("ironrank")
        ]
        below[path] = {target(node.module, alias.name) for node in froms for alias in node.names} - {path}
    while free := [path for path, needs in below.items() if not needs & below.keys()]:
        for path in free:
            del below[path]
    assert not below, f"these files import each other: {sorted(str(p.relative_to(SOURCE)) for p in below)}"


@pytest.mark.parametrize("axis", AXES)
def test_no_axis_names_a_member_of_another(axis):
    members = {
        cls.__name__: other for other, family in AXES.items() if other != axis for cls in family.values()
    }
    for path in (path for path in FILES if room_of(path) == axis):
        for line, _, name in imports(path):
            if name in members and (axis, name) not in ALLOWED:
                pytest.fail(f"{path.name}:{line}: {axis} names {name} of {members[name]}")


def nodes_of_all_files() -> Iterator[tuple[Path, ast.AST]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            yield path, node


def test_no_file_uses_pickle():
    for path, node in nodes_of_all_files():
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"} & set(names), path
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            call = ast.unparse(node.func)
            assert call not in (
                "torch.load",
                "torch.save",
                "torch.jit.load",
                "pickle.load",
                "pickle.loads",
            ), path
            assert not any(
                k.arg == "allow_pickle" and getattr(k.value, "value", True) for k in node.keywords
            ), path


def test_importing_does_nothing():
    """A module's top level holds definitions and assignments only: no calls for their effect."""
    for path in FILES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                call = ast.unparse(node.value.func)
                assert call in ALLOWED_CALLS, f"{path}:{node.lineno}: {call} runs on import"


def test_there_are_no_global_flags():
    assert [
        f"{path}:{node.lineno}" for path, node in nodes_of_all_files() if isinstance(node, ast.Global)
    ] == []

"""Read the CIFAR batches without unpickling them.

The published files are Python pickles, and a pickle may run any program while it is loaded. Here its opcodes
are only looked at (`pickletools.genops` splits the bytes and runs nothing): a small interpreter builds dicts,
lists, tuples, text, bytes, integers and arrays of bytes. It calls nothing that the file names: the three
names by which numpy writes an array are marks to it, every other name is refused.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ironrank.errors import IronrankError

_REBUILD, _NDARRAY, _DTYPE = "rebuild", "ndarray", "dtype"
_NAMES = {
    "numpy.core.multiarray _reconstruct": _REBUILD,
    "numpy._core.multiarray _reconstruct": _REBUILD,
    "numpy ndarray": _NDARRAY,
    "numpy dtype": _DTYPE,
}


@dataclass(frozen=True)
class _Name:
    """A global that the file names; it stands for nothing but itself."""

    what: str


class _Byte:
    """The dtype uint8, the only one that these files need."""


@dataclass(eq=False)
class _Array:
    """An array whose content follows in a BUILD opcode."""

    value: np.ndarray | None = None


@dataclass
class _Machine:
    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def pop(self, count: int) -> tuple[Any, ...]:
        # Takes the topmost values, but none below the latest mark.
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise ValueError("too few values on the stack")
        values = tuple(self.stack[start:])
        del self.stack[start:]
        return values

    def pop_mark(self) -> tuple[Any, ...]:
        values = self.pop(len(self.stack) - self.marks[-1])
        self.marks.pop()
        return values

    def top(self, kind: type) -> Any:
        (value,) = self.pop(1)
        if type(value) is not kind:
            raise ValueError(f"a {kind.__name__} was expected")
        self.stack.append(value)
        return value


def read_opcodes(path: Path) -> Any:
    """Return what a pickle of plain values and byte arrays describes, without running it.

    Args:
        path: The file.

    Returns:
        Dicts, lists, tuples, text, bytes, integers, None and uint8 arrays; old byte strings as latin-1 text.

    Raises:
        IronrankError: If the file is missing or damaged, or asks for anything else.
    """
    try:
        return _interpret(path.read_bytes())
    except OSError as error:
        raise IronrankError(f"{path}: cannot be read ({error.strerror})") from None
    except IronrankError as error:
        raise IronrankError(f"{path}: refused, {error}: only plain values and byte arrays are read") from None
    except (ValueError, TypeError, IndexError, KeyError, OverflowError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise IronrankError(f"{path}: damaged or not a CIFAR batch ({reason[:80]}): get it again") from None


def _interpret(data: bytes) -> Any:
    machine, end = _Machine(), 0
    for opcode, argument, position in pickletools.genops(data):
        if opcode.name not in _ACTIONS:
            raise IronrankError(f"it uses the opcode {opcode.name}")
        _ACTIONS[opcode.name](machine, argument)
        end = (position or 0) + 1
    if end != len(data):
        raise ValueError("bytes after the end")
    (result,) = machine.pop(1)
    if machine.stack or machine.marks:
        raise ValueError("values left over")
    return result.value if isinstance(result, _Array) else result


def _push(machine: _Machine, argument: Any) -> None:
    machine.stack.append(argument)


def _new(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _tuple(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(machine.pop(count))


def _mark(machine: _Machine, _: Any) -> None:
    machine.marks.append(len(machine.stack))


def _put(machine: _Machine, argument: int) -> None:
    (value,) = machine.pop(1)
    machine.stack.append(value)
    machine.memo[argument] = value


def _memoize(machine: _Machine, _: Any) -> None:
    _put(machine, len(machine.memo))


def _get(machine: _Machine, argument: int) -> None:
    machine.stack.append(machine.memo[argument])


def _append(machine: _Machine, _: Any) -> None:
    values = machine.pop(1)
    machine.top(list).extend(values)


def _appends(machine: _Machine, _: Any) -> None:
    values = machine.pop_mark()
    machine.top(list).extend(values)


def _set_item(machine: _Machine, _: Any) -> None:
    _fill(machine, machine.pop(2))


def _set_items(machine: _Machine, _: Any) -> None:
    _fill(machine, machine.pop_mark())


def _fill(machine: _Machine, values: tuple[Any, ...]) -> None:
    keys, items = values[::2], values[1::2]
    if len(keys) != len(items) or any(type(key) not in (str, bytes, int) for key in keys):
        raise ValueError("a dict with text keys was expected")
    plain = [item.value if isinstance(item, _Array) else item for item in items]
    machine.top(dict).update(zip(keys, plain, strict=True))


def _global(machine: _Machine, argument: str) -> None:
    if argument not in _NAMES:
        raise IronrankError(f"it asks for {argument.replace(' ', '.')[:80]!r}")
    machine.stack.append(_Name(_NAMES[argument]))


def _stack_global(machine: _Machine, _: Any) -> None:
    module, name = machine.pop(2)
    _global(machine, f"{module} {name}")


def _reduce(machine: _Machine, _: Any) -> None:
    # Notes that an array or a dtype begins; nothing is called.
    name, arguments = machine.pop(2)
    if name == _Name(_REBUILD) and arguments in [(_Name(_NDARRAY), (0,), kind) for kind in ("b", b"b")]:
        machine.stack.append(_Array())
    elif name == _Name(_DTYPE) and isinstance(arguments, tuple) and arguments[:1] == ("u1",):
        machine.stack.append(_Byte())
    else:
        raise IronrankError(
            f"it asks for a call of {getattr(name, 'what', type(name).__name__)} with other arguments"
        )


def _build(machine: _Machine, _: Any) -> None:
    target, state = machine.pop(2)
    if isinstance(target, _Array):
        target.value = _array(*state)
    elif not isinstance(target, _Byte):
        raise IronrankError("it sets the state of an object")
    machine.stack.append(target)


def _array(_: Any, shape: Any, dtype: Any, fortran: Any, data: Any) -> np.ndarray:
    if not isinstance(dtype, _Byte):
        raise IronrankError("it holds an array of another type than bytes")
    # Python 2 wrote the bytes as a byte string, which arrives as latin-1 text.
    raw = data.encode("latin-1") if isinstance(data, str) else data
    if not isinstance(raw, bytes) or not isinstance(shape, tuple) or len(shape) > 4:
        raise ValueError("an array's shape and bytes were expected")
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("an array's shape was expected")
    if math.prod(shape) != len(raw):
        raise ValueError(f"an array of {math.prod(shape)} bytes holds {len(raw)}")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _ignore(machine: _Machine, argument: Any) -> None:
    """Protocol, frames and the end say nothing about values."""


_VALUES = """BININT BININT1 BININT2 LONG1 BINSTRING SHORT_BINSTRING BINUNICODE SHORT_BINUNICODE
BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8"""

_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    **dict.fromkeys(_VALUES.split(), _push),
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _ignore),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _get),
    "MEMOIZE": _memoize,
    "NONE": _new(lambda: None),
    "NEWTRUE": _new(lambda: True),
    "NEWFALSE": _new(lambda: False),
    "EMPTY_DICT": _new(dict),
    "EMPTY_LIST": _new(list),
    "EMPTY_TUPLE": _new(tuple),
    "MARK": _mark,
    "TUPLE": lambda machine, _: machine.stack.append(machine.pop_mark()),
    "TUPLE1": _tuple(1),
    "TUPLE2": _tuple(2),
    "TUPLE3": _tuple(3),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
}

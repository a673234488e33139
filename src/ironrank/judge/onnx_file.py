"""An ONNX file as a torch module, so that attacks can follow its gradients; checked against onnxruntime.

The usual operators of image classifiers are computed by torch, node by node, as the file says (`onnx_ops`). Whether
that is right is not taken on trust: the logits have to agree with those of onnxruntime, which is one of the forms that
an audit compares. A file with another operator is judged through onnxruntime alone, without gradients, and an audit
then proves nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.judge.onnx_ops import OPERATORS, Node
from ironrank.judge.target import Target


class OnnxNet(nn.Module):
    """The graph of an ONNX file, computed by torch.

    Args:
        nodes: The operators, in order.
        constants: Tensors of the file, by name.
        source: Name of the input.
        result: Name of the output.
        size: Images at a time, where the file fixes that; else None.
    """

    def __init__(
        self,
        nodes: list[Node],
        constants: dict[str, Tensor],
        source: str,
        result: str,
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.nodes, self.source, self.result, self.size = nodes, source, result, size
        self._names = {name: f"constant_{i}" for i, name in enumerate(constants)}
        for name, tensor in constants.items():
            self.register_buffer(self._names[name], tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for pixels (b, c, h, w)."""
        return in_parts(self._run, x, self.size)

    def _run(self, x: Tensor) -> Tensor:
        values: dict[str, Any] = {"": None, self.source: x}
        values |= {name: getattr(self, buffer) for name, buffer in self._names.items()}
        for node in self.nodes:
            inputs = [values[name] for name in node.inputs]
            outputs = OPERATORS[node.kind](node.options, *inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            values |= dict(zip(node.outputs, outputs, strict=False))
        return values[self.result]


class Runtime(nn.Module):
    """An ONNX file, computed by onnxruntime; no gradients.

    Args:
        content: The bytes of the file.
        size: Images at a time, where the file fixes that; else None.
    """

    def __init__(self, content: bytes, size: int | None) -> None:
        super().__init__()
        options = _package("onnxruntime").SessionOptions()
        options.log_severity_level = 3
        self._session = _package("onnxruntime").InferenceSession(content, options, ["CPUExecutionProvider"])
        self._content, self._size = content, size

    def __deepcopy__(self, memo: dict) -> Runtime:
        """Return another session on the same file."""
        return Runtime(self._content, self._size)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for pixels (b, c, h, w), detached."""
        return in_parts(self._run, x.detach(), self._size)

    def _run(self, x: Tensor) -> Tensor:
        name = self._session.get_inputs()[0].name
        found = self._session.run(None, {name: np.ascontiguousarray(x.cpu().float().numpy())})[0]
        return torch.from_numpy(found).to(x.device)


def in_parts(run: Callable[[Tensor], Tensor], x: Tensor, size: int | None) -> Tensor:
    """Run a batch in parts of equal size, the last one filled up with zeros.

    Args:
        run: Maps ``size`` images to their outputs.
        x: Pixels (b, ...).
        size: Images at a time; None for all at once.

    Returns:
        The outputs (b, ...).

    Example:
        >>> in_parts(lambda x: x[:2] + 1, torch.arange(3), 2)
        tensor([1, 2, 3])
    """
    if size is None:
        return run(x)
    short = -len(x) % size
    filled = torch.cat([x, x.new_zeros(short, *x.shape[1:])]) if short else x
    return torch.cat([run(part) for part in filled.split(size)])[: len(x)]


def of_onnx(path: Path) -> Target:
    """Return the target of an ONNX file.

    Args:
        path: The file.

    Returns:
        The target; blind where an operator is unknown.

    Raises:
        IronrankError: If the file is missing or damaged, or packages are missing.
    """
    if not path.is_file():
        raise IronrankError(f"audit of {path}: no such file")
    onnx = _package("onnx")
    try:
        model = onnx.load(path)
        runtime = Runtime(model.SerializeToString(), _fixed_size(model.graph))
    except IronrankError:
        raise
    except Exception as error:  # the packages have exceptions of their own
        raise IronrankError(
            f"audit of {path}: no sound ONNX file ({' '.join(str(error).split())[:200]})"
        ) from None
    unknown = sorted({node.op_type for node in model.graph.node} - OPERATORS.keys())
    if unknown:
        why = f"operators that are not known here: {', '.join(unknown)}; only gradient-free and transfer attacks ran"
        return Target(path.stem, str(path), runtime, blind=why)
    net = OnnxNet(*_read(model.graph), _fixed_size(model.graph))
    return Target(path.stem, str(path), net.eval(), {"in onnxruntime": runtime})


def _fixed_size(graph: Any) -> int | None:
    first = _inputs(graph)[0].type.tensor_type.shape.dim[0]
    return first.dim_value or None


def _inputs(graph: Any) -> list[Any]:
    given = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in given]


def _read(graph: Any) -> tuple[list[Node], dict[str, Tensor], str, str]:
    """Return nodes, constants, and the names of input and output."""
    from onnx import helper, numpy_helper

    def tensor(proto: Any) -> Tensor:
        return torch.from_numpy(copy.deepcopy(numpy_helper.to_array(proto)))

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode()
        return tensor(value) if hasattr(value, "raw_data") else value

    constants = {proto.name: tensor(proto) for proto in graph.initializer}
    nodes = [
        Node(node.op_type, tuple(node.input), tuple(node.output),
             {option.name: plain(helper.get_attribute_value(option)) for option in node.attribute})
        for node in graph.node
    ]  # fmt: skip
    return nodes, constants, _inputs(graph)[0].name, graph.output[0].name


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise IronrankError(
            f"audit of an ONNX file: the package {name} is missing; pip install 'ironrank[onnx]'"
        ) from None

"""ONNX files read into torch: every operator against onnxruntime, whole nets, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ironrank.errors import IronrankError
from ironrank.judge.audit import audit
from ironrank.judge.onnx_file import Runtime, of_onnx
from ironrank.judge.onnx_ops import OPERATORS
from ironrank.judge.targets import open_target
from small_nets import TINY, small_net, some_images

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

PLAIN = ("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Neg", "Abs", "Softplus", "HardSwish", "HardSigmoid", "LeakyRelu",
         "Elu", "Gelu", "Softmax", "LogSoftmax", "Identity", "GlobalAveragePool", "GlobalMaxPool", "Flatten",
         "Dropout")  # fmt: skip
rng = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def whole(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


# operator, its further inputs, its options; the first input has the shape (2, 3, 6, 5)
CASES = [
    *((kind, [], {}) for kind in PLAIN),
    ("LeakyRelu", [], {"alpha": 0.3}), ("Softmax", [], {"axis": 1}), ("Flatten", [], {"axis": 2}),
    ("Flatten", [], {"axis": 0}), ("Transpose", [], {}), ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    ("Conv", [floats(4, 3, 3, 2)], {}),
    ("Conv", [floats(6, 1, 3, 3), floats(6)], {"group": 3, "pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ("Conv", [floats(4, 3, 2, 2), floats(4)], {"dilations": [2, 1], "pads": [1, 1, 1, 1]}),
    ("Conv", [floats(4, 3, 2, 3)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [floats(4, 3, 2, 3)], {"auto_pad": "SAME_LOWER"}),
    ("MaxPool", [], {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 1, 0, 1]}),
    ("MaxPool", [], {"kernel_shape": [2, 2]}),
    ("AveragePool", [], {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [1, 1, 0, 1]}),
    ("AveragePool", [], {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    ("BatchNormalization", [floats(3), floats(3), floats(3), np.abs(floats(3)) + 0.1], {"epsilon": 1e-3}),
    ("MatMul", [floats(5, 4)], {}), ("Add", [floats(3, 1, 1)], {}), ("Sub", [floats(5)], {}),
    ("Mul", [floats(2, 3, 6, 5)], {}), ("Div", [np.abs(floats(3, 1, 1)) + 1], {}),
    ("Pow", [np.float32(2.0)], {}), ("Max", [floats(5), floats(6, 1)], {}), ("Min", [floats(5)], {}),
    ("Sum", [floats(5), floats(3, 1, 1)], {}), ("Clip", [np.float32(-0.5), np.float32(0.5)], {}),
    ("Clip", [np.float32(0.0)], {}), ("Reshape", [whole(0, -1)], {}), ("Reshape", [whole(2, 9, 10)], {}),
    ("Unsqueeze", [whole(0, -1)], {}), ("Concat", [floats(2, 1, 6, 5)], {"axis": 1}),
    ("Pad", [whole(0, 0, 1, 2, 0, 0, 0, 1), np.float32(0.7)], {}),
    ("Pad", [whole(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "reflect"}),
    ("Pad", [whole(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "edge"}),
    ("Slice", [whole(1, 0), whole(5, 99), whole(2, 3), whole(2, 1)], {}),
    ("Slice", [whole(-2), whole(99), whole(2)], {}),
    ("Gather", [whole(2, 0)], {"axis": 1}), ("Gather", [np.int64(1)], {"axis": -1}),
    ("ReduceMean", [whole(2, 3)], {"keepdims": 0}), ("ReduceSum", [whole(1)], {}), ("ReduceMean", [], {}),
    ("Shape", [], {}), ("Shape", [], {"start": 1, "end": 3}),
]  # fmt: skip
ELSEWHERE = {"Gemm", "Sqrt", "Log", "Squeeze", "Constant"}  # need an input of another shape or sign


def single(kind: str, inputs: list[np.ndarray], options: dict, first: np.ndarray, folder: Path) -> Path:
    """Write a file of one operator."""
    names = [f"c{i}" for i in range(len(inputs))]
    node = helper.make_node(kind, ["x", *names] if kind != "Constant" else [], ["y"], **options)
    constants = [
        numpy_helper.from_array(np.asarray(array), name) for name, array in zip(names, inputs, strict=True)
    ]
    given = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, first.shape)
    out = helper.make_tensor_value_info(
        "y", onnx.TensorProto.INT64 if kind == "Shape" else onnx.TensorProto.FLOAT, None
    )
    graph = helper.make_graph([node], "one", [given], [out], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, folder / "one.onnx")
    return folder / "one.onnx"


def compare(path: Path, first: np.ndarray) -> None:
    target = of_onnx(path)
    x = torch.from_numpy(first).requires_grad_()
    ours, theirs = target.model(x), target.forms["in onnxruntime"](x)
    assert ours.shape == theirs.shape and torch.allclose(ours.to(theirs), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("kind", "inputs", "options"), CASES, ids=[f"{case[0]}-{i}" for i, case in enumerate(CASES)]
)
def test_operators_agree_with_onnxruntime(kind: str, inputs: list, options: dict, tmp_path: Path) -> None:
    first = floats(2, 3, 6, 5)
    compare(single(kind, inputs, options, first, tmp_path), first)


@pytest.mark.parametrize(
    ("kind", "inputs", "options", "first"),
    [("Gemm", [floats(4, 5)], {"transB": 1}, floats(2, 5)), ("Sqrt", [], {}, np.abs(floats(4))),
     ("Gemm", [floats(5, 4), floats(4)], {"alpha": 0.5, "beta": 2.0}, floats(2, 5)),
     ("Gemm", [floats(2, 4)], {"transA": 1}, floats(2, 5)), ("Log", [], {}, np.abs(floats(4)) + 0.1),
     ("Squeeze", [whole(1)], {}, floats(2, 1, 3, 1)), ("Squeeze", [], {}, floats(2, 1, 3, 1))],
)  # fmt: skip
def test_operators_of_other_inputs(kind, inputs, options, first, tmp_path: Path) -> None:
    compare(single(kind, inputs, options, first, tmp_path), first)


def test_every_operator_is_compared() -> None:
    assert OPERATORS.keys() == {case[0] for case in CASES} | ELSEWHERE


class Block(nn.Module):
    """A net with all that is usual: residual, batch norm, pooling, reshaping by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU6())
        self.inner = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.GELU(), nn.AvgPool2d(2))
        self.pool, self.last = nn.MaxPool2d(3, 2, 1), nn.Linear(6 * 14, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first((x - 0.3) / 0.4)
        x = torch.cat([self.inner(x)[:, :3], self.pool(x)[:, 3:]], 1)
        return self.last(x.mean(3).view(x.shape[0], -1))


def exported(net: nn.Module, path: Path) -> Path:
    batch = torch.export.Dim("batch")
    torch.onnx.export(
        net.eval(),
        (torch.rand(2, 1, 28, 28),),
        path,
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: batch},),
    )
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_exported_net_is_the_net(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = Block()
    net.first[1].running_mean.normal_()
    target = open_target(exported(net, tmp_path / "block.onnx"))
    x = torch.rand(5, 1, 28, 28, requires_grad=True)
    assert not target.blind
    for form in (target.model, target.forms["in onnxruntime"]):
        assert torch.allclose(form(x), net(x), atol=1e-5)
    ours, theirs = (torch.autograd.grad(of(x)[:, 3].sum(), x)[0] for of in (target.model, net))
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_the_audit_of_a_file_is_that_of_the_net(tmp_path: Path) -> None:
    net = small_net(epochs=1)
    path = exported(net, tmp_path / "small.onnx")
    ours, theirs = (audit(what, some_images(32), eps=0.05, level=TINY) for what in (path, net))
    assert ours["verdict"] == theirs["verdict"] and ours["name"] == "small"
    assert next(check for check in ours["checks"] if check["name"] == "forms agree")["passed"]


def scrambled(folder: Path) -> Path:
    """Write a classifier with an operator that is not read: Atan of a linear map."""
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["z"]),
             helper.make_node("Atan", ["z"], ["y"])]  # fmt: skip
    given = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [8, 1, 28, 28])
    out = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [8, 10])
    graph = helper.make_graph(nodes, "net", [given], [out], [numpy_helper.from_array(floats(784, 10), "w")])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9),
        folder / "net.onnx",
    )
    return folder / "net.onnx"


def test_without_gradients_nothing_is_proven(tmp_path: Path) -> None:
    found = audit(scrambled(tmp_path), some_images(32), eps=0.05, level=TINY, twin=small_net(epochs=1))
    assert found["robust"] is None and found["verdict"]["failed"][0] == "gradient exists"
    assert "operators that are not known here: Atan" in found["verdict"]["text"]
    assert {row["kind"] for row in found["attacks"]} <= {"transfer", "noise", "gradient-free"}
    assert "transfer-twin" in [row["name"] for row in found["attacks"]]


def test_a_fixed_batch_size_is_kept(tmp_path: Path) -> None:
    runtime = open_target(scrambled(tmp_path)).model
    assert isinstance(runtime, Runtime) and runtime(torch.rand(13, 1, 28, 28)).shape == (13, 10)


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no protobuf")
    for name, said in (("bad.onnx", "no sound ONNX file"), ("none.onnx", "no such file")):
        with pytest.raises(IronrankError, match=said) as error:
            open_target(tmp_path / name)
        assert "\n" not in str(error.value)

"""The same graph in torch and in ONNX Runtime, operator by operator and net by net."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from splitserve.artifact import load_artifact
from splitserve.audit.subject import Subject
from splitserve.audit.torch_graph import OPERATORS, TorchGraph
from splitserve.errors import GraphError
from splitserve.runtime import Graph, RuntimeOptions, open_chain

X = np.random.default_rng(0).normal(size=(2, 4, 9, 8)).astype(np.float32)


def weight(*shape: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


CASES: dict[str, tuple[str, dict[str, object], list[np.ndarray]]] = {
    "conv": ("Conv", {"pads": [1, 0, 2, 1], "strides": [2, 1]}, [weight(6, 4, 3, 3), weight(6)]),
    "conv grouped": ("Conv", {"group": 4, "dilations": [2, 2]}, [weight(8, 1, 3, 3)]),
    "conv same": ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, [weight(5, 4, 3, 3)]),
    "conv same low": ("Conv", {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, [weight(5, 4, 4, 3)]),
    "transposed": (
        "ConvTranspose", {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        [weight(4, 3, 3, 3)],
    ),
    "max pool": ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, []),
    "mean pool": ("AveragePool", {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1]}, []),
    "mean pool padded": (
        "AveragePool", {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1}, [],
    ),
    "global mean": ("GlobalAveragePool", {}, []),
    "global max": ("GlobalMaxPool", {}, []),
    "norm": (
        "BatchNormalization", {"epsilon": 1e-3},
        [weight(4), weight(4), weight(4), np.abs(weight(4)) + 0.5],
    ),
    "relu": ("Relu", {}, []),
    "leaky": ("LeakyRelu", {"alpha": 0.2}, []),
    "prelu": ("PRelu", {}, [np.abs(weight(4, 1, 1))]),
    "elu": ("Elu", {"alpha": 0.5}, []),
    "clip": ("Clip", {}, [np.float32(-0.5), np.float32(0.8)]),
    "hard sigmoid": ("HardSigmoid", {"alpha": 0.3}, []),
    "hard swish": ("HardSwish", {}, []),
    "sigmoid": ("Sigmoid", {}, []),
    "tanh": ("Tanh", {}, []),
    "softplus": ("Softplus", {}, []),
    "erf": ("Erf", {}, []),
    "softmax": ("Softmax", {"axis": 1}, []),
    "add": ("Add", {}, [weight(4, 1, 1)]),
    "mul": ("Mul", {}, [weight(1, 4, 9, 8)]),
    "sub": ("Sub", {}, [weight(8)]),
    "div": ("Div", {}, [np.abs(weight(8)) + 1]),
    "max": ("Max", {}, [weight(8)]),
    "min": ("Min", {}, [weight(8)]),
    "concat": ("Concat", {"axis": 1}, [weight(2, 3, 9, 8)]),
    "transpose": ("Transpose", {"perm": [0, 2, 3, 1]}, []),
    "flatten": ("Flatten", {"axis": 1}, []),
    "reshape": ("Reshape", {}, [ints(0, 2, -1, 8)]),
    "squeeze": ("Unsqueeze", {}, [ints(0, 3)]),
    "pad": ("Pad", {}, [ints(0, 0, 1, 2, 0, 0, 0, 3), np.float32(1.5)]),
    "pad channels": ("Pad", {}, [ints(0, 2, 0, 0, 0, 2, 0, 0)]),
    "pad reflect": ("Pad", {"mode": "reflect"}, [ints(0, 0, 1, 2, 0, 0, 1, 1)]),
    "slice": ("Slice", {}, [ints(1, 0), ints(8, 100), ints(2, 3), ints(2, 3)]),
    "slice backwards": ("Slice", {}, [ints(-1), ints(-100), ints(1), ints(-1)]),
    "gather": ("Gather", {"axis": 1}, [ints(3, -4)]),
    "gather one": ("Gather", {"axis": 1}, [np.int64(2)]),
    "mean": ("ReduceMean", {"keepdims": 0}, [ints(2, 3)]),
    "sum": ("ReduceSum", {}, [ints(-1)]),
    "largest": ("ReduceMax", {}, [ints(1)]),
    "matmul": ("MatMul", {}, [weight(8, 5)]),
    "upsample": (
        "Resize", {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        [np.empty(0, np.float32), np.array([1, 1, 2, 2], np.float32)],
    ),
    "expand": ("Expand", {}, [ints(2, 4, 9, 8)]),
    "gelu": ("Gelu", {}, []),
}  # fmt: skip


def one_node(op: str, attributes: dict[str, object], weights: list[np.ndarray]) -> onnx.ModelProto:
    names = [f"w{i}" if values.size or values.ndim != 1 else "" for i, values in enumerate(weights)]
    stored = [numpy_helper.from_array(v, n) for v, n in zip(weights, names, strict=True) if n]
    node = helper.make_node(op, ["x", *names], ["y"], **attributes)
    graph = helper.make_graph(
        [node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], stored,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("count", [2, 3])
def test_a_split_gives_the_parts_that_the_runtime_gives(count: int):
    names = [f"y{index}" for index in range(count)]
    node = helper.make_node("Split", ["x"], names, axis=2, num_outputs=count)
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names]
    taken = [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)]
    graph = helper.make_graph([node], "split", taken, given)
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    want = Graph(model.SerializeToString(), RuntimeOptions()).run({"x": X})
    got = TorchGraph([model])({"x": torch.from_numpy(X)}, names)
    for name, part in zip(names, got, strict=True):
        np.testing.assert_array_equal(part.numpy(), want[name])


@pytest.mark.parametrize("name", CASES)
def test_an_operator_gives_what_the_runtime_gives(name: str):
    model = one_node(*CASES[name])
    (want,) = Graph(model.SerializeToString(), RuntimeOptions()).run({"x": X}).values()
    (got,) = TorchGraph([model])({"x": torch.from_numpy(X)}, ["y"])
    assert got.shape == want.shape
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-4, atol=1e-5)


def test_gemm_is_the_runtimes():
    model = one_node("Gemm", {"transB": 1, "alpha": 0.5, "beta": 2.0}, [weight(5, 8), weight(5)])
    rows = X[0, 0]
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, rows.shape))
    (want,) = Graph(model.SerializeToString(), RuntimeOptions()).run({"x": rows}).values()
    (got,) = TorchGraph([model])({"x": torch.from_numpy(rows)}, ["y"])
    np.testing.assert_allclose(got.numpy(), want, rtol=1e-5, atol=1e-5)


def test_what_it_cannot_differentiate_is_named():
    model = one_node("NonZero", {}, [])
    with pytest.raises(GraphError, match=r"cannot differentiate NonZero; operators that it can"):
        TorchGraph([model])
    assert "NonZero" not in OPERATORS


def test_a_head_gives_the_features_that_the_runtime_gives(lite0_artifact: Path):
    artifact = load_artifact(lite0_artifact)
    manifest, chain = artifact.manifest, open_chain(artifact, RuntimeOptions())
    position = len(manifest.cuts) // 2 + 1
    subject = Subject(artifact, position)
    pictures = np.random.default_rng(0).random((2, 3, 224, 224)).astype(np.float32)
    (got,) = subject.collect(pictures)
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1)
                 for v in (manifest.preprocess.mean, manifest.preprocess.std))  # fmt: skip
    values = (pictures * 255 - mean) / std
    want = chain.run({manifest.inputs[0].name: values}, 0, position)[subject.egress[0]]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


def test_a_head_lets_gradients_through_and_finds_its_single_tensors(tiny_artifact: Path):
    artifact = load_artifact(tiny_artifact)
    subject = Subject(artifact, len(artifact.manifest.cuts))
    picture = torch.rand(1, 3, *subject.size, requires_grad=True)
    subject.features(picture)[0].square().sum().backward()
    assert picture.grad is not None
    assert float(picture.grad.abs().sum()) > 0
    assert not any(weight.requires_grad for weight in subject.graph.parameters())
    singles = subject.graph.single_tensors(subject.input_name)
    cuts = {cut.egress[0].name for cut in artifact.manifest.cuts if len(cut.egress) == 1}
    assert cuts <= set(singles)


def test_a_constant_of_a_computed_shape_is_the_runtimes():
    fill = helper.make_tensor("value", TensorProto.FLOAT, [1], [1.5])
    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("ConstantOfShape", ["sizes"], ["y"], value=fill),
    ]
    graph = helper.make_graph(
        nodes, "fill", [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    opset = [helper.make_opsetid("", 20)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    (want,) = Graph(model.SerializeToString(), RuntimeOptions()).run({"x": X}).values()
    (got,) = TorchGraph([model])({"x": torch.from_numpy(X)}, ["y"])
    np.testing.assert_array_equal(got.numpy(), want)

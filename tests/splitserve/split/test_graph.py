"""What load_graph refuses and why; shapes; multiply-adds against counts made by hand."""

import contextlib
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import floats, model_of, tiny_net, weight, write_model
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from splitserve.errors import GraphError, UsageError
from splitserve.runtime import Graph, RuntimeOptions
from splitserve.split.graph import load_graph, view


def zeros(name: str, *shape: int) -> onnx.TensorProto:
    return weight(name, np.zeros(shape, np.float32))


def relu_model(opset: int = 17, ir_version: int = 8) -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"])
    ends = [floats("x", ["n", 4])], [floats("y", ["n", 4])]
    return model_of([node], *ends, opset=opset, ir_version=ir_version)


def if_model() -> onnx.ModelProto:
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["b"])], "b", [], [floats("b", [4])]
    )
    node = helper.make_node("If", ["flag"], ["y"], "choice", then_branch=branch, else_branch=branch)
    flag = helper.make_tensor_value_info("flag", TensorProto.BOOL, [])
    return model_of([node], [floats("x", [4]), flag], [floats("y", [4])])


def function_model() -> onnx.ModelProto:
    body = [helper.make_node("Relu", ["a"], ["b"])]
    opsets = [helper.make_opsetid("", 17)]
    function = helper.make_function("mine", "Twice", ["a"], ["b"], body, opsets)
    node = helper.make_node("Twice", ["x"], ["y"], domain="mine")
    model = model_of([node], [floats("x", [4])], [floats("y", [4])], domains=["mine"])
    model.functions.append(function)
    return model


def sparse_model() -> onnx.ModelProto:
    model = model_of(
        [helper.make_node("Add", ["x", "s"], ["y"])], [floats("x", [4])], [floats("y", [4])]
    )
    values = weight("s", np.ones(1, np.float32))
    indices = numpy_helper.from_array(np.array([2]), "s.indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))
    return model


def foreign_model() -> onnx.ModelProto:
    node = helper.make_node("Decode", ["x"], ["y"], "secret", domain="acme")
    return model_of([node], [floats("x", [4])], [floats("y", [4])], domains=["acme"])


def bfloat16_model() -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"])
    x, y = (helper.make_tensor_value_info(name, TensorProto.BFLOAT16, [4]) for name in "xy")
    return model_of([node], [x], [y])


def sequence_model() -> onnx.ModelProto:
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    kind = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, [4])
    return model_of([node], [floats("x", [4])], [kind])


def inputless_model() -> onnx.ModelProto:
    node = helper.make_node("Relu", ["w"], ["y"])
    return model_of([node], [], [floats("y", [4])], [zeros("w", 4)])


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (sparse_model(), "sparse initialisers"),
        (relu_model(opset=10), "opset 10; splitserve reads opset 11"),
        (foreign_model(), r"node secret \(Decode\): operator domain 'acme'"),
        (bfloat16_model(), "x: not a dense tensor of known rank and a common dtype"),
        (sequence_model(), "y: not a dense tensor"),
        (inputless_model(), "no input"),
    ],
    ids=["sparse", "opset", "domain", "bfloat16", "sequence", "inputless"],
)
def test_model_that_cannot_be_split_is_refused_with_its_reason(
    tmp_path: Path, model: onnx.ModelProto, reason: str
) -> None:
    with pytest.raises(GraphError, match=reason):
        load_graph(write_model(model, tmp_path / "model.onnx"))


def test_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_graph(tmp_path / "nowhere.onnx")


@pytest.mark.parametrize("name", ["m.onnx", "m.json", "m.textproto", "m.onnxtxt"])
@pytest.mark.parametrize("content", [b"", b"{}", b"GIF89a, not a network", b"\0" * 64])
def test_file_of_another_kind_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(GraphError, match="not a valid ONNX model"):
        load_graph(path)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.9, 0.999])
def test_truncated_file_is_refused(tmp_path: Path, share: float) -> None:
    content = tiny_net().SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(GraphError, match="not a valid ONNX model"):
        load_graph(path)


@given(st.data())
def test_damaged_file_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray(relu_model().SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "model.onnx"
    path.write_bytes(content)
    with contextlib.suppress(GraphError):
        load_graph(path)


def test_opset_eleven_is_read() -> None:
    assert view(relu_model(opset=11)).opset == 11


def macs_of(node: onnx.NodeProto, data: list[int], *weights: onnx.TensorProto) -> int:
    model = model_of([node], [floats("x", data)], [floats("y", None)], weights)
    # Outputs need a rank: let ONNX infer it, as exporters do.
    inferred = onnx.shape_inference.infer_shapes(model)
    return view(inferred).macs


def test_macs_of_a_convolution_are_outputs_times_kernel_times_channels() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    assert macs_of(node, [1, 3, 10, 12], zeros("w", 8, 3, 3, 3)) == (8 * 10 * 12) * (3 * 3 * 3)


def test_macs_of_a_convolution_with_stride_count_what_is_computed() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], strides=[2, 3])
    # 10 x 12 becomes floor((10 - 3) / 2) + 1 = 4 by floor((12 - 3) / 3) + 1 = 4.
    assert macs_of(node, [1, 3, 10, 12], zeros("w", 8, 3, 3, 3)) == (8 * 4 * 4) * (3 * 3 * 3)


def test_macs_of_a_grouped_convolution_are_divided_by_the_groups() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, pads=[2, 2, 2, 2])
    assert macs_of(node, [1, 4, 9, 9], zeros("w", 6, 2, 5, 5)) == (6 * 9 * 9) * (4 // 2 * 5 * 5)


def test_macs_of_a_depthwise_convolution_count_one_channel_each() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=6, pads=[1, 1, 1, 1])
    assert macs_of(node, [1, 6, 7, 7], zeros("w", 6, 1, 3, 3)) == (6 * 7 * 7) * (3 * 3)


def test_macs_of_a_transposed_convolution_are_inputs_times_kernel_times_outputs() -> None:
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], group=2)
    # Every one of 4 x 5 x 5 inputs is spread over 3 channels of its group and a 2 x 2 window.
    assert macs_of(node, [1, 4, 5, 5], zeros("w", 4, 3, 2, 2)) == (4 * 5 * 5) * (3 * 2 * 2)


@pytest.mark.parametrize("flip_a", [0, 1])
@pytest.mark.parametrize("flip_b", [0, 1])
def test_macs_of_a_gemm_do_not_depend_on_how_it_is_stored(flip_a: int, flip_b: int) -> None:
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transA=flip_a, transB=flip_b)
    data = [7, 5] if flip_a else [5, 7]
    stored = zeros("w", 3, 7) if flip_b else zeros("w", 7, 3)
    assert macs_of(node, data, stored) == 5 * 7 * 3


@pytest.mark.parametrize(
    ("left", "right", "macs"),
    [
        ([5, 7], (7, 3), 5 * 7 * 3),
        ([2, 4, 5, 7], (7, 3), 2 * 4 * 5 * 7 * 3),
        ([2, 4, 5, 7], (4, 7, 3), 2 * 4 * 5 * 7 * 3),
        ([5, 7], (6, 7, 3), 6 * 5 * 7 * 3),
    ],
)
def test_macs_of_a_batched_matrix_product_count_every_product(
    left: list[int], right: tuple[int, ...], macs: int
) -> None:
    assert macs_of(helper.make_node("MatMul", ["x", "w"], ["y"]), left, zeros("w", *right)) == macs


def test_macs_of_other_nodes_are_zero() -> None:
    assert macs_of(helper.make_node("Add", ["x", "w"], ["y"]), [5, 7], zeros("w", 7)) == 0


def test_work_on_constants_and_dead_nodes_costs_no_macs() -> None:
    nodes = [
        helper.make_node("MatMul", ["w", "w"], ["square"]),
        helper.make_node("MatMul", ["x", "w"], ["unread"]),
        helper.make_node("MatMul", ["x", "square"], ["y"]),
    ]
    graph = view(model_of(nodes, [floats("x", [2, 4])], [floats("y", [2, 4])], [zeros("w", 4, 4)]))
    assert [node.is_constant for node in graph.nodes] == [True, False, False]
    assert [node.is_dead for node in graph.nodes] == [False, True, False]
    assert [node.macs for node in graph.nodes] == [0, 0, 2 * 4 * 4]


def test_macs_of_the_tiny_net_equal_the_count_in_its_docstring() -> None:
    assert view(tiny_net()).macs == 55_296 + 2 * 147_456 + 73_728 + 160


def test_macs_of_lite0_equal_the_published_figure(lite0: Path) -> None:
    # "385M FLOPs" (multiply-adds) for 224 pixels, in TensorFlow's EfficientNet-Lite README.
    assert math.isclose(load_graph(lite0).macs, 385e6, rel_tol=0.01)


def test_free_dimensions_keep_their_names_and_count_as_one_in_macs() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [floats("x", ["batch", "tokens", 8])], [floats("y", ["batch", "tokens", 2])]
    graph = view(model_of([node], *ends, [zeros("w", 8, 2)]))
    assert graph.inputs[0].shape == ("batch", "tokens", 8)
    assert graph.outputs[0].shape == ("batch", "tokens", 2)
    assert graph.macs == 8 * 2


def test_nameless_free_dimension_gets_the_name_of_its_place() -> None:
    graph = view(
        model_of(
            [helper.make_node("Relu", ["x"], ["y"])],
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 4])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 4])],
        )
    )
    assert graph.inputs[0].shape == ("x.0", 4)


def test_initialiser_listed_as_input_by_an_older_exporter_is_no_input() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [floats("x", [1, 4]), floats("w", [4, 4])], [floats("y", [1, 4])]
    graph = view(model_of([node], *ends, [zeros("w", 4, 4)], opset=11, ir_version=3))
    assert [spec.name for spec in graph.inputs] == ["x"]


def test_weights_in_a_file_of_their_own_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(tiny_net(), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert load_graph(path).macs == view(tiny_net()).macs
    (tmp_path / "w.bin").unlink()
    with pytest.raises(GraphError, match=r"w\.bin"):
        load_graph(path)


def test_local_functions_are_written_out_and_compute_the_same(tmp_path: Path) -> None:
    path = write_model(function_model(), tmp_path / "model.onnx")
    graph = load_graph(path)
    assert [node.op for node in graph.nodes] == ["Relu"]
    feeds = {"x": np.array([-1, 2, -3, 4], np.float32)}
    written_out = Graph(graph.model.SerializeToString(), RuntimeOptions(threads=1))
    whole = Graph(path.read_bytes(), RuntimeOptions(threads=1))
    np.testing.assert_array_equal(written_out.run(feeds)["y"], whole.run(feeds)["y"])

"""Which cuts are taken: by name, or by the rule."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import floats, fork_net, model_of, weight
from onnx import helper

from splitserve.errors import UsageError
from splitserve.split import CutCandidate, choose_cuts, find_cuts, load_graph
from splitserve.split.choose import worthwhile
from splitserve.split.graph import view


def chain(*widths: int) -> onnx.ModelProto:
    """Matrix products with these widths, the first one being the input's."""
    nodes, weights = [], []
    for index in range(1, len(widths)):
        shape = widths[index - 1 : index + 1]
        weights.append(weight(f"w{index}", np.zeros(shape, np.float32)))
        nodes.append(helper.make_node("MatMul", [f"t{index - 1}", f"w{index}"], [f"t{index}"]))
    last = len(widths) - 1
    ends = [floats("t0", ["n", widths[0]])], [floats(f"t{last}", ["n", widths[-1]])]
    return model_of(nodes, *ends, weights)


def chosen(model: onnx.ModelProto, *wanted: str) -> list[str]:
    return [cut.name for cut in choose_cuts(view(model), wanted)]


def test_cut_is_chosen_when_smaller_than_the_input_and_every_cut_before() -> None:
    assert chosen(chain(10, 12, 10, 8, 9, 8, 3, 2)) == ["t3", "t6"]


def test_fused_cut_is_passed_over_and_sets_no_record() -> None:
    graph = view(chain(10, 8, 8, 2))
    first, second = find_cuts(graph)
    assert worthwhile(graph, [replace(first, is_fused=True), second]) == [second]


def test_named_cuts_come_in_the_order_of_the_graph() -> None:
    assert chosen(chain(10, 12, 10, 8, 2), "t3", "t1") == ["t1", "t3"]
    assert chosen(fork_net(), "pool", "b+a", "stem") == ["stem", "a+b", "pool"]
    assert chosen(fork_net(), "c+b.conv") == ["b.conv+c"]  # a cut, though nobody would want it


def test_a_cut_named_twice_is_taken_once() -> None:
    assert chosen(fork_net(), "a+b", "stem", "b+a") == ["stem", "a+b"]


def test_all_takes_every_single_tensor_cut() -> None:
    cuts = choose_cuts(view(fork_net()), ["all"])
    assert [cut.name for cut in cuts] == ["stem.conv", "stem", "both", "mean", "pool"]
    assert all(cut.is_fused is not None for cut in cuts)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("t9", "no cut 't9'; list them with: splitserve cuts MODEL"),
        ("a+nope", "no cut 'a.nope'; list"),
        ("", "no cut ''; list"),
        ("a+", "no cut 'a.'; list"),
        ("image", "no cut 'image'; list"),
        ("logits", "no cut 'logits'; list"),
        ("a", "no cut 'a': stem would have to cross with it; list"),
        ("stem+pool", "no cut 'stem.pool'; list"),
        ("classes.weight", "no cut 'classes.weight'; list"),
    ],
)
def test_a_name_that_is_no_cut_is_refused_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        chosen(fork_net(), "stem", name)


def test_cuts_that_are_not_nested_are_refused_by_name() -> None:
    message = r"the cuts stem\+a and stem\+b are not nested"
    with pytest.raises(UsageError, match=message):
        chosen(fork_net(), "stem+a", "pool", "stem+b")


def test_tensors_whose_names_hold_a_plus_are_found() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a+b"]),
        helper.make_node("Neg", ["x"], ["c"]),
        helper.make_node("Sub", ["a+b", "c"], ["d"]),
        helper.make_node("Relu", ["d"], ["y"]),
    ]
    model = model_of(nodes, [floats("x", [4])], [floats("y", [4])])
    assert chosen(model, "c+a+b") == ["a+b+c"]


@pytest.mark.parametrize("name", ["input", "output"])
def test_a_reserved_name_is_no_cut_alone_and_may_cross_with_others(name: str) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], [name]),
        helper.make_node("Neg", [name], ["b"]),
        helper.make_node("Abs", [name], ["c"]),
        helper.make_node("Sub", ["b", "c"], ["y"]),
    ]
    model = model_of(nodes, [floats("x", [4])], [floats("y", [4])])
    with pytest.raises(UsageError, match=f"no cut '{name}'"):
        chosen(model, name)
    assert chosen(model, f"b+{name}") == [f"{name}+b"]


def test_several_tensors_are_taken_where_they_save_bytes() -> None:
    assert chosen(fork_net()) == ["stem", "a+b", "mean"]


def test_several_tensors_that_save_little_are_left() -> None:
    graph = view(fork_net())
    cuts = choose_cuts(graph, ["stem", "a+b", "mean"])
    few = cuts[1]
    large = [spec.model_copy(update={"shape": ("batch", 13, 8, 8)}) for spec in few.egress]
    little: CutCandidate = replace(few, egress=tuple(large))  # 13/16 of the stem
    assert [cut.name for cut in worthwhile(graph, [cuts[0], little, cuts[2]])] == ["stem", "mean"]


def test_chosen_cuts_of_lite0_are_its_narrow_places(lite0: Path) -> None:
    assert [(cut.name, cut.tensor.elements()) for cut in choose_cuts(load_graph(lite0))] == [
        ("block1", 75_264), ("block3", 31_360), ("block5", 15_680), ("block11", 9_408),
        ("pool", 1_280),
    ]  # fmt: skip

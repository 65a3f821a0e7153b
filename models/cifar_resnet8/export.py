"""Write MLPerf Tiny's CIFAR-10 ResNet-8 as one ONNX file.

Usage: python export.py --weights FILE.safetensors OUTPUT.onnx

The modules carry the names that their outputs get in the graph, so a cut can be called `block1`.

Source: Banbury et al., MLPerf Tiny Benchmark, NeurIPS 2021; the reference model of its image
classification task.
"""

import argparse
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

FIX = "pip install 'splitserve[models]'"
sys.path.insert(0, str(Path(__file__).parents[1]))

try:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file
    from torch import nn
    from torch.nn import functional
    from torch_to_onnx import parse_output, write_model
except ImportError as error:
    sys.exit(f"export: {error}; install it with: {FIX}")

SIDE = 32
CLASSES = 10
WIDTHS = (16, 32, 64)
NORMED = ("stem", "block0.a", "block0.b", "block1.a", "block1.b", "block2.a", "block2.b")
"""Modules of the weights file's bn0 to bn6."""
CONVOLVED = (*NORMED[:5], "block1.shortcut", *NORMED[5:], "block2.shortcut")
"""Modules of the weights file's conv0 to conv8."""


class ConvNorm(nn.Module):
    """Convolution of 3 by 3 and batch norm; ReLU behind them when `is_active`.

    Under stride 2 the one zero row and column go below and on the right: TensorFlow's SAME rule
    for an even size.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, *, is_active: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.pads = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)
        self.is_active = is_active

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h / stride, w / stride)."""
        y: torch.Tensor = self.norm(self.conv(functional.pad(x, self.pads)))
        return functional.relu(y) if self.is_active else y


class Block(nn.Module):
    """Two convolutions and the input added to them, by a matrix where channels grow."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.a = ConvNorm(inputs, outputs, stride)
        self.b = ConvNorm(outputs, outputs, is_active=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h, w), or half the size when channels grow."""
        return functional.relu(self.b(self.a(x)) + self.shortcut(x))


class SpatialMean(nn.Module):
    """Average over height and width."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, c, h, w) to (n, c)."""
        return x.mean((2, 3))


def build_network() -> nn.Sequential:
    """Build the network with untrained weights: (n, 3, 32, 32) float32 to (n, 10) logits."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = ConvNorm(3, WIDTHS[0])
    for index, (inputs, outputs) in enumerate(zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False)):
        layers[f"block{index}"] = Block(inputs, outputs)
    layers["pool"] = SpatialMean()
    layers["logits"] = nn.Linear(WIDTHS[-1], CLASSES)
    return nn.Sequential(layers)


def rename_key(key: str) -> str:
    """Translate a key of the weights file, `bn3.bias`, to `block1.a.norm.bias`."""
    layer, _, kind = key.partition(".")
    if layer.startswith("bn"):
        return f"{NORMED[int(layer[2:])]}.norm.{kind}"
    if layer.startswith("conv"):
        name = CONVOLVED[int(layer[4:])]
        return f"{name}.{kind}" if name.endswith("shortcut") else f"{name}.conv.{kind}"
    return f"logits.{kind}" if layer == "fc" else key


def load_network(path: Path) -> nn.Sequential:
    """Build the network in evaluation mode with the weights of a file.

    Raises:
        ValueError: the file is no safetensors file, or its tensors are not this network's.
    """
    network = build_network()
    counters = {k: v for k, v in network.state_dict().items() if k.endswith("batches_tracked")}
    try:
        ours = {rename_key(key): value for key, value in load_file(path).items()}
        network.load_state_dict({**counters, **ours}, strict=True)
    except (SafetensorError, RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"{path}: not weights of MLPerf Tiny's ResNet-8") from error
    return network.eval()


def main(argv: Sequence[str]) -> int:
    """Run the script: 0 written, 1 failed; called wrongly it leaves with 2."""
    parser = argparse.ArgumentParser(prog="export.py", description="Export MLPerf Tiny's ResNet-8.")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE.safetensors")
    options = parse_output(parser, argv)
    return write_model(options.output, SIDE, lambda: load_network(options.weights))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

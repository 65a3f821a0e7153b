"""Write a CIFAR-10 ResNet of the 20, 32, 44, 56 family as one ONNX file.

Usage: python export.py --weights FILE.safetensors OUTPUT.onnx

The depth follows from the weights. The modules carry the names that their outputs get in the
graph, so a cut can be called `block5`.

Source: He et al., Deep Residual Learning, CVPR 2016, section 4.2, shortcuts of option A.
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
STAGES = ("layer1", "layer2", "layer3")


class ConvNorm(nn.Module):
    """Convolution of 3 by 3 and batch norm; ReLU behind them when `is_active`."""

    def __init__(
        self, inputs: int, outputs: int, stride: int = 1, *, is_active: bool = True
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.is_active = is_active

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, h, w) to (n, outputs, ceil(h / stride), ceil(w / stride))."""
        y: torch.Tensor = self.norm(self.conv(x))
        return functional.relu(y) if self.is_active else y


class Shortcut(nn.Module):
    """Every second pixel, with as many zero channels before as behind the old ones."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, c, h, w) to (n, 2c, ceil(h / 2), ceil(w / 2))."""
        zeros = x.shape[1] // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, zeros, zeros))


class Block(nn.Module):
    """Two convolutions and the input added to them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.a = ConvNorm(inputs, outputs, stride=1 if inputs == outputs else 2)
        self.b = ConvNorm(outputs, outputs, is_active=False)
        self.shortcut = nn.Identity() if inputs == outputs else Shortcut()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, inputs, h, w) to (n, outputs, h, w), or half the size when channels grow."""
        return functional.relu(self.b(self.a(x)) + self.shortcut(x))


class SpatialMean(nn.Module):
    """Average over height and width."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n, c, h, w) to (n, c)."""
        return x.mean((2, 3))


def build_network(blocks: int) -> nn.Sequential:
    """Build the ResNet of depth 6 x blocks + 2: (n, 3, 32, 32) float32 to (n, 10) logits."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["stem"] = ConvNorm(3, WIDTHS[0])
    inputs = WIDTHS[0]
    for width in WIDTHS:
        for _ in range(blocks):
            layers[f"block{len(layers) - 1}"] = Block(inputs, width)
            inputs = width
    layers["pool"] = SpatialMean()
    layers["logits"] = nn.Linear(WIDTHS[-1], CLASSES)
    return nn.Sequential(layers)


def rename_key(key: str, blocks: int) -> str:
    """Translate a key of the weights file, `layer2.0.bn1.bias`, to `block3.a.norm.bias`."""
    stage, _, rest = key.partition(".")
    if stage in STAGES:
        number, layer, kind = rest.split(".")
        index = STAGES.index(stage) * blocks + int(number)
        parts = {"conv1": "a.conv", "bn1": "a.norm", "conv2": "b.conv", "bn2": "b.norm"}
        return f"block{index}.{parts.get(layer, layer)}.{kind}"
    names = {"conv1": "stem.conv", "bn1": "stem.norm", "linear": "logits"}
    return f"{names.get(stage, stage)}.{rest}"


def load_network(path: Path) -> nn.Sequential:
    """Build the network in evaluation mode with the weights of a file.

    Raises:
        ValueError: the file is no safetensors file, or its tensors are not those of this family.
    """
    try:
        state = load_file(path)
        blocks = sum(key.startswith("layer1.") and key.endswith(".conv1.weight") for key in state)
        network = build_network(blocks)
        ours = {rename_key(key, blocks): value for key, value in state.items()}
        counters = {k: v for k, v in network.state_dict().items() if k.endswith("batches_tracked")}
        network.load_state_dict({**counters, **ours}, strict=True)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path}: not weights of a CIFAR-10 ResNet of this family") from error
    return network.eval()


def main(argv: Sequence[str]) -> int:
    """Run the script: 0 written, 1 failed; called wrongly it leaves with 2."""
    parser = argparse.ArgumentParser(prog="export.py", description="Export a CIFAR-10 ResNet.")
    parser.add_argument("--weights", type=Path, required=True, metavar="FILE.safetensors")
    options = parse_output(parser, argv)
    return write_model(options.output, SIDE, lambda: load_network(options.weights))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The six-convolution CIFAR-10 network of He, Zhang and Lee (ACSAC 2019), trained here.

Convolutions of 3 by 3, 64-64, pool, 128-128, pool, 128-128, pool, each with ReLU and none with
batch norm; then 2048 to 512 (sigmoid) to 10. The authors train it with Adam at 1e-3, batches of 32,
flips and small affine jitter, on 50,000 pictures; here the rate is a one-cycle up to 1e-3, the
weights start as He et al. (ICCV 2015) propose, and pictures and epochs are those given.
"""

import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional

from splitserve.artifact import Artifact, Preprocess
from splitserve.bench.cifar import SIDE, Floats, Labels
from splitserve.split import choose_cuts, load_graph, recipe_of, split_model
from splitserve.split.recipe import METADATA_KEY, Recipe

Tick = Callable[[], None]

NAME = "six_layer"
CLASSES, HIDDEN = 10, 512
WIDTHS = (64, 128, 128)  # of both convolutions of a stage
CUTS = ("conv11", "relu22", "relu32")
RATE, BATCH = 1e-3, 32
TURN, SHIFT, ZOOM = 10.0, 0.1, 0.1  # degrees, share of the side, share of the size
OPSET, IR = 17, 8
MIDDLE = 127.5  # pictures of 0 to 255 become -1 to 1


def build_network(seed: int) -> nn.Sequential:
    """Build it with fresh weights: (n, 3, 32, 32), -1 to 1, to (n, 10) logits."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 3
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for stage, width in enumerate(WIDTHS, 1):
            for turn in (1, 2):
                layers[f"conv{stage}{turn}"] = nn.Conv2d(inputs, width, 3, padding=1)
                layers[f"relu{stage}{turn}"] = nn.ReLU()
                inputs = width
            layers[f"pool{stage}"] = nn.MaxPool2d(2)
        layers["flat"] = nn.Flatten()
        layers["fc1"] = nn.Linear(inputs * (SIDE // 2 ** len(WIDTHS)) ** 2, HIDDEN)
        layers["sigmoid"] = nn.Sigmoid()
        layers["logits"] = nn.Linear(HIDDEN, CLASSES)
        for layer in layers.values():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias) if layer.bias is not None else None
    return nn.Sequential(layers)


def steps_of(count: int, epochs: int) -> int:
    """Steps of a training, for its progress."""
    return epochs * (count // BATCH)


def train(
    network: nn.Sequential, data: tuple[Floats, Labels], epochs: int, seed: int, tick: Tick
) -> None:
    """Train in place.

    Args:
        network: with fresh weights.
        data: pictures, (n, 3, 32, 32), 0 to 1, and their classes.
        epochs: passes over the pictures.
        seed: of the order and the jitter.
        tick: called after each step.
    """
    optimiser = torch.optim.Adam(network.parameters(), RATE)
    steps = steps_of(len(data[0]), epochs)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, steps)
    generator = torch.Generator().manual_seed(seed)
    network.train()
    for pictures, classes in _batches(data, epochs, generator):
        loss = functional.cross_entropy(network(jitter(pictures, generator) * 2 - 1), classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        tick()
    network.eval()


@torch.no_grad()
def accuracy(network: nn.Sequential, data: tuple[Floats, Labels]) -> float:
    """Share of pictures whose class it names, 0 to 1."""
    hits = [
        network(pictures * 2 - 1).argmax(1) == classes
        for pictures, classes in zip(
            torch.from_numpy(data[0]).split(100), torch.from_numpy(data[1]).split(100), strict=True
        )
    ]
    return float(torch.cat(hits).float().mean())


def _batches(
    data: tuple[Floats, Labels], epochs: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    pictures, classes = torch.from_numpy(data[0]), torch.from_numpy(data[1])
    for _ in range(epochs):
        order = torch.randperm(len(pictures), generator=generator)
        for start in range(0, len(pictures) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            yield pictures[rows], classes[rows]


def jitter(pictures: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the pictures, turn each by up to 10 degrees, shift and zoom by up to 10 %."""
    count = len(pictures)
    turn, zoom, right, down = (
        spread * (2 * torch.rand(count, generator=generator) - 1)
        for spread in (TURN * torch.pi / 180, ZOOM, 2 * SHIFT, 2 * SHIFT)
    )
    mirror = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    cos, sin = (1 + zoom) * turn.cos(), (1 + zoom) * turn.sin()
    rows = torch.stack([mirror * cos, -sin, right, mirror * sin, cos, down], 1).reshape(-1, 2, 3)
    grid = functional.affine_grid(rows, list(pictures.shape), align_corners=False)
    return functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)


def to_onnx(network: nn.Sequential) -> bytes:
    """Serialise it; every tensor has the name of the layer that makes it.

    Written out by hand, layer by layer, so that the audit extra suffices and no exporter is needed.
    The recipe (name and preprocessing) is in the file.
    """
    nodes, weights, last = [], [], "image"
    for name, layer in network.named_children():
        inputs = [last]
        for kind, values in layer.named_parameters():
            weights.append(numpy_helper.from_array(values.detach().numpy(), f"{name}.{kind}"))
            inputs.append(f"{name}.{kind}")
        operator, attributes = _operator(layer)
        nodes.append(helper.make_node(operator, inputs, [name], name, **attributes))
        last = name
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["batch", CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR
    recipe = Recipe(
        name=NAME,
        preprocess=Preprocess(
            resize_short_side=SIDE, crop=(SIDE, SIDE), mean=(MIDDLE,) * 3, std=(MIDDLE,) * 3
        ),
    )
    helper.set_model_props(model, {METADATA_KEY: recipe.model_dump_json()})
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def _operator(layer: nn.Module) -> tuple[str, dict[str, Any]]:
    if isinstance(layer, nn.Conv2d):
        return "Conv", {"kernel_shape": (3, 3), "pads": (1, 1, 1, 1)}
    if isinstance(layer, nn.Linear):
        return "Gemm", {"transB": 1}
    if isinstance(layer, nn.MaxPool2d):
        return "MaxPool", {"kernel_shape": (2, 2), "strides": (2, 2)}
    return {nn.ReLU: "Relu", nn.Sigmoid: "Sigmoid", nn.Flatten: "Flatten"}[type(layer)], {}


def prepared(
    place: tuple[Path, int, int],
    own: tuple[Floats, Labels],
    test: tuple[Floats, Labels],
    progress: Progress,
) -> tuple[Artifact, dict[str, Any]]:
    """Its artifact with the three cuts, and what is known of it; trained unless it is there.

    Args:
        place: folder that keeps it, epochs, and seed.
        own: pictures to train on, and their classes.
        test: others, to score it.
        progress: shows the training.
    """
    folder, epochs, seed = place
    folder.mkdir(parents=True, exist_ok=True)
    model = folder / f"{NAME}_{epochs}_{seed}.onnx"
    notes = model.with_suffix(".json")
    digests = [hashlib.sha256(part[0].tobytes()).hexdigest()[:16] for part in (own, test)]
    known = json.loads(notes.read_text()) if model.is_file() and notes.is_file() else {}
    if known.get("digests") != digests:
        task = progress.add_task("training the network", total=steps_of(len(own[0]), epochs))
        network, started = build_network(seed), time.process_time()
        train(network, own, epochs, seed, partial(progress.advance, task))
        facts = {
            "epochs": epochs,
            "digests": digests,  # of the pictures to train on and to test with
            "pictures": len(own[0]),
            "train_cpu_s": round(time.process_time() - started, 1),
            "train_accuracy": accuracy(network, own),
            "test_accuracy": accuracy(network, test),
        }
        model.write_bytes(to_onnx(network))
        notes.write_text(json.dumps(facts) + "\n")
        progress.remove_task(task)
    graph = load_graph(model)
    recipe = recipe_of(graph.model, model.stem)
    artifact = split_model(graph, choose_cuts(graph, CUTS), recipe, model, folder / "artifact")
    return artifact, {"artifact_id": artifact.id.hex(), **json.loads(notes.read_text())}

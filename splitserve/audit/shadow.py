"""The query-free attacker's stand-in for the head: its architecture, its own weights.

He knows the tail, as the cloud does, and how the head is built, but neither its weights nor any
answer of it. So he fills the head's graph with fresh weights and learns them until
tail(shadow(picture)) names the classes of labelled pictures of his own; then he attacks as if the
shadow were the head. Source: He, Zhang and Lee, ACSAC 2019, section 5 (query-free attack).

    tail = tail_of(artifact, position)
    shadow = train_shadow(subject, tail, (pictures, classes), ShadowRecipe(steps=600), tick)
    found = optimise(shadow, Prey(tail.names, received), weight, steps, tick)

A `Shadow` is a `Subject`: whatever takes one, takes the other. `shadow.accuracy` on the attacker's
pictures says whether the training worked; one near chance proves nothing.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from splitserve.artifact import Artifact
from splitserve.audit.device import to_tensor
from splitserve.audit.subject import Floats, Subject
from splitserve.audit.torch_graph import MIXING, TorchGraph
from splitserve.errors import GraphError, UsageError

CLIP_NORM = 1.0
FAINT = 0.3  # of the usual first weights
SCORED = 512  # pictures of the accuracy
PROBABLE = 1e-3  # how far a sum of probabilities may be from 1
Classes = npt.NDArray[np.int64]
Tick = Callable[[], None]


@dataclass(frozen=True, slots=True)
class ShadowRecipe:
    """How to learn a shadow.

    Args:
        steps: of AdamW; its rate rises and falls in one cycle.
        batch: pictures of one step.
        rate: the highest, for one convolution or product; a deeper head learns at its share.
        decay: of the weights, per step and rate; what the labels do not need fades, which at the
            first convolution is worth several decibels of the pictures found.
        seed: of the weights and the batches.
    """

    steps: int = 600
    batch: int = 32
    rate: float = 1e-2
    decay: float = 0.3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Tail:
    """The part that the cloud runs, as a frozen and differentiable function.

    Args:
        graph: of the segments behind a cut.
        names: of the tensors that cross it.
        output: name of the tensor of class scores or probabilities, (n, classes).
    """

    graph: TorchGraph
    names: tuple[str, ...]
    output: str

    def scores(self, features: Sequence[Tensor]) -> Tensor:
        """Logarithms of the classes' chances, (n, classes), up to a constant of each picture."""
        known = dict(zip(self.names, features, strict=True))
        return class_scores(self.graph(known, [self.output])[0].flatten(1))


def class_scores(found: Tensor) -> Tensor:
    """A classifier's output, (n, classes), as scores: chances become their logarithms."""
    with torch.no_grad():
        are_chances = bool(found.min() >= 0) and bool((found.sum(1) - 1).abs().max() < PROBABLE)
    return found.clamp_min(1e-12).log() if are_chances else found


def tail_of(artifact: Artifact, position: int) -> Tail:
    """The tail behind a cut.

    Args:
        artifact: verified.
        position: of the cut, 1 for the first.

    Raises:
        GraphError: an operator that torch does not run here.
    """
    manifest = artifact.manifest
    parts = [
        onnx.load_model_from_string(artifact.read_file(stored))
        for stored in manifest.segments[position:]
    ]
    names = tuple(spec.name for spec in manifest.egress(position))
    return Tail(TorchGraph(parts), names, manifest.outputs[0].name)


class FreshGraph(TorchGraph):
    """A known graph with weights of its own, which can be learned.

    Weights of convolutions and products are drawn as He et al. (ICCV 2015) propose, but fainter:
    what the training does not reach stays in the features as noise. Offsets are 0
    and factors 1, those of a batch norm's statistics included; what is no weight (shapes, limits,
    single numbers) belongs to the architecture and stays.

    Args:
        known: the graph; it is copied.
        seed: of the draw.
    """

    def __init__(self, known: TorchGraph, seed: int) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(copy.deepcopy(known.__dict__))
        self.learned: list[Tensor] = []
        kept = weights_kept(known)
        if kept:
            raise GraphError(f"no fresh weights for {', '.join(kept)}: the shadow would keep them")
        generator = torch.Generator("cpu").manual_seed(seed)
        seen: set[str] = set()
        for index, node in enumerate(self._nodes):
            for place, name in enumerate(node.input):
                if name in self._buffer_of and name not in seen:
                    seen.add(name)
                    self._draw(name, _role(node, place), self._attributes[index], generator)

    def _draw(
        self, name: str, role: str, attributes: Mapping[str, object], generator: torch.Generator
    ) -> None:
        values = self.get_buffer(self._buffer_of[name])
        if not role or not values.is_floating_point() or values.numel() < 2:
            return
        if role in ("weight", "transposed"):
            is_transposed = role == "transposed" and not attributes.get("transB", 0)
            fan = values.numel() // values.shape[int(is_transposed and values.dim() > 1)]
            drawn = torch.randn(values.shape, generator=generator, device="cpu")
            values.copy_(drawn * (FAINT * math.sqrt(2 / fan)))
        else:
            values.fill_(1.0 if role in ("factor", "variance") else 0.0)
        if role not in ("mean", "variance"):
            self.learned.append(values.requires_grad_())


def weights_kept(graph: TorchGraph) -> list[str]:
    """Floating-point tensors that no role draws anew, for a shadow would keep the head's own.

    Sizes and limits of an operator are no weights: single numbers, and what Resize and Pad take.
    """
    drawn = {
        name
        for node in graph.nodes
        for place, name in enumerate(node.input)
        if _role(node, place) or node.op_type in ("Resize", "Upsample", "Pad")
    }
    stored = [
        name
        for name, values in graph.stored()
        if values.is_floating_point() and values.numel() > 1 and name not in drawn
    ]
    constants = [
        node.output[0]
        for node in graph.nodes
        if node.op_type == "Constant"
        and any(
            attribute.type == onnx.AttributeProto.TENSOR
            and attribute.t.data_type == onnx.TensorProto.FLOAT
            and math.prod(attribute.t.dims) > 1
            for attribute in node.attribute
        )
    ]
    return [*stored, *constants]


def _role(node: onnx.NodeProto, place: int) -> str:
    """What a stored tensor is to the node that reads it; nothing for a constant."""
    if node.op_type in MIXING:
        if place == 2:
            return "offset"
        return "weight" if node.op_type == "Conv" else "transposed"
    if node.op_type == "BatchNormalization":
        return ("", "factor", "offset", "mean", "variance")[place]
    return {"Add": "offset", "Sub": "offset", "Mul": "factor", "Div": "factor"}.get(
        node.op_type, ""
    )


class Shadow(Subject):
    """A head with the attacker's weights.

    Args:
        whole: the head, of which the architecture is used.
        graph: with the attacker's weights.
        accuracy: of the tail behind it on the attacker's pictures, 0 to 1.
        losses: cross-entropy of every step.
    """

    def __init__(
        self, whole: Subject, graph: FreshGraph, accuracy: float, losses: Sequence[float]
    ) -> None:
        self.__dict__.update(whole.__dict__)
        self.graph = graph
        self.accuracy = accuracy
        self.losses = list(losses)


def train_shadow(
    subject: Subject,
    tail: Tail,
    data: tuple[Floats, Classes],
    recipe: ShadowRecipe,
    tick: Tick,
) -> Shadow:
    """Learn a stand-in for the head; nothing of the head but its architecture is used.

    Args:
        subject: the head, up to the tail's cut or further.
        tail: behind the cut.
        data: labelled pictures of the attacker, (n, 3, height, width), 0 to 1, and their classes,
            (n,), as the tail counts them.
        recipe: how.
        tick: called after each step.

    Raises:
        UsageError: no pictures, not one class a picture, or a class that the tail does not know.
    """
    pictures, classes = (to_tensor(part) for part in data)
    if not len(pictures) or classes.shape != (len(pictures),):
        raise UsageError(f"{len(pictures)} pictures with classes of shape {tuple(classes.shape)}")
    graph = FreshGraph(subject.graph, recipe.seed)
    shadow = Shadow(subject, graph, 0.0, [])
    with torch.no_grad():
        known = tail.scores(shadow.features(pictures[:1], tail.names)).shape[1]
    if int(classes.min()) < 0 or int(classes.max()) >= known:
        raise UsageError(
            f"classes {int(classes.min())} to {int(classes.max())}; the tail knows {known}"
        )
    rate = recipe.rate / max(1, *(graph.convolutions_before(name) for name in tail.names))
    optimiser = torch.optim.AdamW(graph.learned, rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, max(2, recipe.steps))
    generator = np.random.default_rng(recipe.seed)
    for _ in range(recipe.steps):
        rows = to_tensor(generator.integers(0, len(pictures), recipe.batch))
        scores = tail.scores(shadow.features(pictures[rows], tail.names))
        loss = functional.cross_entropy(scores, classes[rows])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(graph.learned, CLIP_NORM)
        optimiser.step()
        schedule.step()
        shadow.losses.append(float(loss.detach()))
        tick()
    for values in graph.learned:
        values.requires_grad = False
    shadow.accuracy = _accuracy(shadow, tail, pictures[:SCORED], classes[:SCORED])
    return shadow


@torch.no_grad()
def _accuracy(shadow: Shadow, tail: Tail, pictures: Tensor, classes: Tensor) -> float:
    hits = [
        tail.scores(shadow.features(some, tail.names)).argmax(1) == own
        for some, own in zip(pictures.split(64), classes.split(64), strict=True)
    ]
    return float(torch.cat(hits).float().mean())

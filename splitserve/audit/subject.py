"""What is attacked: the head up to one cut, and what the receiver of its features sees."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from splitserve.artifact import INPUT, OUTPUT, Artifact, Defence, Noise, Preprocess, Subset
from splitserve.audit.device import to_array, to_tensor
from splitserve.audit.torch_graph import TorchGraph
from splitserve.codec import Codec, Codecs, StepAnsCodec
from splitserve.defence import defend
from splitserve.errors import UsageError

Floats = npt.NDArray[np.float32]
BATCH = 32


@dataclass(frozen=True, slots=True)
class Transport:
    """How features travel: what an attacker receives is what this gives back, never the original.

    Args:
        codec: None for the features as they are.
        name: of the codec.
        quality: of the codec, where it has one.
        defence: in front of the codec.
        observations: how often the receiver sees the features of one picture, each time with
            fresh noise; it takes the mean.
        seed: of the noise.
    """

    codec: Codec | None
    name: str
    quality: float | None = None
    defence: Defence | None = None
    observations: int = 1
    seed: int = 0

    @property
    def text(self) -> str:
        """For people."""
        return self.name if self.quality is None else f"{self.name} {self.quality:g}"

    def carry(self, tensors: Sequence[Floats]) -> list[Floats]:
        """Send a batch, picture by picture as the agent does; deterministic for equal input."""
        salt = zlib.crc32(np.ascontiguousarray(tensors[0]).tobytes())
        generator = np.random.default_rng([self.seed, salt])
        turns = self.observations if isinstance(self.defence, Noise) else 1
        seen = [self._encode(defend(self.defence, tensors, generator)) for _ in range(turns)]
        return seen[0] if turns == 1 else [_mean(column) for column in zip(*seen, strict=True)]

    def _encode(self, tensors: Sequence[Floats]) -> list[Floats]:
        if self.codec is None:
            return [np.asarray(tensor) for tensor in tensors]
        codec = self.codec
        carried = []
        for index, tensor in enumerate(tensors):
            rows = []
            for row in tensor:
                one = np.ascontiguousarray(row[None])
                payload = memoryview(codec.encode(one, index))
                rows.append(codec.decode(payload, one.shape, str(one.dtype), index))
            carried.append(np.concatenate(rows))
        return carried

    def bytes_of(self, tensors: Sequence[Floats]) -> float:
        """Mean payload bytes of one picture, one observation."""
        if self.codec is None:
            return float(sum(tensor[0].nbytes for tensor in tensors))
        generator = np.random.default_rng(self.seed)
        some = defend(self.defence, [tensor[:BATCH] for tensor in tensors], generator)
        sizes = [
            len(self.codec.encode(np.ascontiguousarray(tensor[i : i + 1]), index))
            for index, tensor in enumerate(some)
            for i in range(len(tensor))
        ]
        return float(sum(sizes)) / len(some[0])


def _mean(column: Sequence[Floats]) -> Floats:
    """What many views of one tensor say; integers are the same in all of them."""
    first = column[0]
    if not np.issubdtype(first.dtype, np.floating):
        return first
    return np.asarray(np.mean(column, axis=0, dtype=np.float64), first.dtype)


def transport_of(
    artifact: Artifact, position: int, codec: str | None, quality: float | None
) -> Transport:
    """The configured transport of a cut.

    Args:
        artifact: with its codec tables.
        position: of the cut.
        codec: name; None for the features as they are.
        quality: of the codec.

    Raises:
        UsageError: the artifact has no such codec here.
    """
    if codec is None or codec == "none":
        return Transport(None, "none")
    codecs = Codecs(artifact)
    made = codecs.encoder(codec, position, quality)
    if codec == StepAnsCodec.name:
        quality = codecs.rate(position, quality).floor
    return Transport(made, codec, quality)


class Subject:
    """The head up to one cut as a differentiable function of pictures.

    Args:
        artifact: verified.
        position: of the cut.
        size: height and width to run at; the manifest's crop by default. Smaller pictures make the
            audit faster and are another question; the report states the size.

    Raises:
        UsageError: no cut, or a model that takes no pictures.
        GraphError: an operator that torch does not run here.
    """

    def __init__(
        self, artifact: Artifact, position: int, size: tuple[int, int] | None = None
    ) -> None:
        manifest = artifact.manifest
        self.name = manifest.positions[position]
        if self.name in (INPUT, OUTPUT):
            raise UsageError(f"{self.name} is no cut: there is no head to invert")
        if manifest.preprocess is None or len(manifest.inputs) != 1:
            raise UsageError(f"{artifact.root}: the audit attacks models that take one picture")
        self.preprocess: Preprocess = manifest.preprocess
        self.size = size or self.preprocess.crop
        self.input_name = manifest.inputs[0].name
        self.egress = [spec.name for spec in manifest.egress(position)]
        parts = [
            onnx.load_model_from_string(artifact.read_file(stored))
            for stored in manifest.segments[:position]
        ]
        self.graph = TorchGraph(parts).requires_grad_(requires_grad=False)
        self._mean = torch.tensor(self.preprocess.mean, dtype=torch.float32).reshape(-1, 1, 1)
        self._std = torch.tensor(self.preprocess.std, dtype=torch.float32).reshape(-1, 1, 1)

    def model_input(self, pictures: Tensor) -> Tensor:
        """Pictures, (n, 3, height, width), 0 to 1, as the model takes them."""
        ordered = pictures if self.preprocess.channels == "RGB" else pictures.flip(1)
        values = (ordered * 255 - self._mean) / self._std
        return values if self.preprocess.layout == "NCHW" else values.permute(0, 2, 3, 1)

    def features(self, pictures: Tensor, wanted: Sequence[str] | None = None) -> list[Tensor]:
        """Tensors of the head by name, by default the egress; differentiable."""
        known = {self.input_name: self.model_input(pictures)}
        return list(self.graph(known, wanted or self.egress))

    def between(self, known: Mapping[str, Tensor], wanted: Sequence[str]) -> list[Tensor]:
        """Tensors of the head from earlier ones; differentiable."""
        return list(self.graph(known, wanted))

    def behind(self, defence: Defence | None, names: Sequence[str]) -> "Subject":
        """The head as an attacker models it who knows the defence; noise and steps average out.

        Args:
            defence: of a cut.
            names: of the tensors that cross it.
        """
        return self if not isinstance(defence, Subset) else _Masked(self, defence, names)

    @torch.no_grad()
    def collect(self, pictures: Floats, wanted: Sequence[str] | None = None) -> list[Floats]:
        """Tensors of the head for many pictures, batch after batch."""
        batches = [
            self.features(to_tensor(pictures[start : start + BATCH]), wanted)
            for start in range(0, len(pictures), BATCH)
        ]
        return [to_array(torch.cat(column)) for column in zip(*batches, strict=True)]


class _Masked(Subject):
    """A head of which some channels do not travel.

    Args:
        whole: the head.
        defence: says which.
        names: of the tensors that cross.
    """

    def __init__(self, whole: Subject, defence: Subset, names: Sequence[str]) -> None:
        self.__dict__.update(whole.__dict__)
        parts = zip(names, defence.axes, defence.constants, strict=True)
        self._masks = {name: (axis, constants) for name, axis, constants in parts}

    def features(self, pictures: Tensor, wanted: Sequence[str] | None = None) -> list[Tensor]:
        """Tensors by name; those that travel with constants in the place of what does not."""
        names = list(wanted or self.egress)
        found = super().features(pictures, names)
        return [
            _masked(tensor, *self._masks[name]) if name in self._masks else tensor
            for name, tensor in zip(names, found, strict=True)
        ]


def _masked(tensor: Tensor, axis: int, constants: Sequence[float | None]) -> Tensor:
    along = [1] * tensor.dim()
    along[axis] = len(constants)
    kept = torch.tensor([value is None for value in constants]).reshape(along)
    filled = torch.tensor([value or 0.0 for value in constants]).reshape(along)
    return torch.where(kept, tensor, filled)

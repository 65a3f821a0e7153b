"""The split as a folder: segments, and a manifest that says everything both sides must agree on.

Positions count the cuts: 0 is the model's input (the whole model runs in the cloud), 1 to n are the
artifact's cuts in order, n + 1 is its output (the whole model runs on the edge). The head at
position k is segments 0 to k - 1, the tail is the rest. Format: docs/artifact.md.
"""

import errno
import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from splitserve.errors import ArtifactError, IntegrityError, UsageError
from splitserve.tensors import TensorSpec, mismatch

MANIFEST = "manifest.json"
MANIFEST_LIMIT_BYTES = 16 * 1024 * 1024
INPUT = "input"
OUTPUT = "output"
CALIBRATED_ON_MAX = 100_000

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ShortHash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
PlainName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]*$")]


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Preprocess(_Part):
    """From a decoded picture to the model's input, without the model author's Python.

    The short side is resized to `resize_short_side`, the centre is cropped to `crop`, and each
    channel becomes (x - mean) / std with x in 0..255.
    """

    resize_short_side: int = Field(ge=1, le=8192)
    """Pixels of the short side after resizing."""
    crop: tuple[Annotated[int, Field(ge=1, le=8192)], Annotated[int, Field(ge=1, le=8192)]]
    """Height and width of the centre crop, pixels."""
    resample: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bicubic"
    mean: tuple[float, float, float]
    """Per channel in the order of `channels`, in 0..255 units."""
    std: tuple[float, float, float]
    """Per channel in the order of `channels`, in 0..255 units, not zero."""
    channels: Literal["RGB", "BGR"] = "RGB"
    layout: Literal["NCHW", "NHWC"] = "NCHW"

    @model_validator(mode="after")
    def _consistent(self) -> "Preprocess":
        if 0.0 in self.std:
            raise ValueError("std holds a zero")
        if max(self.crop) > self.resize_short_side:
            raise ValueError(
                f"crop {self.crop} is larger than resize_short_side {self.resize_short_side}"
            )
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the input that one picture becomes."""
        return (1, 3, *self.crop) if self.layout == "NCHW" else (1, *self.crop, 3)


class StoredFile(_Part):
    """One file that lies beside the manifest."""

    file: PlainName
    sha256: Sha256
    bytes: int = Field(ge=1)


class Segment(StoredFile):
    """One ONNX file between two neighbouring positions."""

    macs: int = Field(ge=0)
    """Multiply-adds for batch 1."""


class Estimate(_Part):
    """A share in percent with its 95 % interval (Wilson)."""

    value: float = Field(ge=0, le=100)
    low: float = Field(ge=0, le=100)
    high: float = Field(ge=0, le=100)


class Rate(_Part):
    """One setting of the codec, and what it was seen to do on pictures it was not fitted to."""

    floor: float = Field(gt=0, le=100)
    """Agreement with the unsplit model that was asked for, percent."""
    parameter: int = Field(ge=0, lt=1 << 32)
    """The codec's number in the frame header."""
    agreement: Estimate
    """Answers that were those of the unsplit model."""
    bytes_mean: float = Field(gt=0)
    """Bytes of one frame, everything counted."""
    bytes_p95: float = Field(gt=0)
    accuracy: Estimate | None = None
    """Answers that were right, where the pictures had labels."""
    accuracy_unsplit: Estimate | None = None
    """The same of the unsplit model, on the same pictures."""


class Calibration(_Part):
    """What the codec knows of a cut, and how it was found out."""

    tables: StoredFile
    rates: tuple[Rate, ...]
    """The finest first."""
    fitted_on: int = Field(ge=1)
    """Inputs that the tables were fitted to."""
    measured_on: int = Field(ge=1)
    """Other inputs that the rates were measured on."""
    inputs_sha256: Sha256
    """Of the inputs' file contents, one after another in the order of use."""
    seed: int
    agreement_is: Literal["argmax", "error"]
    """What agreeing means: the same best class, or outputs within the tolerance."""
    tolerance: float | None = None
    """Largest relative error that still agrees."""


class ExitRate(_Part):
    """What an exit does when a share of the inputs goes on to the cloud."""

    upload: float = Field(gt=0, lt=100)
    """Percent of the calibration's inputs with a lower confidence."""
    threshold: float = Field(ge=0, le=1)
    """Least confidence that answers early."""
    early: Estimate
    """Early answers that were those of the whole model."""
    answers: Estimate
    """The same of all answers, what goes on counting as the whole model's."""


class ExitFloor(_Part):
    """The lowest confidence at which early answers kept an agreement."""

    agreement: float = Field(gt=0, le=100)
    """Percent of early answers that had to be those of the whole model."""
    threshold: float = Field(ge=0, le=1)
    upload: float = Field(ge=0, lt=100)
    """Percent of the calibration's inputs with a lower confidence."""


class Exit(_Part):
    """A small classifier on a cut's features that may answer instead of the tail."""

    graph: StoredFile
    """From the egress tensors to class probabilities, (1, classes); the largest is the
    confidence."""
    rates: tuple[ExitRate, ...] = Field(min_length=1)
    """The most uploads first."""
    floors: tuple[ExitFloor, ...]
    """The highest agreement first; those that no confidence kept are left out."""
    temperature: float = Field(gt=0)
    """What the scores were divided by so that the confidence is the chance of agreeing."""
    fitted_on: int = Field(ge=1)
    """Inputs that it was fitted to, and by cross-fitting measured on."""
    folds: int = Field(ge=2)
    inputs_sha256: Sha256
    seed: int

    @model_validator(mode="after")
    def _falling(self) -> "Exit":
        for before, after in pairwise(self.rates):
            if after.upload >= before.upload or after.threshold > before.threshold:
                raise ValueError("the rates of an exit do not fall with the share of uploads")
        return self


class Leakage(_Part):
    """What an audit found at a cut, behind one codec."""

    level: int = Field(ge=1, le=5)
    """By the policy: 5 exposed to 1 not shown to leak under the stated budget."""
    codec: str
    """That the features travelled in; `none` for float32."""
    quality: float | None = None
    identified: float = Field(ge=0, le=100)
    """Percent of the pictures that the strongest attack identified."""
    policy: str
    budget: str
    audit_sha256: Sha256
    """Of the audit.json that says the rest."""
    expires: str = Field(pattern=r"^\d{4}-\d\d-\d\d$")
    """Date after which it says nothing."""


class Noise(_Part):
    """Fresh Gaussian noise on every request."""

    kind: Literal["noise"] = "noise"
    asked: str
    """As it was asked for, such as `noise:0.01`."""
    deviations: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    """Standard deviation for each egress tensor."""


class Rounding(_Part):
    """Features rounded to multiples of a step."""

    kind: Literal["step"] = "step"
    asked: str
    steps: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1)
    """For each egress tensor."""


class Subset(_Part):
    """Some channels only; in the others' place travels a constant."""

    kind: Literal["channels"] = "channels"
    asked: str
    axes: tuple[int, ...] = Field(min_length=1)
    """Of the channels of each egress tensor."""
    constants: tuple[tuple[float | None, ...], ...] = Field(min_length=1)
    """Of each egress tensor for each channel: what travels instead; null for a channel that is
    kept."""


class Withdrawn(_Part):
    """Nothing may cross here."""

    kind: Literal["withdrawn"] = "withdrawn"
    asked: str = "withdrawn"


Defence = Annotated[Noise | Rounding | Subset | Withdrawn, Field(discriminator="kind")]


class Cut(_Part):
    """A place where head and tail part."""

    name: str
    """Names of the egress tensors, joined by `+`."""
    egress: tuple[TensorSpec, ...] = Field(min_length=1)
    """Made by the head, needed by the tail, in the order in which they travel."""
    macs_share: float = Field(ge=0, le=1)
    """Share of the model's multiply-adds that the head does."""
    fused_head: Segment | None = None
    """The head in one piece, for the plan in use: borders between segments cost time. Stored
    where it is small beside the model."""
    calibration: Calibration | None = None
    """Tables and rates of the `step-ans` codec; None until `splitserve calibrate`."""
    exit: Exit | None = None
    """A classifier that may answer here; None until `splitserve calibrate --exits`."""
    defence: Defence | None = None
    """What is done to the features before they are encoded; None until `splitserve defend`."""
    leakage: Leakage | None = None
    """What `splitserve audit-leakage --write` found; None until then."""

    @model_validator(mode="after")
    def _defence_fits(self) -> "Cut":
        problem = _mismatch_of(self.defence, self.egress)
        if problem:
            raise ValueError(f"the defence of {self.name}: {problem}")
        return self


def _mismatch_of(defence: Defence | None, egress: Sequence[TensorSpec]) -> str | None:
    """Why a defence does not fit the tensors that cross; None when it does."""
    if defence is None or isinstance(defence, Withdrawn):
        return None
    other = [spec.name for spec in egress if not spec.dtype.startswith("float")]
    if other:
        return f"{other[0]} is no floating-point tensor"
    if isinstance(defence, Subset):
        lengths = {len(defence.axes), len(defence.constants)}
    else:
        amounts = defence.deviations if isinstance(defence, Noise) else defence.steps
        lengths = {len(amounts)}
    if lengths != {len(egress)}:
        return f"made for {sorted(lengths)} tensors, {len(egress)} cross"
    if isinstance(defence, Subset):
        for spec, axis, constants in zip(egress, defence.axes, defence.constants, strict=True):
            inside = -len(spec.shape) <= axis < len(spec.shape)
            if not inside or spec.shape[axis] != len(constants):
                return f"{len(constants)} channels along axis {axis} of {spec.name}"
    return None


class ModelFacts(_Part):
    """Where the segments came from."""

    name: str
    sha256: Sha256
    """Of the ONNX file that was split."""
    opset: int
    macs: int
    """Multiply-adds of the whole model for batch 1."""


class Manifest(_Part):
    """Everything both sides must agree on."""

    schema_version: Literal[1] = 1
    model: ModelFacts
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...] = Field(min_length=1)
    segments: tuple[Segment, ...] = Field(min_length=1)
    cuts: tuple[Cut, ...]
    preprocess: Preprocess | None = None
    """How a picture becomes the input; None when the model takes no picture."""
    labels: tuple[str, ...] = ()
    """Class names in the order of the first output's last axis."""
    calibrated_on: tuple[ShortHash, ...] = Field(default=(), max_length=CALIBRATED_ON_MAX)
    """First 16 digits of the sha256 of every file that a calibration here was given, sorted: what
    is measured on others is no echo of the tables."""
    tools: dict[str, str] = Field(default_factory=dict)
    """Versions of what made the artifact."""

    @model_validator(mode="after")
    def _consistent(self) -> "Manifest":
        if len(self.segments) != len(self.cuts) + 1:
            raise ValueError(f"{len(self.segments)} segments do not fit {len(self.cuts)} cuts")
        names = self.positions
        if len(set(names)) != len(names):
            raise ValueError(f"cut names repeat or are reserved: {', '.join(names[1:-1])}")
        self._refuse_contradicting_egress()
        self._refuse_preprocess_of_another_input()
        return self

    def _refuse_contradicting_egress(self) -> None:
        """A tensor crosses a cut once, and at several positions it is the same one."""
        for cut in self.cuts:
            if len({spec.name for spec in cut.egress}) < len(cut.egress):
                raise ValueError(f"a tensor crosses at {cut.name} twice")
        known: dict[str, TensorSpec] = {}
        for position, where in enumerate(self.positions):
            for spec in self.egress(position):
                if known.setdefault(spec.name, spec) != spec:
                    raise ValueError(f"{spec.name} is another tensor at {where} than before it")

    def _refuse_preprocess_of_another_input(self) -> None:
        if self.preprocess is None:
            return
        problem = mismatch(self.inputs, [self.preprocess.shape])
        if problem is None and self.inputs[0].dtype != "float32":
            problem = f"{self.inputs[0].name}: float32 where {self.inputs[0].dtype} is expected"
        if problem:
            raise ValueError(f"preprocess does not make the model's input: {problem}")

    @property
    def positions(self) -> tuple[str, ...]:
        """Names of all positions: the input, the cuts in order, the output."""
        return (INPUT, *(cut.name for cut in self.cuts), OUTPUT)

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """Everything beside the manifest: segments, fused heads, codec tables, exits."""
        heads = [cut.fused_head for cut in self.cuts if cut.fused_head]
        tables = [cut.calibration.tables for cut in self.cuts if cut.calibration]
        exits = [cut.exit.graph for cut in self.cuts if cut.exit]
        return (*self.segments, *heads, *tables, *exits)

    def defence(self, position: int) -> Defence | None:
        """What is done to the features that cross at a position."""
        return self.cuts[position - 1].defence if 1 <= position <= len(self.cuts) else None

    def position(self, name: str) -> int:
        """Number of the position called `name`.

        Raises:
            UsageError: no position has this name.
        """
        if name not in self.positions:
            raise UsageError(f"no cut {name!r} here; there are: {', '.join(self.positions)}")
        return self.positions.index(name)

    def egress(self, position: int) -> tuple[TensorSpec, ...]:
        """Specs of the tensors that cross at a position."""
        if position == 0:
            return self.inputs
        if position == len(self.cuts) + 1:
            return self.outputs
        return self.cuts[position - 1].egress


@dataclass(frozen=True, slots=True)
class Artifact:
    """A verified artifact folder.

    Args:
        root: the folder.
        manifest: its parsed manifest.
        manifest_bytes: manifest.json as it lies on disk.
        id: first 16 bytes of the sha256 of these bytes; head and tail agree when it does.
    """

    root: Path
    manifest: Manifest
    manifest_bytes: bytes
    id: bytes

    def read_segment(self, index: int) -> bytes:
        """Return one segment's ONNX bytes after comparing them with the manifest's hash.

        Raises:
            IntegrityError: the file differs from its hash, is missing or no regular file.
        """
        return self.read_file(self.manifest.segments[index])

    def read_fused_head(self, position: int) -> bytes | None:
        """Return the head at a position in one piece, None where the artifact stores none.

        Raises:
            IntegrityError: the file differs from its hash, is missing or no regular file.
        """
        if not 1 <= position <= len(self.manifest.cuts):
            return None
        segment = self.manifest.cuts[position - 1].fused_head
        return self.read_file(segment) if segment else None

    def read_tables(self, position: int) -> bytes | None:
        """Return the codec tables of a cut, None where it was not calibrated.

        Raises:
            IntegrityError: the file differs from its hash, is missing or no regular file.
        """
        if not 1 <= position <= len(self.manifest.cuts):
            return None
        calibration = self.manifest.cuts[position - 1].calibration
        return self.read_file(calibration.tables) if calibration else None

    def read_exit(self, position: int) -> bytes | None:
        """Return the ONNX bytes of a cut's exit, None where it has none.

        Raises:
            IntegrityError: the file differs from its hash, is missing or no regular file.
        """
        if not 1 <= position <= len(self.manifest.cuts):
            return None
        found = self.manifest.cuts[position - 1].exit
        return self.read_file(found.graph) if found else None

    def read_file(self, stored: StoredFile) -> bytes:
        """Return a file's bytes after comparing them with the manifest's hash.

        Raises:
            IntegrityError: the file differs from its hash, is missing or no regular file.
        """
        path = self.root / stored.file
        try:
            size = _regular_size(path)
            content = path.read_bytes() if size == stored.bytes else b""
        except OSError as error:
            raise IntegrityError(f"{path}: {error.strerror}") from error
        if size != stored.bytes:
            raise IntegrityError(f"{path}: {size} bytes where the manifest says {stored.bytes}")
        if hashlib.sha256(content).hexdigest() != stored.sha256:
            raise IntegrityError(f"{path}: content differs from the sha256 in the manifest")
        return content


def load_artifact(root: Path) -> Artifact:
    """Read a folder's manifest; segments are verified when they are read.

    Raises:
        ArtifactError: no manifest, an unknown version, or fields that contradict each other.
    """
    path = root / MANIFEST
    try:
        _regular_size(path)
        with path.open("rb") as file:
            content = file.read(MANIFEST_LIMIT_BYTES + 1)
    except OSError as error:
        raise ArtifactError(
            f"{path}: {error.strerror}; make one with: splitserve split MODEL.onnx -o {root}"
        ) from error
    if len(content) > MANIFEST_LIMIT_BYTES:
        raise ArtifactError(f"{path}: over the limit of {MANIFEST_LIMIT_BYTES} bytes")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ArtifactError(f"{path}: {where}: {first['msg']}") from error
    return Artifact(root, manifest, content, artifact_id(content))


def _regular_size(path: Path) -> int:
    """Size of a file of an artifact; pipes and devices are refused.

    Links are followed, for mounted volumes are made of them; the hash decides what is trusted.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return facts.st_size


def artifact_id(manifest_bytes: bytes) -> bytes:
    """Return the 16 bytes that name an artifact on the wire."""
    return hashlib.sha256(manifest_bytes).digest()[:16]


def write_artifact(root: Path, manifest: Manifest, files: Mapping[str, bytes]) -> Artifact:
    """Write the files, then the manifest, so that a folder with a manifest is complete.

    An artifact that was there before stays whole until all that is new is on the disk, beside it;
    only then names change hands, the manifest's last. Its files that are not part of this one are
    removed after that.

    Raises:
        ArtifactError: a file cannot be written; the message names it.
    """
    text = manifest.model_dump_json(indent=1, exclude_defaults=False).encode()
    partials: list[Path] = []
    try:
        root.mkdir(parents=True, exist_ok=True)
        stale = _files(root) - files.keys()
        for name, content in chain(files.items(), [(MANIFEST, text)]):
            path = root / name
            if _holds(path, content):
                continue
            partials.append(path.with_name(f".{name}.part"))
            _write(partials[-1], content)
        for partial in partials:
            partial.replace(root / partial.name[1 : -len(".part")])
        for name in stale:
            (root / name).unlink(missing_ok=True)
    except OSError as error:
        where = error.filename2 or error.filename or root
        raise ArtifactError(f"cannot write {where}: {error.strerror}") from error
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
    return Artifact(root, manifest, text, artifact_id(text))


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file has this content already."""
    try:
        return _regular_size(path) == len(content) and path.read_bytes() == content
    except OSError:
        return False


def _write(path: Path, content: bytes) -> None:
    """Write a file to the disk itself, where a full one shows.

    Raises:
        OSError: it names the file.
    """
    try:
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _files(root: Path) -> set[str]:
    """Names of the files that a folder's manifest lists; none where there is no manifest."""
    try:
        return {segment.file for segment in load_artifact(root).manifest.files}
    except ArtifactError:
        return set()


def rewrite_manifest(artifact: Artifact, changed: Manifest) -> Artifact:
    """Write another manifest over an artifact's own; its files stay as they are.

    Args:
        artifact: verified.
        changed: names some of the artifact's files, and no others.

    Raises:
        IntegrityError: a file that differs from its hash.
    """
    files = {stored.file: artifact.read_file(stored) for stored in changed.files}
    return write_artifact(artifact.root, changed, files)

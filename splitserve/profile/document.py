"""The profile as data: one JSON document, carried from the device to the planner."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from splitserve.artifact import Estimate
from splitserve.documents import read_document
from splitserve.errors import UsageError

FILE_LIMIT_BYTES = 16 * 1024 * 1024


class _Part(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class Timing(_Part):
    """Seconds of one stage, over all rounds."""

    median_s: float = Field(ge=0)
    p90_s: float = Field(ge=0)
    native_median_s: float = Field(ge=0)
    """The same without the stretching of a slowdown."""
    native_p90_s: float = Field(ge=0)
    count: int = Field(ge=0)
    """Rounds; 0 where the time is predicted."""


class Machine(_Part):
    """Where the profile was taken."""

    system: str
    processor: str
    cores: int = Field(ge=1)
    """That this process may use."""
    memory_bytes: int | None = Field(default=None, ge=0)


class Pictures(_Part):
    """What the stages were fed with."""

    kind: Literal["files", "noise"]
    """Noise says nothing about agreement, and little about bytes."""
    count: int = Field(ge=1)
    sha256: str
    """Of the contents, one after another."""


class Place(_Part):
    """One position of the artifact."""

    name: str
    macs_share: float = Field(ge=0, le=1)
    head: Timing
    """From the model's input up to here."""
    tail: Timing
    """From here to the reply."""
    is_predicted: bool = False
    """Whether head and tail are interpolated over multiply-adds, not measured."""
    weights_bytes: int = Field(ge=0)
    """Of the head's ONNX files."""
    features_bytes: int = Field(ge=0)
    """The largest features at any position up to here."""


class Candidate(_Part):
    """One way to carry what crosses at a position; at the output nothing travels."""

    cut: str
    codec: str
    quality: float | None = None
    """Of a picture codec; for step-ans the agreement floor that names the rate."""
    encode: Timing
    decode: Timing
    edge: Timing
    """All of the device's part, taken together in each round: picture, head, encoding."""
    cloud: Timing
    """All of the cloud's part, taken together in each round: decoding, tail."""
    bytes_mean: float = Field(ge=0)
    """Of a request frame, everything counted."""
    bytes_p95: float = Field(ge=0)
    agreement: Estimate | None = None
    """Answers that are those of the unsplit model; None where not measured."""
    agreement_on: int = Field(default=0, ge=0)
    """Inputs that it was measured on."""
    is_lossless: bool = False
    """Whether every tensor came back bit for bit."""

    @property
    def key(self) -> tuple[str, str, float | None]:
        """What tells it from the others."""
        return self.cut, self.codec, self.quality


class Prediction(_Part):
    """How well heads and tails are predicted: each measured cut from the others, left out."""

    cuts: int = Field(ge=1)
    """Measured cuts that were left out in turn."""
    head_median: float = Field(ge=0)
    """Median relative error."""
    head_worst: float = Field(ge=0)
    tail_median: float = Field(ge=0)
    tail_worst: float = Field(ge=0)


class Profile(_Part):
    """What one artifact costs on one machine."""

    schema_version: Literal[1] = 1
    artifact_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    model: str
    machine: Machine
    threads: int = Field(ge=1)
    providers: tuple[str, ...]
    tools: dict[str, str]
    slowdown: float = Field(default=1.0, ge=1)
    """That was asked for."""
    slowdown_measured: float = Field(default=1.0, gt=0)
    """Wall time over native time, all stages together."""
    rounds: int = Field(ge=1)
    idle_s: float = Field(default=0.0, ge=0)
    """Pause before what a request begins with, on either side."""
    seed: int
    pictures: Pictures
    picture: Timing
    """Decoding, resizing and cropping a picture file."""
    normalise: Timing
    """Pixels to the model's input."""
    places: tuple[Place, ...] = Field(min_length=2)
    candidates: tuple[Candidate, ...] = Field(min_length=1)
    prediction: Prediction | None = None
    """None with fewer than two measured cuts."""
    reply_bytes: int = Field(ge=0)
    """Of the frame that answers a request."""
    resident_bytes: int | None = Field(default=None, ge=0)
    """Of this process once every segment had run."""

    def place(self, name: str) -> Place:
        """The position called `name`.

        Raises:
            UsageError: no position has this name.
        """
        for place in self.places:
            if place.name == name:
                return place
        raise UsageError(f"the profile has no position {name!r}")


def read_profile(path: Path) -> Profile:
    """Read a profile.

    Raises:
        UsageError: no such file, or not one of ours; the message names the fix.
    """
    return read_document(path, Profile, FILE_LIMIT_BYTES, f"splitserve profile ARTIFACT -o {path}")

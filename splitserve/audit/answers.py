"""What the whole model answers: to originals, reconstructions, and features that travelled."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch.nn import functional

from splitserve.agreement import best_class
from splitserve.audit.device import to_array, to_tensor
from splitserve.audit.document import Probe
from splitserve.audit.laboratory import Attribute, Laboratory, Target
from splitserve.audit.probe import read_attribute
from splitserve.audit.subject import Floats, Subject, Transport
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.tensors import Array

POOLED = 4  # values a side, at most, that a probe sees

Hits = npt.NDArray[np.bool_]


class Answers:
    """The unsplit model at its own size.

    Args:
        lab: with pictures at that size.
    """

    def __init__(self, lab: Laboratory) -> None:
        self._lab = lab
        self._chain = open_chain(lab.artifact, RuntimeOptions())
        self._manifest = lab.artifact.manifest
        self._whole = [self._run(picture) for picture in lab.material.whole]

    def _run(self, picture: Floats) -> Array:
        values = to_array(self._lab.subject.model_input(to_tensor(picture[None])))
        tensors = {self._manifest.inputs[0].name: values}
        return self._chain.run(tensors, 0, len(self._chain))[self._manifest.outputs[0].name]

    def same_class(self, found: Floats) -> Hits:
        """Whether reconstructions are taken for what their originals are taken for.

        Args:
            found: of the first pictures, (n, 3, height, width); resized where the audit's size is
                not the model's own.
        """
        size = self._lab.material.whole.shape[2:]
        large = to_array(functional.interpolate(to_tensor(found), size, mode="bilinear"))
        pairs = zip(large, self._whole, strict=False)
        return np.array([best_class(self._run(one)) == best_class(true) for one, true in pairs])

    def through(self, target: Target) -> tuple[Hits, Probe | None]:
        """What is left of the answers behind defence and transport, and what the features say.

        Returns:
            Whether each answer is that of the unsplit model, and the probe of the declared
            attribute, None without one.
        """
        output = self._manifest.outputs[0].name
        received = self._received(target, replace(target.transport, observations=1))
        hits = [
            best_class(self._chain.run(seen, target.position, len(self._chain))[output])
            == best_class(whole)
            for seen, whole in zip(received, self._whole, strict=True)
        ]
        declared = self._lab.material.attribute
        if declared is None:
            return np.array(hits), None
        if target.transport.observations > 1:
            received = self._received(target, target.transport)
        return np.array(hits), self._probe(declared, received)

    def _received(self, target: Target, transport: Transport) -> list[dict[str, Array]]:
        """Features at the model's own size, as the receiver gets them, picture by picture."""
        subject = Subject(self._lab.artifact, target.position)
        rows = []
        for picture in self._lab.material.whole:
            seen = transport.carry(subject.collect(picture[None], list(target.egress)))
            rows.append(dict(zip(target.egress, seen, strict=True)))
        return rows

    def _probe(self, declared: Attribute, received: Sequence[Mapping[str, Array]]) -> Probe:
        is_last = self._lab.subject.preprocess.layout == "NHWC"
        features = [
            np.concatenate([_pooled(tensor, is_last=is_last) for tensor in seen.values()])
            for seen in received
        ]
        sources = {
            "features": np.stack(features),
            "answers": np.stack([answer.astype(np.float64).ravel() for answer in self._whole]),
            "pixels": np.stack(
                [_pooled(one[None], is_last=False) for one in self._lab.material.whole]
            ),
        }
        values = declared.values[: len(features)]
        return read_attribute(sources, values, declared.name, self._lab.seed)


def _pooled(tensor: Array, *, is_last: bool) -> npt.NDArray[np.float64]:
    values = to_tensor(np.asarray(tensor, np.float32))
    if values.dim() == 4:
        maps = values.permute(0, 3, 1, 2) if is_last else values
        sides = min(POOLED, maps.shape[2]), min(POOLED, maps.shape[3])
        values = functional.adaptive_avg_pool2d(maps, sides)
    return to_array(values).astype(np.float64).ravel()

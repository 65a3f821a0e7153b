"""Decode features, run the tail, encode the answer. Knows no HTTP."""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from splitserve.artifact import Artifact, Withdrawn
from splitserve.codec import Codec, Codecs, RawCodec, References, StepAnsCodec, TopCodec
from splitserve.errors import (
    ArtifactError,
    ContractError,
    FrameTooLargeError,
    SplitServeError,
    UnknownArtifactError,
)
from splitserve.picture import normalise
from splitserve.runtime import Chain
from splitserve.tensors import Array, TensorSpec, mismatch
from splitserve.wire import Reply, Request, Section, Timings

MAX_ELEMENTS = 16 * 1024 * 1024
OutputCodec = RawCodec | TopCodec
WHOLE = RawCodec(exact=True)
TOP = TopCodec()


class Tail:
    """The tails of one artifact, one per cut, over one set of loaded segments.

    Args:
        artifact: the verified artifact.
        chain: its loaded segments.
        max_elements: most elements, or coefficients of the codec, of one tensor.
        max_batch: largest batch, which is a free first dimension, that a request may ask for.

    Raises:
        IntegrityError: codec tables that differ from their hash.
        CodecError: codec tables that do not fit their cut.
    """

    def __init__(
        self,
        artifact: Artifact,
        chain: Chain,
        *,
        max_elements: int = MAX_ELEMENTS,
        max_batch: int = 64,
    ) -> None:
        self.artifact = artifact
        self._chain = chain
        self._codecs = Codecs(artifact)
        self._max_elements = max_elements
        self._max_batch = max_batch

    def warm_up(self) -> None:
        """Run every tail once on zeros, so that the first request finds everything ready.

        Raises:
            ArtifactError: a tensor at a cut is larger than any request may be.
            FrameTooLargeError: so are its coefficients.
        """
        for position in range(len(self._chain)):
            specs = self.artifact.manifest.egress(position)
            for spec in specs:
                if spec.elements() > self._max_elements:
                    raise ArtifactError(
                        f"{spec.name} has {spec.elements()} elements, the limit is"
                        f" {self._max_elements} (--max-elements)"
                    )
            zeros = {spec.name: np.zeros(spec.concrete(), spec.dtype) for spec in specs}
            self._chain.run(zeros, position, len(self._chain))
            self._warm_up_codec(position, list(zeros.values()))

    def _warm_up_codec(self, position: int, tensors: Sequence[Array]) -> None:
        """Decode with every calibrated rate once, so that its matrices are there."""
        cuts = self.artifact.manifest.cuts
        calibration = cuts[position - 1].calibration if position else None
        for rate in calibration.rates if calibration else ():
            codec = self._codecs.decoder(StepAnsCodec.number, position, rate.parameter)
            for index, tensor in enumerate(tensors):
                self._refuse_padding(codec, tensor.shape, index)
                payload = memoryview(codec.encode(tensor, index))
                codec.decode(payload, tensor.shape, str(tensor.dtype), index)

    def check(self, request: Request) -> Codec:
        """Refuse what does not fit the artifact, before anything is allocated.

        Returns:
            The codec that decodes the request.

        Raises:
            UnknownArtifactError: the request was made for another artifact.
            ContractError: no such cut, one that is withdrawn, or shapes that contradict the
                manifest.
            CodecError: an unknown codec, a parameter that it does not take, or a shape that its
                tables do not fit.
            FrameTooLargeError: a tensor of more coefficients than the limit on elements.
        """
        if request.artifact_id != self.artifact.id:
            raise UnknownArtifactError(
                f"the request is for artifact {request.artifact_id.hex()}, this service holds"
                f" {self.artifact.id.hex()}"
            )
        if request.cut >= len(self._chain):
            raise ContractError(f"no tail after position {request.cut} of {len(self._chain)}")
        if isinstance(self.artifact.manifest.defence(request.cut), Withdrawn):
            where = self.artifact.manifest.positions[request.cut]
            raise ContractError(f"cut {where} is withdrawn: nothing may cross there")
        codec = self._codecs.decoder(request.codec, request.cut, request.parameter)
        shapes = [section.shape for section in request.sections]
        specs = self._specs(request.cut, codec)
        problem = mismatch(specs, shapes)
        if problem:
            raise ContractError(problem)
        batches = [
            shape[0]
            for spec, shape in zip(specs, shapes, strict=True)
            if isinstance(next(iter(spec.shape), 0), str)
        ]
        largest = max(batches, default=0)
        if largest > self._max_batch:
            raise ContractError(f"a batch of {largest} is over the limit of {self._max_batch}")
        for index, shape in enumerate(shapes):
            self._refuse_padding(codec, shape, index)
        return codec

    def _refuse_padding(self, codec: Codec, shape: tuple[int, ...], index: int) -> None:
        """Refuse narrow maps: each pixel of a row may be padded to a block of 256 coefficients."""
        count = codec.elements(shape, index) if isinstance(codec, StepAnsCodec) else 0
        if count > self._max_elements:
            raise FrameTooLargeError(
                f"{count} coefficients for the shape {list(shape)}, the limit is"
                f" {self._max_elements} (--max-elements)"
            )

    def _specs(self, position: int, codec: Codec) -> tuple[TensorSpec, ...]:
        """Specs of what travels: the egress tensors, or pixels for a picture codec."""
        manifest = self.artifact.manifest
        if not codec.takes_pixels:
            return manifest.egress(position)
        if position != 0 or manifest.preprocess is None or len(manifest.inputs) != 1:
            raise ContractError(f"codec {codec.name} carries pictures, at the input only")
        crop = manifest.preprocess.crop
        return (TensorSpec(name=manifest.inputs[0].name, dtype="uint8", shape=(1, *crop, 3)),)

    def answer(
        self,
        request: Request,
        queue_s: float = 0.0,
        load: float = 0.0,
        references: References | None = None,
    ) -> Reply:
        """Finish one request.

        Args:
            request: a decoded frame.
            queue_s: seconds it waited, for the reply.
            load: share of execution slots in use, for the reply.
            references: what was decoded before on the request's stream, None where there is none.

        Raises:
            ContractError: the request does not fit the artifact.
            CodecError: a payload that its codec cannot decode.
            FrameTooLargeError: a tensor of too many coefficients.
            ReferenceMissingError: a payload that builds on what is not in `references`.
            RuntimeFailureError: the tail failed.
        """
        started = time.perf_counter()
        tensors = self._decode(request, self.check(request), references)
        decoded = time.perf_counter()
        outputs = self._chain.run(tensors, request.cut, len(self._chain))
        codec = TOP if request.wants_top else WHOLE
        timings = Timings(queue_s, decoded - started, time.perf_counter() - decoded, load)
        return Reply(
            request_id=request.request_id,
            artifact_id=request.artifact_id,
            cut=request.cut,
            codec=codec.number,
            sections=self._sections(outputs, codec),
            timings=timings,
        )

    def _decode(
        self, request: Request, codec: Codec, references: References | None
    ) -> dict[str, Array]:
        specs = self._specs(request.cut, codec)
        tensors = {}
        for index, (spec, section) in enumerate(zip(specs, request.sections, strict=True)):
            payload = memoryview(section.payload)
            tensors[spec.name] = codec.decode(payload, section.shape, spec.dtype, index, references)
        preprocess = self.artifact.manifest.preprocess
        if not codec.takes_pixels or preprocess is None:
            return tensors
        return {name: normalise(pixels[0], preprocess) for name, pixels in tensors.items()}

    def _sections(self, outputs: Mapping[str, Array], codec: OutputCodec) -> tuple[Section, ...]:
        specs = self.artifact.manifest.outputs
        arrays = [outputs[spec.name] for spec in specs]
        if any(not isinstance(array, np.ndarray) for array in arrays):
            raise SplitServeError("the model answers with something other than dense tensors")
        return tuple(Section(array.shape, codec.encode(array)) for array in arrays)

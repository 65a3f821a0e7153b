"""The shared error tree. Errors carry numbers (claimed, limit) and know no HTTP.

SplitServeError
├── UsageError              a wrong option, path or name; the message names the fix
├── ArtifactError           a folder that cannot be trusted or read
│   └── IntegrityError      a file differs from its hash
├── GraphError              a model that cannot be split, with the node and the reason
├── RuntimeFailureError     ONNX Runtime refused to load or to run
├── CodecError              features or a payload that the codec cannot take
│   └── ReferenceMissingError   it builds on a frame that was not decoded here
├── PictureError            bytes that are no picture we read
├── WireError               bytes that are no frame
│   └── FrameTooLargeError  a frame claims more bytes than the limit allows
├── ContractError           a well-formed request that does not fit the artifact
│   └── UnknownArtifactError    made for an artifact that the service does not hold
├── OverloadedError         the service has no room for the request; it may be tried again
│   └── DrainingError           the service is about to stop
├── ExpiredError            the request's deadline passed before its work began
├── LinkError               the cloud cannot be reached, or did not answer in time
└── MeasurementError        a measurement that must not be quoted
"""


class SplitServeError(Exception):
    """Anything splitserve raises on purpose."""


class UsageError(SplitServeError):
    """A wrong option, path or name; the message names the fix."""


class ArtifactError(SplitServeError):
    """An artifact folder that cannot be read or does not describe itself."""


class IntegrityError(ArtifactError):
    """A file of the artifact differs from the hash in its manifest."""


class GraphError(SplitServeError):
    """A model that cannot be split; names the node and the reason."""


class RuntimeFailureError(SplitServeError):
    """ONNX Runtime refused to load or to run a graph."""


class CodecError(SplitServeError):
    """Features or a payload that the codec cannot take."""


class ReferenceMissingError(CodecError):
    """A payload builds on a frame that was not, or is no longer, decoded here; send it whole."""


class PictureError(SplitServeError):
    """Bytes that are not a picture we read."""


class WireError(SplitServeError):
    """Bytes that are not a valid frame."""


class FrameTooLargeError(WireError):
    """A frame claims more bytes than the limit allows."""


class ContractError(SplitServeError):
    """A well-formed request whose cut, shapes or codec do not fit the artifact."""


class UnknownArtifactError(ContractError):
    """A request made for an artifact that the service does not hold."""


class OverloadedError(SplitServeError):
    """The service has no room for the request now; the caller may try again.

    Args:
        message: what is full.
        retry_after_s: seconds after which a new try makes sense.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DrainingError(OverloadedError):
    """The service is about to stop and takes no new work."""


class ExpiredError(SplitServeError):
    """The request's deadline passed before its work began."""


class LinkError(SplitServeError):
    """The cloud cannot be reached, or did not answer in time."""


class MeasurementError(SplitServeError):
    """A measurement that must not be quoted: its instrument failed, or a process died."""

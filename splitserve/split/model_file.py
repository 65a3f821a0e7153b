"""ONNX models as files: weights that lie beside the model, and models over protobuf's 2 GiB.

A file with external data counts as one model: what its sha256 is and what may be read are settled
here. Nothing outside the model's own folder is ever opened.
"""

import hashlib
import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx.external_data_helper as external
from google.protobuf.message import DecodeError, EncodeError

from splitserve.errors import GraphError, UsageError
from splitserve.tensors import DTYPES

SMALL_BYTES = 4096  # shape inference reads axes, sizes and scales; they are never larger
WEIGHTS = "weights.bin"


def read_model(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file with everything it keeps in files beside it.

    Raises:
        UsageError: no such file.
        GraphError: not an ONNX model, or one whose external weights are missing, cut short or
            outside the model's folder.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
        tensors = _external_tensors(model)
        for tensor in tensors:
            _refuse_unreadable(path, tensor)
        onnx.checker.check_model(str(path) if tensors else model)  # by path there is no 2 GiB limit
        if tensors:
            external.load_external_data_for_model(model, str(path.parent))
    except (DecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        raise GraphError(f"{path}: not a valid ONNX model: {error}") from error
    return model


def model_sha256(path: Path) -> str:
    """Hash a model: its file's SHA-256, or where weights lie beside it, one over all files.

    That one is the SHA-256 of the files' own digests in lower-case hex, a line each: the ONNX
    file's, then those of the external files in the order of their locations' code points.
    """
    model = onnx.load(str(path), format="protobuf", load_external_data=False)
    places = sorted({external.ExternalDataInfo(t).location for t in _external_tensors(model)})
    digests = [_file_sha256(file) for file in (path, *(path.parent / place for place in places))]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _external_tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Every tensor of a model, in attributes and bodies too, whose values lie in another file."""
    nodes = [*model.graph.node, *(node for body in model.functions for node in body.node)]
    tensors = [*model.graph.initializer, *_attribute_tensors(nodes)]
    return [tensor for tensor in tensors if external.uses_external_data(tensor)]


def _attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for body in (attribute.g, *attribute.graphs):
            yield from body.initializer
            yield from _attribute_tensors(body.node)


def _refuse_unreadable(path: Path, tensor: onnx.TensorProto) -> None:
    info = external.ExternalDataInfo(tensor)
    where = f"{path}: the weights of tensor {tensor.name!r} lie in {info.location!r}"
    folder = path.parent.resolve()
    file = (folder / info.location).resolve()
    if not info.location or not file.is_relative_to(folder):
        raise GraphError(f"{where}, outside the model's folder: only files beside it are read")
    if not file.is_file():
        raise GraphError(f"{where}, which is missing: keep that file beside the model")
    start, size = info.offset or 0, file.stat().st_size
    end = start + max(info.length or 0, _least_bytes(path, tensor))
    if end > size:
        raise GraphError(f"{where} up to byte {end}, but it has {size} bytes: it is cut short")


def _least_bytes(path: Path, tensor: onnx.TensorProto) -> int:
    """Bytes of a tensor's values; 0 for packed types, which nothing here judges.

    Raises:
        GraphError: a type that ONNX does not have.
    """
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        raise GraphError(
            f"{path}: tensor {tensor.name!r} is of unknown type {tensor.data_type}"
        ) from None
    is_plain = dtype.name in DTYPES
    return math.prod(tensor.dims) * dtype.itemsize if is_plain else 0


def serialise(model: onnx.ModelProto, what: str) -> bytes:
    """Return a model's bytes, the same ones for the same model.

    Raises:
        GraphError: over 2 GiB, which protobuf cannot hold.
    """
    try:
        content: bytes = model.SerializeToString(deterministic=True)
    except EncodeError as error:
        raise GraphError(
            f"{what} is over the 2 GiB that one ONNX file can hold; cut the model at more places"
            " (--cuts), or store its weights as float16"
        ) from error
    return content


def without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a model but for the values of its large initialisers; dtypes and dims stay."""
    light = onnx.ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions
    )
    graph, old = light.graph, model.graph
    graph.name = old.name
    graph.node.extend(old.node)
    for name in ("input", "output", "value_info"):
        getattr(graph, name).extend(getattr(old, name))
    for tensor in old.initializer:
        if len(tensor.raw_data) > SMALL_BYTES:
            hollow = graph.initializer.add(name=tensor.name, data_type=tensor.data_type)
            hollow.dims.extend(tensor.dims)
            hollow.data_location = onnx.TensorProto.EXTERNAL
        else:
            graph.initializer.append(tensor)
    return light


@contextmanager
def runnable(model: onnx.ModelProto) -> Iterator[bytes | Path]:
    """Give what ONNX Runtime loads: bytes, or over 2 GiB a file with its weights beside it.

    The file lies in a temporary folder and is gone when the context ends.
    """
    try:
        content: bytes | None = model.SerializeToString()
    except EncodeError:
        content = None
    if content is not None:
        yield content
        return
    with tempfile.TemporaryDirectory() as folder:
        yield write_beside(model, Path(folder))


def write_beside(model: onnx.ModelProto, folder: Path) -> Path:
    """Write model.onnx with its large weights in a file of their own; the model stays as it is."""
    light = without_weights(model)
    with (folder / WEIGHTS).open("wb") as file:
        for hollow, full in zip(light.graph.initializer, model.graph.initializer, strict=True):
            if hollow.data_location == onnx.TensorProto.EXTERNAL:
                facts = {"location": WEIGHTS, "offset": file.tell(), "length": len(full.raw_data)}
                for key, value in facts.items():
                    hollow.external_data.add(key=key, value=str(value))
                file.write(full.raw_data)
    path = folder / "model.onnx"
    path.write_bytes(serialise(light, "the graph without its weights"))
    return path

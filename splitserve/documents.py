"""JSON documents that one command writes and another reads."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from splitserve.errors import UsageError

Document = TypeVar("Document", bound=BaseModel)


def read_document(path: Path, kind: type[Document], limit_bytes: int, fix: str) -> Document:
    """Read one document of a kind.

    Args:
        path: its file.
        kind: what it must be.
        limit_bytes: largest file that is read.
        fix: the command that makes one, for the message.

    Raises:
        UsageError: no such file, too large a one, or another kind; the message names the fix.
    """
    advice = f"make one with: {fix}"
    try:
        with path.open("rb") as file:
            content = file.read(limit_bytes + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; {advice}") from error
    if len(content) > limit_bytes:
        raise UsageError(f"{path}: over the limit of {limit_bytes} bytes")
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        raise UsageError(f"{path}: {where}: {first['msg']}; {advice}") from error

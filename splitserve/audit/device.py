"""Where the attacks compute: torch's default device, a GPU when the command found one."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from splitserve.errors import UsageError


def choose_device(asked: str) -> str:
    """Make the processor or a GPU the default.

    Args:
        asked: `auto` takes a GPU when there is one; else the name of a torch device.

    Returns:
        Its name.

    Raises:
        UsageError: no such device here.
    """
    name = asked
    if asked == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise UsageError(f"--device {asked}: {str(error).splitlines()[0]}") from error
    torch.set_default_device(None if name == "cpu" else name)  # a default device slows every call
    return name


def to_tensor(values: npt.NDArray[Any]) -> Tensor:
    """An array on the default device; on the processor it shares the array's memory."""
    return torch.from_numpy(np.asarray(values, order="C")).to(torch.get_default_device())


def to_array(values: Tensor) -> npt.NDArray[Any]:
    """A tensor's values on the processor."""
    return np.asarray(values.detach().cpu().numpy())

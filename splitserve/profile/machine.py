"""What this machine is, and what this process holds."""

import os
import platform
import re
import resource
from importlib.metadata import version
from pathlib import Path

from splitserve.profile.document import Machine

TOOLS = ("splitserve", "numpy", "onnxruntime", "pillow", "zstandard")


def describe_machine() -> Machine:
    """Facts that explain a profile; no name, no address."""
    return Machine(
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        processor=_processor(),
        cores=usable_cores(),
        memory_bytes=_memory_bytes(),
    )


def tool_versions() -> dict[str, str]:
    """Versions of what computes."""
    return {name: version(name) for name in TOOLS}


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def resident_bytes() -> int | None:
    """Memory that this process holds now; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * resource.getpagesize()


def _processor() -> str:
    """The processor's name; ARM boards tell it as the device tree's model."""
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    if found:
        return found.group(1).strip()
    return _read("/proc/device-tree/model").strip("\0 \n") or platform.machine() or "unknown"


def _memory_bytes() -> int | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return int(found.group(1)) * 1024 if found else None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""

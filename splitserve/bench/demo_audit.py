"""The demo's last act, on demand: what the cloud could reconstruct of the pictures it never got."""

import contextlib
import io
import tempfile
from pathlib import Path

from splitserve.artifact import Artifact
from splitserve.audit.command import Options, run
from splitserve.bench.samples import write_views

ROUNDS = 14  # views of each sample: enough pictures for the quick budget
SEED = 30_000  # far from the demo's and the calibration's
SIDE = 96


def audit_demo(artifact: Artifact, cut: str, build: Path, *, is_quiet: bool) -> Path:
    """Attack one cut of the demo's artifact, at reduced size and on the quick budget.

    Args:
        artifact: calibrated.
        cut: to attack.
        build: folder; the report goes to `audit` there.
        is_quiet: print nothing to standard output.

    Returns:
        The page.
    """
    target = build / "audit"
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        write_views(Path(folder), ROUNDS, SEED)
        if is_quiet:
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        run(
            Options(
                artifact=artifact.root,
                images=Path(folder),
                cut=[cut],
                attack=["data-free", "optimise"],
                budget="quick",
                size=SIDE,
                output=target,
            )
        )
    return target / "audit.html"

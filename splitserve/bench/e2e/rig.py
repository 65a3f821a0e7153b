"""The machinery: one service, and for every arm an agent process behind a link of its own.

A link of its own for each arm, for an adaptive agent may still send when its answer is out.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitserve.bench.e2e.arms import Arm
from splitserve.bench.link import Link, LinkSettings
from splitserve.bench.process import Process, running, running_service
from splitserve.errors import MeasurementError

ANSWER_S = 120.0
ALONE = ("--no-temporal", "--deadline-s", "60", "--log-level", "ERROR")


@dataclass(frozen=True, slots=True)
class Rig:
    """Everything that runs, by the arm's name."""

    agents: Mapping[str, Process]
    links: Mapping[str, Link]

    def set_link(self, settings: LinkSettings) -> None:
        """Change the link of every arm."""
        for link in self.links.values():
            link.settings = settings

    def ask(self, name: str, picture: Path) -> dict[str, Any]:
        """Have one picture answered.

        Raises:
            MeasurementError: the agent gave no answer.
        """
        agent = self.agents[name]
        agent.say(str(picture))
        answer = agent.hear(ANSWER_S)
        if answer["error"]:
            raise MeasurementError(f"{name}: {picture.name}: {answer['error']}")
        return answer


@contextlib.contextmanager
def rigged(artifact: Path, arms: Sequence[Arm], plans: Path, flags: Sequence[str]) -> Iterator[Rig]:
    """Start the service, and every arm's link and agent; end them whatever happens.

    Args:
        artifact: folder.
        arms: to run.
        plans: the plan file of the adaptive agent.
        flags: for all agents.
    """
    with contextlib.ExitStack() as stack:
        _, host, port = stack.enter_context(running_service(artifact))
        links = {arm.name: stack.enter_context(Link((host, port), LinkSettings())) for arm in arms}
        agents = {}
        for arm in arms:
            url = "http://{}:{}".format(*links[arm.name].address)
            words = ("--artifact", str(artifact), "--cloud", url, "--source", "-")
            agents[arm.name] = stack.enter_context(
                running("agent", *words, *ALONE, *flags, *arm.flags(plans))
            )
        yield Rig(agents, links)

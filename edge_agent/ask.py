"""One request to the cloud: a frame there, an answer back, and what both cost."""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

from edge_agent.compute import FINISH, ComputeThread
from edge_agent.estimate import Transfer
from edge_agent.head import Head, Plan, Work
from edge_agent.history import History
from edge_agent.source import Item
from edge_agent.uplink import Heard, Uplink
from splitserve.codec import reply_codec
from splitserve.errors import ContractError, LinkError
from splitserve.tensors import Array, mismatch
from splitserve.wire import Refusal, RefusalCode, Reply, Request, Timings, encode_frame

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CloudAnswer:
    """Outputs from the cloud and what they cost.

    Args:
        outputs: by name.
        bytes_down: bytes of the answer's frame.
        stages_s: seconds of each stage.
        timings: the service's.
        transfer: the frame on the link; None where its time tells nothing of the link, because a
            connection was opened for it or it was sent twice.
    """

    outputs: Mapping[str, Array]
    bytes_down: int
    stages_s: Mapping[str, float]
    timings: Timings
    transfer: Transfer | None


@dataclass(slots=True)
class Begun:
    """One input under way.

    Args:
        item: the input.
        plan: the plan it began with.
        request_id: 16 bytes.
        started: clock when it was taken.
        option: the plan's number where plans are chosen for each request.
        is_probe: whether it is answered here and uploaded after that, to learn of the link.
        answering: the plan that answers it, where that is not `plan`.
        work: what its head made, None where that failed.
        error: why nobody can answer it.
    """

    item: Item
    plan: Plan
    request_id: bytes
    started: float
    option: int = 0
    is_probe: bool = False
    answering: Plan | None = None
    work: Work | None = None
    error: str | None = None

    @property
    def facts(self) -> dict[str, str]:
        """What a log line says of it."""
        return {"input": self.item.name, "request_id": self.request_id.hex()}


class Asker:
    """Asks the cloud to finish what the head has begun.

    Args:
        head: the device's side of the artifact.
        uplink: the way to the cloud.
        compute: where frames are encoded again.
        history: what frames may build on; None where each stands alone.
    """

    def __init__(
        self, head: Head, uplink: Uplink, compute: ComputeThread, history: History | None
    ) -> None:
        self._head = head
        self._uplink = uplink
        self._compute = compute
        self._history = history

    @property
    def connection(self) -> int | None:
        """Number of the connection in use."""
        return self._uplink.connection

    async def ask(self, work: Work, begun: Begun, left_s: float) -> CloudAnswer | Refusal:
        """Send what the head made, wait for the outputs.

        Args:
            work: what the head made.
            begun: whose it is.
            left_s: seconds until nobody waits any more.

        Raises:
            LinkError: no answer in time, or the connection failed.
            ContractError: the answer does not fit the artifact.
            CodecError: the answer cannot be decoded.
        """
        until = time.perf_counter() + left_s
        if work.coded and work.coded.built_on not in (None, self._uplink.connection):
            await self._make_whole(work, begun)
        connection, bytes_before = self._uplink.connection, work.bytes_up
        sent, encoded_s = time.perf_counter(), work.stages_s.get("encode_whole", 0.0)
        heard, frame_bytes = await self._send(work, begun, until)
        reply, now = heard.frame, time.perf_counter()
        if isinstance(reply, Refusal):
            return reply
        if self._history is not None and work.coded is not None:
            self._history.acknowledge(work.position, work.coded, heard.connection)
        times = reply.timings
        inside_s = times.queue_s + times.decode_s + times.compute_s
        inside_s += work.stages_s.get("encode_whole", 0.0) - encoded_s  # a second try, made here
        network_s = max(0.0, now - sent - inside_s)
        is_clean = connection == heard.connection and work.bytes_up - bytes_before == frame_bytes
        stages_s = {
            "network": network_s,
            "queue": times.queue_s,
            "cloud_decode": times.decode_s,
            "tail": times.compute_s,
        }
        transfer = Transfer(now, frame_bytes, network_s) if is_clean else None
        outputs = read_outputs(self._head, reply)
        return CloudAnswer(outputs, heard.size_bytes, stages_s, times, transfer)

    async def _send(self, work: Work, begun: Begun, until: float) -> tuple[Heard, int]:
        """Send a frame; where the cloud knows nothing of what it builds on, send it whole."""
        heard, frame_bytes = await self._send_once(work, begun, until)
        is_lost = isinstance(heard.frame, Refusal) and heard.frame.code is RefusalCode.REFERENCE
        if not is_lost or work.coded is None or work.coded.built_on is None:
            return heard, frame_bytes
        logger.info("the cloud knows no earlier frame, sending a whole one", extra=begun.facts)
        if self._history is not None:
            self._history.forget()
        await self._make_whole(work, begun)
        return await self._send_once(work, begun, until)

    async def _send_once(self, work: Work, begun: Begun, until: float) -> tuple[Heard, int]:
        left_s = until - time.perf_counter()
        if left_s <= 0:
            raise LinkError("no time for the cloud: the deadline has passed")
        frame = encode_frame(
            Request(
                request_id=begun.request_id,
                artifact_id=self._head.artifact.id,
                cut=begun.plan.position,
                codec=begun.plan.codec.number,
                sections=work.sections,
                deadline_s=left_s,
                parameter=begun.plan.codec.parameter,
                wants_top=True,  # an answer names the best classes, and nothing else of the outputs
            )
        )
        work.bytes_up += len(frame)
        return await self._uplink.ask(frame, begun.request_id, left_s), len(frame)

    async def _make_whole(self, work: Work, begun: Begun) -> None:
        await self._compute.run(FINISH, self._head.make_whole, work, begun.plan)

    async def close(self) -> None:
        """Give the connections back."""
        await self._uplink.close()


def read_outputs(head: Head, reply: Reply) -> dict[str, Array]:
    """Take the model's outputs out of a reply.

    Raises:
        ContractError: the reply does not fit the artifact.
        CodecError: a payload that cannot be decoded.
    """
    manifest = head.artifact.manifest
    specs, shapes = manifest.outputs, [section.shape for section in reply.sections]
    # With the input before it, a free dimension of the answer has the size that was sent.
    problem = mismatch(specs, shapes) or mismatch(
        (*manifest.inputs, *specs), [head.input_shape, *shapes]
    )
    if problem:
        raise ContractError(f"the reply does not fit the artifact: {problem}")
    codec = reply_codec(reply.codec)
    return {
        spec.name: codec.decode(memoryview(section.payload), section.shape, spec.dtype)
        for spec, section in zip(specs, reply.sections, strict=True)
    }

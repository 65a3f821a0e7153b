"""Source to sink: head, frame, cloud, and the edge itself where the cloud is too late."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass

from edge_agent.answer import Answer, top_labels
from edge_agent.compute import FINISH, HEAD, ComputeThread
from edge_agent.fallback import Breaker
from edge_agent.head import Head, Plan, Work
from edge_agent.history import History
from edge_agent.source import Item
from edge_agent.uplink import Heard, Uplink
from splitserve.codec import codec_by_number
from splitserve.errors import ContractError, LinkError, SplitServeError
from splitserve.tensors import Array, mismatch
from splitserve.wire import Refusal, RefusalCode, Reply, Request, encode_frame

logger = logging.getLogger(__name__)

Sink = Callable[[Answer], Awaitable[None]]

RESERVE_FACTOR = 1.5
RESERVE_S = 0.02


@dataclass(frozen=True, slots=True)
class CloudAnswer:
    """Outputs from the cloud and what they cost."""

    outputs: Mapping[str, Array]
    bytes_down: int
    stages_s: Mapping[str, float]


@dataclass(slots=True)
class Begun:
    """One input under way.

    Args:
        item: the input.
        plan: the plan it began with.
        request_id: 16 bytes.
        started: clock when it was taken.
        work: what its head made, None where that failed.
        error: why nobody can answer it.
    """

    item: Item
    plan: Plan
    request_id: bytes
    started: float
    work: Work | None = None
    error: str | None = None

    @property
    def facts(self) -> dict[str, str]:
        """What a log line says of it."""
        return {"input": self.item.name, "request_id": self.request_id.hex()}


class Agent:
    """Answers inputs, each exactly once and, when the device can, within its deadline.

    `plan` may be replaced between two requests; a request keeps the plan it began with.

    Args:
        head: the device's side of the artifact.
        plan: where to cut first.
        uplink: way to the cloud, None to answer here alone.
        deadline_s: seconds from taking an input up to its answer.
        breaker: decides when to leave the cloud alone.
        temporal: let features be coded by earlier ones of the same stream.
    """

    def __init__(
        self,
        head: Head,
        plan: Plan,
        uplink: Uplink | None,
        deadline_s: float,
        breaker: Breaker | None = None,
        *,
        temporal: bool = True,
    ) -> None:
        self.plan = plan
        self._head = head
        self._uplink = uplink
        self._deadline_s = deadline_s
        self._breaker = breaker or Breaker()
        self._history = History(lambda: uplink.connection) if temporal and uplink else None
        self._finish_s = [0.0] * (len(head.artifact.manifest.segments) + 1)
        self._asking = 0
        self._compute = ComputeThread()

    async def warm_up(self) -> None:
        """Run the model once and learn how long finishing on the device takes from each cut."""
        self._finish_s = await self._compute.run(HEAD, self._head.warm_up, self.plan)

    async def run(self, source: AsyncIterator[Item], in_flight: int, sink: Sink) -> None:
        """Answer a source's inputs; each answer goes to the sink as soon as it is there.

        The head of an input runs before the next input is taken, so that no clock starts early.

        Args:
            source: the inputs.
            in_flight: inputs that may be under way at once.
            sink: takes the answers, in the order in which they are ready.
        """
        room = asyncio.Semaphore(in_flight)

        async def finish(begun: Begun) -> None:
            await sink(await self._complete(begun))
            room.release()

        try:
            async with asyncio.TaskGroup() as group:
                await room.acquire()
                async for item in source:
                    group.create_task(finish(await self._begin(item)))
                    await room.acquire()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def answer(self, item: Item) -> Answer:
        """Answer one input; what cannot be read or computed gives an answer with an error."""
        return await self._complete(await self._begin(item))

    async def _begin(self, item: Item) -> Begun:
        """Read an input and run its head."""
        begun = Begun(item, self.plan, os.urandom(16), time.perf_counter())
        try:
            content = await asyncio.to_thread(item.read)
            arguments = content, begun.plan, self._history
            begun.work = await self._compute.run(HEAD, self._head.run, *arguments)
        except SplitServeError as error:
            begun.error = str(error)
        except Exception:
            logger.exception("the head failed", extra=begun.facts)
            begun.error = "internal error in the head; the log tells more"
        return begun

    async def _complete(self, begun: Begun) -> Answer:
        """Get the outputs from the cloud, or else compute them here."""
        work, cloud, reason = begun.work, None, None
        if work is None:
            return self._no_answer(begun)
        try:
            asked = time.perf_counter()
            cloud, reason = await self._from_cloud(work, begun)
            if reason:
                work.stages_s["cloud_wait"] = time.perf_counter() - asked
            outputs = cloud.outputs if cloud else await self._finish(work)
        except SplitServeError as error:
            begun.error = str(error)
            return self._no_answer(begun)
        except Exception:
            logger.exception("finishing failed", extra=begun.facts)
            begun.error = "internal error; the log tells more"
            return self._no_answer(begun)
        manifest = self._head.artifact.manifest
        return Answer(
            id=begun.item.name,
            request_id=begun.request_id.hex(),
            plan=self._plan_facts(begun.plan),
            answered_by="cloud" if cloud else "edge",
            labels=top_labels(outputs[manifest.outputs[0].name], manifest.labels),
            fallback=reason,
            bytes_up=work.bytes_up,
            bytes_down=cloud.bytes_down if cloud else 0,
            stages_s=work.stages_s | dict(cloud.stages_s if cloud else {}),
            total_s=time.perf_counter() - begun.started,
            native_s=work.native_s,
        )

    def _no_answer(self, begun: Begun) -> Answer:
        logger.warning("no answer", extra=begun.facts | {"why": begun.error})
        return Answer(
            id=begun.item.name,
            request_id=begun.request_id.hex(),
            plan=self._plan_facts(begun.plan),
            answered_by="nobody",
            error=begun.error,
            total_s=time.perf_counter() - begun.started,
        )

    def _plan_facts(self, plan: Plan) -> dict[str, str]:
        codec = "none" if self._head.is_local(plan) else plan.codec.name
        return {"cut": plan.cut, "codec": codec}

    async def _finish(self, work: Work) -> Mapping[str, Array]:
        outputs = await self._compute.run(FINISH, self._head.finish, work)
        self._finish_s[work.position] = work.stages_s["edge_tail"]
        return outputs

    def _reserve_s(self, work: Work) -> float:
        """Seconds to keep back for finishing here.

        Whoever else waits for the cloud may have to be finished first, and one head may be
        running: all computing shares one thread.
        """
        head_s = sum(work.stages_s.values())
        return RESERVE_FACTOR * (self._asking * self._finish_s[work.position] + head_s) + RESERVE_S

    async def _from_cloud(self, work: Work, begun: Begun) -> tuple[CloudAnswer | None, str | None]:
        """Ask the cloud while there is time; otherwise say why not."""
        if self._head.is_local(begun.plan):
            return None, None
        if self._uplink is None:
            return None, "no cloud is configured"
        if work.problem:
            return self._fall_back(begun, work.problem)
        self._asking += 1
        try:
            left_s = begun.started + self._deadline_s - time.perf_counter() - self._reserve_s(work)
            if left_s <= 0:
                return None, f"no time for the cloud: the deadline is {self._deadline_s} s"
            if not self._breaker.allows():
                return None, "the cloud is away"
            return await self._try_cloud(self._uplink, work, begun, left_s)
        finally:
            self._asking -= 1

    async def _try_cloud(
        self, uplink: Uplink, work: Work, begun: Begun, left_s: float
    ) -> tuple[CloudAnswer | None, str | None]:
        try:
            answer = await self._ask(uplink, work, begun, left_s)
        except Exception as error:
            self._breaker.failed()
            if not isinstance(error, SplitServeError):
                logger.exception("asking the cloud failed", extra=begun.facts)
                return None, f"internal error ({type(error).__name__}); the log tells more"
            return self._fall_back(begun, str(error))
        if isinstance(answer, Refusal):
            self._breaker.failed(answer.retry_after_s)
            return self._fall_back(begun, f"{answer.code.name}: {answer.message}")
        self._breaker.succeeded()
        return answer, None

    def _fall_back(self, begun: Begun, reason: str) -> tuple[None, str]:
        logger.warning("fallback", extra=begun.facts | {"why": reason})
        return None, reason

    async def _ask(
        self, uplink: Uplink, work: Work, begun: Begun, left_s: float
    ) -> CloudAnswer | Refusal:
        until = time.perf_counter() + left_s
        if work.coded and work.coded.built_on not in (None, uplink.connection):
            await self._make_whole(work, begun)
        sent, computed_s = time.perf_counter(), sum(work.stages_s.values())
        heard = await self._send(uplink, work, begun, until)
        reply = heard.frame
        if isinstance(reply, Refusal):
            return reply
        if self._history is not None and work.coded is not None:
            self._history.acknowledge(work.position, work.coded, heard.connection)
        times, round_trip_s = reply.timings, time.perf_counter() - sent
        inside_s = times.queue_s + times.decode_s + times.compute_s
        inside_s += sum(work.stages_s.values()) - computed_s  # what a second try cost here
        stages_s = {
            "network": max(0.0, round_trip_s - inside_s),
            "queue": times.queue_s,
            "cloud_decode": times.decode_s,
            "tail": times.compute_s,
        }
        return CloudAnswer(self._outputs(reply), heard.size_bytes, stages_s)

    async def _send(self, uplink: Uplink, work: Work, begun: Begun, until: float) -> Heard:
        """Send a frame; where the cloud knows nothing of what it builds on, send it whole."""
        heard = await self._send_once(uplink, work, begun, until)
        is_lost = isinstance(heard.frame, Refusal) and heard.frame.code is RefusalCode.REFERENCE
        if not is_lost or work.coded is None or work.coded.built_on is None:
            return heard
        logger.info("the cloud knows no earlier frame, sending a whole one", extra=begun.facts)
        if self._history is not None:
            self._history.forget()
        await self._make_whole(work, begun)
        return await self._send_once(uplink, work, begun, until)

    async def _send_once(self, uplink: Uplink, work: Work, begun: Begun, until: float) -> Heard:
        left_s = until - time.perf_counter()
        if left_s <= 0:
            raise LinkError(f"no time for the cloud: the deadline is {self._deadline_s} s")
        frame = encode_frame(
            Request(
                request_id=begun.request_id,
                artifact_id=self._head.artifact.id,
                cut=begun.plan.position,
                codec=begun.plan.codec.number,
                sections=work.sections,
                deadline_s=left_s,
                parameter=begun.plan.codec.parameter,
            )
        )
        work.bytes_up += len(frame)
        return await uplink.ask(frame, begun.request_id, left_s)

    async def _make_whole(self, work: Work, begun: Begun) -> None:
        await self._compute.run(FINISH, self._head.make_whole, work, begun.plan)

    def _outputs(self, reply: Reply) -> dict[str, Array]:
        manifest = self._head.artifact.manifest
        specs, shapes = manifest.outputs, [section.shape for section in reply.sections]
        # With the input before it, a free dimension of the answer has the size that was sent.
        problem = mismatch(specs, shapes) or mismatch(
            (*manifest.inputs, *specs), [self._head.input_shape, *shapes]
        )
        if problem:
            raise ContractError(f"the reply does not fit the artifact: {problem}")
        codec = codec_by_number(reply.codec)
        return {
            spec.name: codec.decode(memoryview(section.payload), section.shape, spec.dtype)
            for spec, section in zip(specs, reply.sections, strict=True)
        }

    async def close(self) -> None:
        """Give threads and connections back."""
        self._compute.close()
        if self._uplink is not None:
            await self._uplink.close()

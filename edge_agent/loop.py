"""Source to sink: head, frame, cloud, and the edge itself where the cloud is too late."""

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from edge_agent.answer import Answer, top_labels
from edge_agent.fallback import Breaker
from edge_agent.head import Head, Plan, Work
from edge_agent.source import Item
from edge_agent.uplink import Uplink
from splitserve.codec import codec_by_number
from splitserve.errors import ContractError, SplitServeError
from splitserve.tensors import Array, mismatch
from splitserve.wire import Refusal, Reply, Request, encode_frame

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

RESERVE_FACTOR = 1.5
RESERVE_S = 0.02


@dataclass(frozen=True, slots=True)
class CloudAnswer:
    """Outputs from the cloud and what they cost."""

    outputs: Mapping[str, Array]
    bytes_up: int
    bytes_down: int
    stages_s: Mapping[str, float]


class Agent:
    """Answers inputs, each exactly once and, when the device can, within its deadline.

    `plan` may be replaced between two requests; a request keeps the plan it began with.

    Args:
        head: the device's side of the artifact.
        plan: where to cut first.
        uplink: way to the cloud, None to answer here alone.
        deadline_s: seconds from taking an input up to its answer.
        breaker: decides when to leave the cloud alone.
    """

    def __init__(
        self,
        head: Head,
        plan: Plan,
        uplink: Uplink | None,
        deadline_s: float,
        breaker: Breaker | None = None,
    ) -> None:
        self.plan = plan
        self._head = head
        self._uplink = uplink
        self._deadline_s = deadline_s
        self._breaker = breaker or Breaker()
        self._s_per_mac = 0.0
        # One thread computes: two heads at once would only slow each other down.
        self._compute = ThreadPoolExecutor(1, thread_name_prefix="head")

    async def warm_up(self) -> None:
        """Run the head once and learn how long finishing on the device takes."""
        self._learn(self.plan.position, await self._in_thread(self._head.warm_up, self.plan))

    async def run(
        self, source: AsyncIterator[Item], in_flight: int, sink: Callable[[Answer], None]
    ) -> None:
        """Answer a source's inputs; each answer goes to the sink as soon as it is there.

        Args:
            source: the inputs; the next one is taken when there is room for it.
            in_flight: inputs that may be under way at once.
            sink: takes the answers, in the order in which they are ready.
        """
        room = asyncio.Semaphore(in_flight)

        async def one(item: Item) -> None:
            sink(await self.answer(item))
            room.release()

        try:
            async with asyncio.TaskGroup() as group:
                await room.acquire()
                async for item in source:
                    group.create_task(one(item))
                    await room.acquire()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def answer(self, item: Item) -> Answer:
        """Answer one input; what cannot be read or computed gives an answer with an error."""
        started, plan, request_id = time.perf_counter(), self.plan, os.urandom(16)
        codec = "none" if self._head.is_local(plan) else plan.codec.name
        facts = {"cut": plan.cut, "codec": codec}
        try:
            content = await asyncio.to_thread(item.read)
            work = await self._in_thread(self._head.run, content, plan)
            asked = time.perf_counter()
            cloud, reason = await self._from_cloud(work, plan, request_id, started)
            if reason:
                work.stages_s["cloud_wait"] = time.perf_counter() - asked
            outputs = cloud.outputs if cloud else await self._in_thread(self._finish, work)
        except SplitServeError as error:
            logger.warning("no answer", extra={"input": item.name, "why": str(error)})
            total_s = time.perf_counter() - started
            return Answer(item.name, request_id.hex(), facts, "nobody", total_s, error=str(error))
        manifest = self._head.artifact.manifest
        return Answer(
            id=item.name,
            request_id=request_id.hex(),
            plan=facts,
            answered_by="cloud" if cloud else "edge",
            labels=top_labels(outputs[manifest.outputs[0].name], manifest.labels),
            fallback=reason,
            bytes_up=cloud.bytes_up if cloud else 0,
            bytes_down=cloud.bytes_down if cloud else 0,
            stages_s=work.stages_s | dict(cloud.stages_s if cloud else {}),
            total_s=time.perf_counter() - started,
            native_s=work.native_s,
        )

    def _finish(self, work: Work) -> Mapping[str, Array]:
        outputs = self._head.finish(work)
        self._learn(work.position, work.stages_s["edge_tail"])
        return outputs

    def _learn(self, position: int, finish_s: float) -> None:
        """Note what finishing here costs; plans that never ran are judged by their work."""
        macs = self._head.macs_after(position)
        self._s_per_mac = finish_s / macs if macs else self._s_per_mac

    async def _from_cloud(
        self, work: Work, plan: Plan, request_id: bytes, started: float
    ) -> tuple[CloudAnswer | None, str | None]:
        """Ask the cloud while there is time; otherwise say why not."""
        if self._head.is_local(plan):
            return None, None
        if self._uplink is None:
            return None, "no cloud is configured"
        if work.problem:
            return self._fall_back(request_id, work.problem)
        finish_s = self._s_per_mac * self._head.macs_after(plan.position)
        reserve_s = RESERVE_FACTOR * finish_s + RESERVE_S
        left_s = self._deadline_s - (time.perf_counter() - started) - reserve_s
        if left_s <= 0:
            return None, f"no time for the cloud: the deadline is {self._deadline_s} s"
        if not self._breaker.allows():
            return None, "the cloud is away"
        try:
            answer = await self._ask(self._uplink, work, plan, request_id, left_s)
        except SplitServeError as error:
            self._breaker.failed()
            return self._fall_back(request_id, str(error))
        if isinstance(answer, Refusal):
            self._breaker.failed(answer.retry_after_s)
            return self._fall_back(request_id, f"{answer.code.name}: {answer.message}")
        self._breaker.succeeded()
        return answer, None

    def _fall_back(self, request_id: bytes, reason: str) -> tuple[None, str]:
        logger.warning("fallback", extra={"request_id": request_id.hex(), "why": reason})
        return None, reason

    async def _ask(
        self, uplink: Uplink, work: Work, plan: Plan, request_id: bytes, left_s: float
    ) -> CloudAnswer | Refusal:
        frame = encode_frame(
            Request(
                request_id=request_id,
                artifact_id=self._head.artifact.id,
                cut=plan.position,
                codec=plan.codec.number,
                sections=work.sections,
                deadline_s=left_s,
            )
        )
        sent = time.perf_counter()
        reply, received = await uplink.ask(frame, request_id, left_s)
        if isinstance(reply, Refusal):
            return reply
        times, round_trip_s = reply.timings, time.perf_counter() - sent
        inside_s = times.queue_s + times.decode_s + times.compute_s
        stages_s = {
            "network": max(0.0, round_trip_s - inside_s),
            "queue": times.queue_s,
            "cloud_decode": times.decode_s,
            "tail": times.compute_s,
        }
        return CloudAnswer(self._outputs(reply), len(frame), received, stages_s)

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

    async def _in_thread(self, call: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._compute, call, *arguments)

    async def close(self) -> None:
        """Give threads and connections back."""
        self._compute.shutdown(wait=False, cancel_futures=True)
        if self._uplink is not None:
            await self._uplink.close()

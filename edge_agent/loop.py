"""Source to sink: head, frame, cloud, and the edge itself where the cloud is too late."""

import asyncio
import functools
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from edge_agent.answer import Answer, top_labels
from edge_agent.ask import Asker, Begun, CloudAnswer
from edge_agent.compute import FINISH, HEAD, LATER, ComputeThread
from edge_agent.fallback import Breaker
from edge_agent.head import Head, Plan, Work
from edge_agent.history import History
from edge_agent.pilot import Pilot
from edge_agent.source import Item
from edge_agent.uplink import Uplink
from splitserve.errors import SplitServeError
from splitserve.tensors import Array
from splitserve.wire import Refusal

logger = logging.getLogger(__name__)

Sink = Callable[[Answer], Awaitable[None]]

RESERVE_FACTOR = 1.5
RESERVE_S = 0.02
PROBE_S = 10.0  # of silence, after which a probe has failed

Outcome = tuple[CloudAnswer | None, str | None]
Result = TypeVar("Result")


class Agent:
    """Answers inputs, each exactly once and, when the device can, within its deadline.

    `plan` may be replaced between two requests; a request keeps the plan it began with.

    Args:
        head: the device's side of the artifact.
        plan: where to cut first, or what chooses that for each request.
        uplink: way to the cloud, None to answer here alone.
        deadline_s: seconds from taking an input up to its answer.
        breaker: decides when to leave the cloud alone.
        temporal: let features be coded by earlier ones of the same stream.
    """

    def __init__(
        self,
        head: Head,
        plan: Plan | Pilot,
        uplink: Uplink | None,
        deadline_s: float,
        breaker: Breaker | None = None,
        *,
        temporal: bool = True,
    ) -> None:
        self._pilot = plan if isinstance(plan, Pilot) else None
        self.plan = plan.plans[0] if isinstance(plan, Pilot) else plan
        self._head = head
        self._deadline_s = deadline_s
        self._breaker = breaker or Breaker()
        self._history = History(lambda: uplink.connection) if temporal and uplink else None
        self._finish_s = [0.0] * (len(head.artifact.manifest.segments) + 1)
        self._asking = 0
        self._compute = ComputeThread()
        self._asker = Asker(head, uplink, self._compute, self._history) if uplink else None
        self._background: set[asyncio.Task[Any]] = set()

    async def warm_up(self) -> None:
        """Run the model once and learn how long finishing on the device takes from each cut."""
        plans = self._pilot.plans if self._pilot else [self.plan]
        self._finish_s = await self._compute.run(HEAD, self._head.warm_up, plans)

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

    def _take(self, item: Item) -> tuple[Begun, bool]:
        """Note an input and choose its plan; say whether an exit may answer it.

        What is sent to learn of the link has to be sent.
        """
        begun, is_trial = Begun(item, self.plan, os.urandom(16), time.perf_counter()), False
        if self._pilot is not None:
            choice, plans = self._pilot.choose(self._breaker), self._pilot.plans
            begun.is_probe, is_trial = choice.probe is not None, choice.is_trial
            begun.option = choice.option if choice.probe is None else choice.probe
            begun.plan, begun.answering = plans[begun.option], plans[choice.option]
        return begun, not begun.is_probe and not is_trial

    async def _begin(self, item: Item) -> Begun:
        """Read an input and run its head."""
        begun, may_exit = self._take(item)
        try:
            content = await asyncio.to_thread(item.read)
            run = functools.partial(self._head.run, encodes=not begun.is_probe, may_exit=may_exit)
            begun.work = await self._compute.run(HEAD, run, content, begun.plan, self._history)
        except SplitServeError as error:
            begun.error = str(error)
        except Exception:
            logger.exception("the head failed", extra=begun.facts)
            begun.error = "internal error in the head; the log tells more"
        if self._pilot is not None:
            self._pilot.edge_ran(begun)
        return begun

    async def _complete(self, begun: Begun) -> Answer:
        """Get the outputs from the cloud, or else compute them here."""
        answer = await self._answered(begun)
        if begun.is_probe and self._pilot is not None:
            self._in_background(self._probe(self._pilot, begun))
        return answer

    async def _answered(self, begun: Begun) -> Answer:
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
            plan=self._plan_facts(begun),
            confidence=work.judged.confidence if work.judged else None,
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
            plan=self._plan_facts(begun),
            answered_by="nobody",
            error=begun.error,
            total_s=time.perf_counter() - begun.started,
        )

    def _plan_facts(self, begun: Begun) -> dict[str, str]:
        plan = begun.plan if begun.answering is None else begun.answering
        is_early = begun.work is not None and begun.work.is_early
        codec = "none" if is_early or self._head.is_local(plan) else plan.codec.name
        facts = {"cut": plan.cut, "codec": codec}
        if is_early:
            facts["exit"] = plan.cut
        if self._pilot is not None:
            facts["name"] = self._pilot.name_of(plan)
        if begun.is_probe:
            facts["probe"] = begun.plan.cut
        return facts

    async def _finish(self, work: Work) -> Mapping[str, Array]:
        if work.is_early:
            return self._head.finish(work)
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

    async def _from_cloud(self, work: Work, begun: Begun) -> Outcome:
        """Ask the cloud while there is time; otherwise say why not."""
        if begun.is_probe or work.is_early or self._head.is_local(begun.plan):
            return None, None
        if self._asker is None:
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
            if self._pilot is None:
                return await self._try_cloud(self._asker, work, begun, left_s)
            return await self._try_for_a_while(self._asker, self._pilot, work, begun, left_s)
        finally:
            self._asking -= 1

    async def _try_for_a_while(
        self, asker: Asker, pilot: Pilot, work: Work, begun: Begun, left_s: float
    ) -> Outcome:
        """Ask, but wait no longer than is worth it; a later reply still tells of the link."""
        finish_s = self._asking * self._finish_s[work.position]
        patience_s = pilot.controller.patience_s(begun.option, finish_s)
        asking = self._in_background(self._try_cloud(asker, work, begun, left_s))
        if (await asyncio.wait({asking}, timeout=patience_s))[0]:
            return asking.result()
        pilot.overdue()
        asking.add_done_callback(lambda _: pilot.controller.overdue_ended())
        return self._fall_back(begun, f"no answer within {patience_s:.3f} s, which is overdue")

    async def _try_cloud(self, asker: Asker, work: Work, begun: Begun, left_s: float) -> Outcome:
        try:
            answer = await asker.ask(work, begun, left_s)
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
        if self._pilot is not None:
            self._pilot.replied(begun, answer)
        return answer, None

    async def _probe(self, pilot: Pilot, begun: Begun) -> None:
        """Upload what is answered already, to learn of link and cloud; nobody waits for it."""
        work, encode_s = begun.work, 0.0
        try:
            if work is None or self._asker is None:
                return
            await self._compute.run(LATER, self._head.encode, work, begun.plan, self._history)
            encode_s = work.stages_s["encode"]
            if work.problem is None and self._breaker.allows():
                await self._try_cloud(self._asker, work, begun, PROBE_S)
        except Exception:
            logger.exception("a probe failed", extra=begun.facts)
        finally:
            pilot.controller.probe_ended(encode_s)

    def _in_background(self, call: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Run something that an answer may not wait for; `close` ends it."""
        task = asyncio.create_task(call)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _fall_back(self, begun: Begun, reason: str) -> tuple[None, str]:
        event = "probe failed" if begun.is_probe else "fallback"
        logger.warning(event, extra=begun.facts | {"why": reason})
        return None, reason

    async def close(self) -> None:
        """Give threads and connections back; end what runs in the background."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._compute.close()
        if self._pilot is not None:
            self._pilot.log_summary()
        for gate in self._head.exits.values():
            logger.info("early answers in total", extra=gate.summary())
        if self._asker is not None:
            await self._asker.close()

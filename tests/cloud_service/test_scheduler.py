"""Order, bounds and the end of the work on the service's own threads."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from cloud_service.scheduler import Scheduler
from splitserve.errors import DrainingError, ExpiredError, OverloadedError


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    made = Scheduler(workers=1, waiting=2)
    yield made
    made.close()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def held(gate: threading.Event) -> str:
    assert gate.wait(20)
    return "held"


async def start(scheduler: Scheduler, gate: threading.Event) -> asyncio.Task[str]:
    """Occupy the one worker until the gate opens."""
    task = asyncio.create_task(scheduler.submit(lambda queue_s, load: held(gate), None))
    await asyncio.sleep(0)
    return task


async def test_work_runs_in_order_of_arrival(scheduler: Scheduler, gate: threading.Event) -> None:
    done: list[int] = []
    first = await start(scheduler, gate)
    others = [
        asyncio.create_task(scheduler.submit(lambda queue_s, load, n=n: done.append(n), None))
        for n in range(2)
    ]
    await asyncio.sleep(0)
    gate.set()
    await asyncio.gather(first, *others)
    assert done == [0, 1]


async def test_as_many_requests_run_at_once_as_there_are_workers() -> None:
    scheduler = Scheduler(workers=3, waiting=0)
    meeting = threading.Barrier(3, timeout=20)
    await asyncio.gather(
        *(scheduler.submit(lambda queue_s, load: meeting.wait(), None) for _ in range(3))
    )
    scheduler.close()


async def test_queue_time_and_load_are_handed_to_the_work(
    scheduler: Scheduler, gate: threading.Event
) -> None:
    assert await scheduler.submit(lambda queue_s, load: load, None) == 0.0
    first = await start(scheduler, gate)
    second = asyncio.create_task(scheduler.submit(lambda queue_s, load: (queue_s, load), None))
    await asyncio.sleep(0.05)
    gate.set()
    queue_s, load = await second
    assert await first == "held"
    assert 0.05 <= queue_s < 5
    assert load == 1.0


async def test_one_more_than_may_wait_is_refused_and_told_when_to_come_back(
    scheduler: Scheduler, gate: threading.Event
) -> None:
    tasks = [await start(scheduler, gate) for _ in range(3)]
    assert scheduler.pending == 3
    with pytest.raises(OverloadedError, match="3 requests are pending") as refusal:
        await scheduler.submit(lambda queue_s, load: None, None)
    assert refusal.value.retry_after_s > 0
    assert not isinstance(refusal.value, DrainingError)
    gate.set()
    await asyncio.gather(*tasks)
    assert await scheduler.submit(lambda queue_s, load: "again", None) == "again"


async def test_what_expired_while_it_waited_never_runs(
    scheduler: Scheduler, gate: threading.Event
) -> None:
    ran: list[float] = []
    first = await start(scheduler, gate)
    late = asyncio.create_task(scheduler.submit(lambda queue_s, load: ran.append(load), 0.01))
    await asyncio.sleep(0.05)
    gate.set()
    with pytest.raises(ExpiredError, match=r"the deadline was 0\.010 s"):
        await late
    assert await first == "held"
    assert ran == []


async def test_what_the_work_raises_comes_back_and_frees_its_place(scheduler: Scheduler) -> None:
    def fail(queue_s: float, load: float) -> None:
        raise ZeroDivisionError

    for _ in range(5):
        with pytest.raises(ZeroDivisionError):
            await scheduler.submit(fail, None)
    assert scheduler.pending == 0


async def test_drain_waits_for_accepted_work_and_refuses_new_work(
    scheduler: Scheduler, gate: threading.Event
) -> None:
    tasks = [await start(scheduler, gate) for _ in range(2)]
    draining = asyncio.create_task(scheduler.drain())
    await asyncio.sleep(0.02)
    assert not draining.done()
    with pytest.raises(DrainingError):
        await scheduler.submit(lambda queue_s, load: None, None)
    gate.set()
    await asyncio.wait_for(draining, 20)
    assert [task.result() for task in tasks] == ["held", "held"]


async def test_drain_of_an_idle_scheduler_ends_at_once(scheduler: Scheduler) -> None:
    await asyncio.wait_for(scheduler.drain(), 5)
    assert scheduler.draining.is_set()


async def test_work_whose_caller_left_frees_its_place(
    scheduler: Scheduler, gate: threading.Event
) -> None:
    ran: list[float] = []
    first = await start(scheduler, gate)
    left = asyncio.create_task(scheduler.submit(lambda queue_s, load: ran.append(load), None))
    await asyncio.sleep(0)
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert scheduler.pending == 1
    gate.set()
    await first
    await asyncio.wait_for(scheduler.drain(), 20)
    assert ran == []

import asyncio
import threading

import pytest

from edge_agent.compute import FINISH, HEAD, ComputeThread


@pytest.fixture
def thread():
    made = ComputeThread()
    yield made
    made.close()


async def test_finishes_overtake_heads_that_wait(thread: ComputeThread) -> None:
    gate, order = threading.Event(), []
    first = asyncio.create_task(thread.run(HEAD, gate.wait, 20))
    await asyncio.sleep(0.02)
    calls = [("head 1", HEAD), ("head 2", HEAD), ("finish 1", FINISH), ("finish 2", FINISH)]
    tasks = [asyncio.create_task(thread.run(kind, order.append, name)) for name, kind in calls]
    await asyncio.sleep(0.02)
    gate.set()
    await asyncio.gather(first, *tasks)
    assert order == ["finish 1", "finish 2", "head 1", "head 2"]


async def test_a_failure_reaches_the_caller_and_the_thread_goes_on(thread: ComputeThread) -> None:
    with pytest.raises(ZeroDivisionError):
        await thread.run(HEAD, lambda: 1 // 0)
    assert await thread.run(HEAD, lambda: 7) == 7


async def test_a_call_that_is_cancelled_in_time_never_runs(thread: ComputeThread) -> None:
    gate, order = threading.Event(), []
    first = asyncio.create_task(thread.run(HEAD, gate.wait, 20))
    await asyncio.sleep(0.02)
    second = asyncio.create_task(thread.run(HEAD, order.append, "second"))
    await asyncio.sleep(0.02)
    second.cancel()
    await asyncio.sleep(0)
    gate.set()
    await first
    assert await thread.run(HEAD, len, order) == 0

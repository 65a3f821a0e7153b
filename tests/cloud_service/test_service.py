"""One frame in, one frame out: each failure has its code, and nothing private is logged."""

import asyncio
import dataclasses
import logging
from collections.abc import Callable

import pytest

from cloud_service.service import CODES, Service
from splitserve import errors
from splitserve.wire import (
    NO_ID,
    Refusal,
    RefusalCode,
    Reply,
    Request,
    Section,
    decode_frame,
    encode_frame,
)

MakeRequest = Callable[..., Request]
NUMBER = 0x5EED
REQUEST_ID = NUMBER.to_bytes(16, "big")


async def refusal(service: Service, request: Request | bytes) -> Refusal:
    data = request if isinstance(request, bytes) else encode_frame(request)
    answer = await service.answer(data)
    assert isinstance(answer, Refusal)
    assert decode_frame(encode_frame(answer), service.limits) == answer
    return answer


async def test_a_request_gets_a_reply_that_survives_the_wire(
    service: Service, make_request: MakeRequest
) -> None:
    answer = await service.answer(encode_frame(make_request(1, NUMBER)))
    assert isinstance(answer, Reply)
    again = decode_frame(encode_frame(answer), service.limits)
    assert isinstance(again, Reply)
    assert again.request_id == REQUEST_ID
    assert [bytes(section.payload) for section in again.sections] == [
        bytes(section.payload) for section in answer.sections
    ]


async def test_bytes_that_are_no_frame_are_malformed(
    service: Service, make_request: MakeRequest
) -> None:
    good = encode_frame(make_request(1, NUMBER))
    flipped = good[:-1] + bytes((good[-1] ^ 1,))
    for data in (b"", b"x", b"\0" * 64, b"x" * 1000, good[:-1], good + b"\0", flipped):
        assert (await refusal(service, data)).code is RefusalCode.MALFORMED


async def test_a_frame_that_is_no_request_is_malformed(
    service: Service, make_request: MakeRequest
) -> None:
    reply = await service.answer(encode_frame(make_request(1, NUMBER)))
    for frame in (reply, Refusal(RefusalCode.INTERNAL, "no", REQUEST_ID)):
        answer = await refusal(service, encode_frame(frame))
        assert answer.code is RefusalCode.MALFORMED
        assert "requests only" in answer.message


async def test_a_frame_over_the_limit_is_too_large(
    service: Service, make_request: MakeRequest
) -> None:
    limit = service.limits.frame_bytes
    sections = (Section((limit,), bytes(limit)),)
    answer = await refusal(service, dataclasses.replace(make_request(), sections=sections))
    assert answer.code is RefusalCode.TOO_LARGE
    assert str(limit) in answer.message
    assert service.refuse_too_large(limit + 1).code is RefusalCode.TOO_LARGE


async def test_what_does_not_fit_the_artifact_is_refused_by_its_kind(
    service: Service, make_request: MakeRequest
) -> None:
    request = make_request(1, NUMBER)
    shape = request.sections[0].shape
    cases = {
        RefusalCode.UNKNOWN_ARTIFACT: {"artifact_id": b"\x01" * 16},
        RefusalCode.CONTRACT: {"cut": 77},
        RefusalCode.CODEC: {"sections": (Section(shape, b"\0"),)},
    }
    for code, change in cases.items():
        answer = await refusal(service, dataclasses.replace(request, **change))
        assert answer.code is code
        assert answer.request_id == REQUEST_ID
        assert answer.retry_after_s == 0


async def test_overload_is_refused_with_a_time_to_come_back(
    service: Service, make_request: MakeRequest
) -> None:
    service.tail.gate.clear()
    held = [asyncio.create_task(service.answer(encode_frame(make_request(1)))) for _ in range(4)]
    await asyncio.sleep(0)
    answer = await refusal(service, make_request(1, NUMBER))
    assert answer.code is RefusalCode.OVERLOADED
    assert answer.retry_after_s > 0
    assert answer.request_id == REQUEST_ID
    service.tail.gate.set()
    assert all(isinstance(reply, Reply) for reply in await asyncio.gather(*held))


async def test_a_request_whose_deadline_passed_in_the_queue_is_expired(
    service: Service, make_request: MakeRequest
) -> None:
    service.tail.gate.clear()
    held = [asyncio.create_task(service.answer(encode_frame(make_request(1)))) for _ in range(2)]
    await asyncio.sleep(0)
    late = asyncio.create_task(refusal(service, make_request(1, NUMBER, deadline_s=0.01)))
    await asyncio.sleep(0.05)
    service.tail.gate.set()
    assert (await late).code is RefusalCode.EXPIRED
    await asyncio.gather(*held)


async def test_drain_waits_for_answers_and_streams_then_refuses(
    service: Service, make_request: MakeRequest
) -> None:
    service.tail.gate.clear()
    held = asyncio.create_task(service.answer(encode_frame(make_request(1))))
    streamed = asyncio.Event()
    stream = asyncio.create_task(streamed.wait())
    service.streams.add(stream)
    await asyncio.sleep(0)
    draining = asyncio.create_task(service.drain())
    await asyncio.sleep(0.02)
    assert not service.is_ready
    assert not draining.done()
    answer = await refusal(service, make_request(1, NUMBER))
    assert answer.code is RefusalCode.DRAINING
    assert answer.retry_after_s > 0
    service.tail.gate.set()
    assert isinstance(await held, Reply)
    await asyncio.sleep(0.02)
    assert not draining.done()
    streamed.set()
    await asyncio.wait_for(draining, 10)


async def test_a_surprise_is_internal_and_keeps_its_text_to_the_log(
    service: Service, make_request: MakeRequest, caplog: pytest.LogCaptureFixture
) -> None:
    service.tail.failure = ZeroDivisionError("the vault is at 12 Elm Street")
    answer = await refusal(service, make_request(1, NUMBER))
    assert answer == Refusal(RefusalCode.INTERNAL, "internal error", REQUEST_ID)
    failed = next(record for record in caplog.records if record.exc_info)
    assert failed.__dict__["request_id"] == REQUEST_ID.hex()
    service.tail.failure = None
    assert isinstance(await service.answer(encode_frame(make_request(1))), Reply)


async def test_a_runtime_failure_is_internal(service: Service, make_request: MakeRequest) -> None:
    service.tail.failure = errors.RuntimeFailureError("ONNX Runtime failed in its own words")
    answer = await refusal(service, make_request(1))
    assert (answer.code, answer.message) == (RefusalCode.INTERNAL, "internal error")


def test_every_refusal_code_has_an_error_and_every_error_a_code() -> None:
    assert set(CODES.values()) == set(RefusalCode)
    ours = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    for kind in ours:
        assert any(parent in CODES for parent in kind.__mro__)


async def test_answers_and_refusals_are_counted(
    service: Service, make_request: MakeRequest
) -> None:
    for _ in range(3):
        await service.answer(encode_frame(make_request(1)))
    await refusal(service, b"noise")
    text = service.metrics.text().decode()
    cut = service.tail.artifact.manifest.positions[1]
    assert f'splitserve_requests_total{{cut="{cut}"}} 3.0' in text
    assert 'splitserve_refusals_total{reason="malformed"} 1.0' in text
    for stage in ("queue", "decode", "compute"):
        assert f'splitserve_stage_seconds_count{{stage="{stage}"}} 3.0' in text
    assert "splitserve_request_bytes_count 3.0" in text
    assert "splitserve_pending 0.0" in text
    assert "splitserve_ready 1.0" in text


async def test_pending_and_readiness_are_read_when_asked(
    service: Service, make_request: MakeRequest
) -> None:
    service.tail.gate.clear()
    held = asyncio.create_task(service.answer(encode_frame(make_request(1))))
    await asyncio.sleep(0)
    assert b"splitserve_pending 1.0" in service.metrics.text()
    service.tail.gate.set()
    await held
    service.is_ready = False
    assert b"splitserve_ready 0.0" in service.metrics.text()


async def test_logs_name_the_request_and_hold_no_features(
    service: Service, make_request: MakeRequest, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    marker = b"PRIVATE-FEATURES"
    request = make_request(1, NUMBER)
    broken = (Section(request.sections[0].shape, marker * 8),)
    await service.answer(encode_frame(request))
    await refusal(service, dataclasses.replace(request, sections=broken))
    await refusal(service, dataclasses.replace(request, cut=77, sections=broken))
    await refusal(service, marker * 8)
    records = [record for record in caplog.records if record.name.startswith("cloud_service")]
    assert [record.getMessage() for record in records] == ["answered", *["refused"] * 3]
    ids = [record.__dict__["request_id"] for record in records]
    assert ids == [REQUEST_ID.hex()] * 3 + ["unknown"]
    hidden = {marker.decode(), marker.hex(), repr(bytes(request.sections[0].payload)[:16])[2:-1]}
    for record in records:
        facts = {name: value for name, value in vars(record).items() if name != "args"}
        assert not any(text in str(facts) for text in hidden)
        assert len(str(facts)) < 2000
        assert not any(isinstance(value, bytes | memoryview) for value in facts.values())


async def test_a_refusal_of_what_cannot_be_read_has_no_id(service: Service) -> None:
    assert (await refusal(service, b"noise")).request_id == NO_ID

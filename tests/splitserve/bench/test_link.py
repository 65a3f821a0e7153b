import socket
import struct
import threading
import time
from pathlib import Path

import pytest

from splitserve.bench.link import Link, LinkSettings, SelfTest, self_test

MEGABIT = 1e6


@pytest.fixture
def echo():
    """A server on loopback that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve():
        while True:
            try:
                peer, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(peer,), daemon=True).start()

    def answer(peer):
        with peer:
            try:
                while data := peer.recv(65536):
                    peer.sendall(data)
            except OSError:
                return

    threading.Thread(target=serve, daemon=True).start()
    yield server.getsockname()
    server.shutdown(socket.SHUT_RDWR)
    server.close()


def receive(client, count):
    data = b""
    while len(data) < count:
        part = client.recv(count - len(data))
        if not part:
            break
        data += part
    return data


def test_link_passes_every_byte_in_order(echo):
    content = bytes(range(256)) * 2000
    with (
        Link(echo, LinkSettings(200 * MEGABIT, 0.002, 0.003)) as link,
        socket.create_connection(link.address) as client,
    ):
        threading.Thread(target=client.sendall, args=(content,), daemon=True).start()
        assert receive(client, len(content)) == content


def test_link_self_test_measures_what_was_set():
    result = self_test(LinkSettings(5.85 * MEGABIT, 0.025))
    assert result.problem is None
    assert result.round_trip_s == pytest.approx(0.05, abs=0.001)
    assert result.rate_bps == pytest.approx(5.85 * MEGABIT, rel=0.05)


@pytest.mark.parametrize(
    ("round_trip_s", "rate_bps", "word"),
    [(0.0512, 1e6, "round trip"), (0.0488, 1e6, "round trip"), (0.05, 1.06e6, "rate")],
)
def test_self_test_calls_a_wrong_link_void(round_trip_s, rate_bps, word):
    settings = LinkSettings(1e6, 0.025)
    assert word in SelfTest(settings, round_trip_s, rate_bps).problem
    assert SelfTest(settings, 0.0508, 0.96e6).problem is None


def test_two_connections_share_the_rate(echo):
    size = 25_000
    with Link(echo, LinkSettings(2 * MEGABIT)) as link:
        clients = [socket.create_connection(link.address) for _ in range(2)]
        started = time.perf_counter()
        for client in clients:
            client.sendall(bytes(size))
        for client in clients:
            assert len(receive(client, size)) == size
            client.close()
        took = time.perf_counter() - started
    # Both directions run at 2 Mbit/s and overlap: at least the time of one direction for both.
    assert took >= 2 * size * 8 / (2 * MEGABIT)


def test_stalled_link_keeps_connections_open_and_heals(echo):
    with Link(echo, LinkSettings()) as link, socket.create_connection(link.address) as client:
        link.stall()
        client.sendall(b"late")
        client.settimeout(0.2)
        with pytest.raises(TimeoutError):
            client.recv(4)
        link.heal()
        client.settimeout(5)
        assert receive(client, 4) == b"late"


def is_dead(client):
    """Whether the connection was reset or ended: no byte comes any more."""
    client.settimeout(5)
    try:
        client.sendall(b"ping")
        return client.recv(4) == b""
    except ConnectionError:
        return True


def test_cut_link_resets_old_and_new_connections_until_it_heals(echo):
    with Link(echo, LinkSettings()) as link, socket.create_connection(link.address) as client:
        assert not is_dead(client)
        link.cut()
        assert is_dead(client)
        with socket.create_connection(link.address) as refused:
            assert is_dead(refused)
        link.heal()
        with socket.create_connection(link.address) as again:
            assert not is_dead(again)


def test_settings_change_while_the_link_runs(echo):
    with Link(echo, LinkSettings()) as link, socket.create_connection(link.address) as client:
        link.settings = LinkSettings(delay_s=0.05)
        started = time.perf_counter()
        client.sendall(struct.pack("<I", 7))
        assert len(receive(client, 4)) == 4
        assert time.perf_counter() - started >= 0.1


def exchange(client, size):
    client.sendall(bytes(size))
    assert len(receive(client, size)) == size


def test_a_new_rate_holds_for_bytes_under_way(echo):
    size = 25_000
    with (
        Link(echo, LinkSettings(0.1 * MEGABIT)) as link,
        socket.create_connection(link.address) as client,
    ):
        started = time.perf_counter()
        threading.Timer(0.2, link.set_rate, (100 * MEGABIT,)).start()
        exchange(client, size)
        took = time.perf_counter() - started
    assert 0.2 <= took < 1.0  # 2 s in either direction at the old rate


def test_at_rate_zero_nothing_passes_and_no_connection_breaks(echo):
    with (
        Link(echo, LinkSettings(20 * MEGABIT)) as link,
        socket.create_connection(link.address) as client,
    ):
        exchange(client, 1000)
        link.set_rate(0.0)
        client.sendall(b"late")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(4)
        link.set_rate(1 * MEGABIT)
        client.settimeout(5)
        assert receive(client, 4) == b"late"
        started = time.perf_counter()
        exchange(client, 12_500)
        assert time.perf_counter() - started >= 0.1


def test_end_of_stream_passes_through(echo):
    with Link(echo, LinkSettings()) as link, socket.create_connection(link.address) as client:
        client.sendall(b"bye")
        client.shutdown(socket.SHUT_WR)
        assert receive(client, 10) == b"bye"


def test_link_without_a_service_behind_it_resets():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    with Link(address, LinkSettings()) as link, socket.create_connection(link.address) as client:
        assert is_dead(client)


def test_connections_that_end_give_their_descriptors_back(echo):
    with Link(echo, LinkSettings()) as link:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(60):
            with socket.create_connection(link.address) as client:
                client.sendall(b"once")
                assert receive(client, 4) == b"once"
        deadline = time.perf_counter() + 10
        while len(list(Path("/proc/self/fd").iterdir())) > before + 10:
            assert time.perf_counter() < deadline, "descriptors leak"
            time.sleep(0.01)

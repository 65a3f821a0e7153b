import socket
import threading
import time
from itertools import pairwise

import pytest

from splitserve.bench.play import play
from splitserve.bench.process import running
from splitserve.cli import main
from splitserve.plan.trace import Change


def test_changes_are_played_at_their_times():
    seen, started = [], time.perf_counter()
    trace = [Change(0, 3.0), Change(0.1, 2.0), Change(0.2, 0.0)]
    play(trace, lambda rate: seen.append((rate, time.perf_counter() - started)), threading.Event())
    assert [rate for rate, _ in seen] == [3.0, 2.0, 0.0]
    for (_, at_s), change in zip(seen, trace, strict=True):
        assert change.at_s <= at_s + 0.001
        assert at_s <= change.at_s + 0.08


def test_playing_ends_when_it_is_stopped():
    stop = threading.Event()
    stop.set()
    seen = []
    play([Change(0, 1.0), Change(600, 2.0)], seen.append, stop)
    assert seen == []


def test_the_command_plays_a_trace(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("0,50e6\n1.5,0\n2.5,50e6\n")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with running("link", "--to", f"127.0.0.1:{port}", "--trace", str(path)) as link:
            address = link.hear(60)["url"].removeprefix("http://").split(":")
            started = time.perf_counter()
            with socket.create_connection((address[0], int(address[1]))) as client:
                peer, _ = server.accept()
                with peer:
                    gaps = beats(client, peer, started + 4)
    longest = max(gaps, key=lambda gap: gap[1] - gap[0])
    assert longest[1] - longest[0] == pytest.approx(1.0, abs=0.3)
    assert longest[0] - started == pytest.approx(1.5, abs=0.3)
    assert sum(end - begin > 0.3 for begin, end in gaps) == 1


def beats(client, peer, until):
    """Send a byte after each that arrives; the times between two arrivals."""
    arrivals = []
    while time.perf_counter() < until:
        client.sendall(b"x")
        assert peer.recv(1) == b"x"
        arrivals.append(time.perf_counter())
        time.sleep(0.02)
    return list(pairwise(arrivals))


def test_a_command_with_a_broken_trace_is_called_wrongly(tmp_path, capsys):
    path = tmp_path / "trace.csv"
    path.write_text("nonsense\n")
    assert main(["link", "--to", "127.0.0.1:1", "--trace", str(path)]) == 2
    assert "trace.csv" in capsys.readouterr().err

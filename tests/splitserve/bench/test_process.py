import signal
import subprocess
import sys
import time

import psutil
import pytest

from splitserve.bench.process import running
from splitserve.errors import MeasurementError


def test_process_that_dies_reports_its_last_words(tmp_path):
    with (
        running("serve", "--artifact", str(tmp_path)) as process,
        pytest.raises(MeasurementError, match=r"status 1.*manifest\.json"),
    ):
        process.hear(60)


def test_process_that_says_nothing_is_given_up(tiny_artifact):
    with (
        running("agent", "--artifact", str(tiny_artifact), "--source", "-") as process,
        pytest.raises(MeasurementError, match="said nothing"),
    ):
        process.hear(0.2)


def test_answers_come_back_line_by_line(tiny_artifact, pictures):
    with running("agent", "--artifact", str(tiny_artifact), "--source", "-") as process:
        for path in sorted(pictures.iterdir()):
            process.say(str(path))
            assert process.hear(60)["id"] == str(path)


def test_sigterm_ends_the_demo_and_everything_it_started(tmp_path):
    words = [sys.executable, "-m", "splitserve.cli", "demo", "--build", str(tmp_path), "--json"]
    demo = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family = psutil.Process(demo.pid)
    deadline = time.perf_counter() + 120
    while len(children := family.children(recursive=True)) < 7:  # a service and six agents
        assert demo.poll() is None
        assert time.perf_counter() < deadline
        time.sleep(0.05)
    demo.terminate()
    assert demo.wait(60) == 128 + signal.SIGTERM
    assert psutil.wait_procs(children, timeout=10)[1] == []

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
            assert process.hear(60)["id"] == path.name

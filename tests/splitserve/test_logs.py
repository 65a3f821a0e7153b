"""What reaches the log, and what must not."""

import json
import subprocess
import sys

import pytest

CODE = """
import io, logging
from PIL import Image
from splitserve.logs import configure_logging
configure_logging("DEBUG", as_json=True)
for name in ("websockets.client", "uvicorn.error", "httpx", "PIL.TiffImagePlugin", "asyncio"):
    logging.getLogger(name).debug("BINARY 53 50 53 56")
logging.getLogger("splitserve.x").debug("ours", extra={"request_id": "ab", "color_message": "c"})
logging.getLogger("uvicorn.error").warning("theirs")
exif = Image.Exif()
exif[270] = "SECRET"
buffer = io.BytesIO()
Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
Image.open(io.BytesIO(buffer.getvalue())).getexif().get(270)
"""


def test_libraries_write_no_frames_and_no_metadata_at_debug():
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["message"] for line in lines] == ["ours", "theirs"]
    assert lines[0]["request_id"] == "ab"
    assert "color_message" not in lines[0]
    assert lines[0]["time"][-5] in "+-"


@pytest.mark.parametrize(("level", "shown"), [("WARNING", 1), ("ERROR", 0)])
def test_libraries_obey_the_level_that_was_asked_for(level, shown):
    code = CODE.replace('"DEBUG"', f'"{level}"')
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert len(done.stderr.splitlines()) == shown

"""What a command answers on standard output: one JSON document a line."""

import json
import sys


def print_document(document: object) -> None:
    """Write one JSON document as a line, and hand it on at once."""
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()

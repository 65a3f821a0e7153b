"""Structured logs: one JSON object a line on standard error; only a command configures them."""

import logging
import logging.config

from pythonjsonlogger.core import RESERVED_ATTRS

FOREIGN = ("PIL", "asyncio", "httpcore", "httpx", "uvicorn", "websockets")


def configure_logging(level: str, *, as_json: bool) -> None:
    """Send every logger's records to standard error.

    Libraries never speak below INFO: at DEBUG they would write frames and pictures' metadata.

    Args:
        level: name of the lowest level shown, e.g. "INFO".
        as_json: one JSON object a line, or plain text for a person.
    """
    quiet = {"level": max(logging.INFO, logging.getLevelNamesMapping()[level])}
    formatter = (
        {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s",
            "datefmt": "%Y-%m-%dT%H:%M:%S%z",
            "reserved_attrs": [*RESERVED_ATTRS, "color_message"],
            "rename_fields": {"asctime": "time", "levelname": "level", "name": "logger"},
        }
        if as_json
        else {"format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s"}
    )
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"line": formatter},
            "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
            "loggers": dict.fromkeys(FOREIGN, quiet),
            "root": {"level": level, "handlers": ["stderr"]},
        }
    )

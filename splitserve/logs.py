"""Structured logs: one JSON object a line on standard error; only a command configures them."""

import logging
import logging.config


def configure_logging(level: str, *, as_json: bool) -> None:
    """Send every logger's records to standard error.

    Args:
        level: name of the lowest level shown, e.g. "INFO".
        as_json: one JSON object a line, or plain text for a person.
    """
    formatter = (
        {
            "()": "pythonjsonlogger.json.JsonFormatter",
            "fmt": "%(asctime)s %(levelname)s %(name)s %(message)s",
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
            "root": {"level": level, "handlers": ["stderr"]},
        }
    )

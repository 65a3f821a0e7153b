"""Base class of everything an operator may set: one declaration gives flag, variable and check."""

import os
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def split_commas(value: object) -> list[str]:
    """Take comma-separated text apart; the environment gives it whole."""
    items = value if isinstance(value, list | tuple) else [value]
    return [part.strip() for item in items for part in str(item).split(",") if part.strip()]


Names = Annotated[list[str], NoDecode, BeforeValidator(split_commas)]
Counts = Annotated[list[Annotated[int, Field(ge=1)]], NoDecode, BeforeValidator(split_commas)]


class Settings(BaseSettings):
    """Frozen settings that forbid unknown keys, in flags and in the environment alike.

    pydantic-settings ignores unknown variables under a class's own prefix (its issue 985); here
    they are refused, so that a typing error in a unit file is seen at start.
    """

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        cli_kebab_case=True,
        cli_implicit_flags="toggle",
        cli_hide_none_type=True,
        cli_avoid_json=True,
        cli_enforce_required=False,
        cli_shortcuts={"as-json": "json"},
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_variables(cls, values: Any) -> Any:  # noqa: ANN401  # pydantic's own type
        prefix = cls.model_config.get("env_prefix", "")
        known = {f"{prefix}{name}".upper() for name in cls.model_fields}
        unknown = sorted(
            name
            for name in os.environ
            if prefix and name.upper().startswith(prefix.upper()) and name.upper() not in known
        )
        if unknown:
            raise ValueError(f"unknown environment variables: {', '.join(unknown)}")
        return values

"""What every Options inherits."""

import pytest
from pydantic import ValidationError
from pydantic_settings import CliApp, SettingsConfigDict

from splitserve.cli import main
from splitserve.settings import Settings
from splitserve.split.command import Options as SplitOptions
from splitserve.split.command_verify import Options as VerifyOptions


class Sample(Settings):
    """A room's options."""

    model_config = SettingsConfigDict(env_prefix="SPLITSERVE_SAMPLE_")

    budget_s: float = 0.1
    """Seconds."""


def test_variable_sets_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITSERVE_SAMPLE_BUDGET_S", "0.5")
    assert Sample().budget_s == 0.5


def test_argument_beats_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITSERVE_SAMPLE_BUDGET_S", "0.5")
    assert Sample(budget_s=0.7).budget_s == 0.7


@pytest.mark.parametrize("name", ["SPLITSERVE_SAMPLE_BUDGTE_S", "splitserve_sample_budgte_s"])
def test_unknown_variable_under_the_prefix_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "0.5")
    with pytest.raises(ValidationError, match=f"unknown environment variables: {name}"):
        Sample()


def test_variables_of_others_are_none_of_its_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITSERVE_OTHER_BUDGET_S", "0.5")
    assert Sample().budget_s == 0.1


def test_unknown_argument_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Sample.model_validate({"budgte_s": 1})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Sample().budget_s = 1.0


def test_docstring_of_a_field_is_its_help() -> None:
    assert Sample.model_fields["budget_s"].description == "Seconds."


def test_lists_take_commas_from_flags_and_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["model.onnx", "--cuts", "a,b", "--cuts", "c"]
    assert CliApp.run(SplitOptions, cli_args=words).cuts == ["a", "b", "c"]
    monkeypatch.setenv("SPLITSERVE_SPLIT_CUTS", "block5, block11")
    assert CliApp.run(SplitOptions, cli_args=["model.onnx"]).cuts == ["block5", "block11"]
    monkeypatch.setenv("SPLITSERVE_VERIFY_BATCH", "1,4")
    assert CliApp.run(VerifyOptions, cli_args=["model.onnx"]).batch == [1, 4]


@pytest.mark.parametrize("text", ["[", "one", "0", ""])
def test_a_list_that_is_none_is_a_usage_error(text: str) -> None:
    assert main(["verify", "model.onnx", "--batch", text]) == 2

"""A package's __all__ is sorted, complete to its last name, and free of repeats."""

import importlib
import pkgutil
from types import ModuleType

import pytest

ROOTS = ("splitserve", "edge_agent", "cloud_service")
MUST_EXPORT = {"splitserve.codec", "splitserve.split", "splitserve.wire"}


def packages() -> list[str]:
    found = list(ROOTS)
    for root in ROOTS:
        path = importlib.import_module(root).__path__
        found += [entry.name for entry in pkgutil.walk_packages(path, f"{root}.") if entry.ispkg]
    return found


def rank(name: str) -> tuple[int, str]:
    """Order of ruff's RUF022: constants, then classes, then functions, each by name."""
    if name.isupper():
        return 0, name
    return (1 if name[0].isupper() else 2), name


@pytest.fixture(scope="module", params=packages())
def package(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(request.param)


def test_every_exported_name_can_be_imported(package: ModuleType) -> None:
    for name in getattr(package, "__all__", []):
        assert hasattr(package, name), f"{package.__name__} has no {name}"


def test_exports_are_sorted_and_listed_once(package: ModuleType) -> None:
    names = list(getattr(package, "__all__", []))
    assert names == sorted(set(names), key=rank)


def test_rooms_that_others_enter_list_their_names() -> None:
    assert {
        name for name in packages() if hasattr(importlib.import_module(name), "__all__")
    } >= MUST_EXPORT

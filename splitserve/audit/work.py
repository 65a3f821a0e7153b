"""What an interrupted audit leaves behind: each finished attack in one file, to go on from."""

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from splitserve.audit.attacks import Loot
from splitserve.audit.document import Threat


class WorkFolder:
    """Finished attacks of one audit, by name; another audit's are not taken for its own.

    Args:
        folder: made when the first attack is kept.
        facts: all that decides the results.
    """

    def __init__(self, folder: Path, facts: Mapping[str, object]) -> None:
        self._folder = folder
        text = json.dumps(facts, sort_keys=True)
        self._key = hashlib.sha256(text.encode()).hexdigest()[:16]

    def _path(self, attack: str) -> Path:
        return self._folder / f"{attack}-{self._key}.npz"

    def load(self, attack: str) -> list[Loot] | None:
        """What a finished attack brought; None where it has to be run."""
        path = self._path(attack)
        if not path.is_file():
            return None
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                facts = json.loads(str(stored["facts"]))
                return [
                    Loot(**{**one, "threat": Threat(**one["threat"])}, pictures=stored[f"p{index}"])
                    for index, one in enumerate(facts)
                ]
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
            return None  # cut short by a full disk, say: run it again

    def keep(self, attack: str, loot: Sequence[Loot]) -> None:
        """Write what an attack brought; in one piece or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        facts = [_fields(one) for one in loot]
        arrays = {f"p{index}": one.pictures for index, one in enumerate(loot)}
        part = self._path(attack).with_suffix(".part")
        with part.open("wb") as file:
            np.savez_compressed(
                file, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays
            )
        part.replace(self._path(attack))

    def clear(self) -> None:
        """Delete what was kept: it holds pictures."""
        for path in [*self._folder.glob("*.npz"), *self._folder.glob("*.part")]:
            path.unlink()
        if self._folder.is_dir() and not any(self._folder.iterdir()):
            self._folder.rmdir()


def _fields(loot: Loot) -> dict[str, object]:
    return {
        "cut": loot.cut,
        "defence": loot.defence,
        "attack": loot.attack,
        "threat": loot.threat.model_dump(),
        "settings": dict(loot.settings),
        "has_converged": loot.has_converged,
        "evidence": dict(loot.evidence),
    }

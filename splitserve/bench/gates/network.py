"""The network that the gates are measured on: CIFAR-10 ResNet-20, exported and cut here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from splitserve.artifact import Artifact, Defence
from splitserve.audit.budget import Budget
from splitserve.audit.defences import fit_defence, parse_defence
from splitserve.audit.laboratory import Laboratory, Material, target_of
from splitserve.audit.subject import Floats, Transport
from splitserve.runtime import RuntimeOptions, open_chain
from splitserve.split import choose_cuts, load_graph, recipe_of, split_model
from splitserve.split.command_export import CHECKOUT, export

Tick = Callable[[], None]

CUTS = {"stem": "stem", "layer1": "block2", "layer2": "block5", "layer3": "block8"}
RECIPE = "cifar_resnet"
TUNED = 8
MADE = 3000
OPTIMISED = 16


@dataclass(frozen=True, slots=True)
class Pictures:
    """CIFAR-10 pictures.

    Args:
        test: that are attacked, (n, 3, 32, 32), 0 to 1.
        train: of an attacker who has pictures of his own.
        labels: of these.
    """

    test: Floats
    train: Floats
    labels: Sequence[int]


def prepare(weights: Path, build: Path) -> Artifact:
    """Export the network, and cut it behind its stem and its three stages."""
    model = build / "resnet20.onnx"
    export(CHECKOUT / RECIPE, model, weights)
    graph = load_graph(model)
    cuts = choose_cuts(graph, list(CUTS.values()))
    return split_model(graph, cuts, recipe_of(graph.model, RECIPE), model, build / "resnet20")


def laboratory_of(
    artifact: Artifact, cuts: Sequence[str], material: Material, budget: Budget, seed: int
) -> Laboratory:
    """A laboratory without codec and defence."""
    manifest = artifact.manifest
    targets = [
        target_of(artifact, position, Transport(None, "none", seed=seed))
        for position in sorted(manifest.position(name) for name in cuts)
    ]
    return Laboratory(artifact, targets, material, budget, seed)


@dataclass(frozen=True, slots=True)
class Bench:
    """Makes laboratories of one network.

    Args:
        artifact: of the network.
        pictures: to attack, and the attacker's own.
        build: folder that keeps networks between runs.
        seed: of everything drawn.
    """

    artifact: Artifact
    pictures: Pictures
    build: Path
    seed: int = 0

    def laboratory(
        self, steps: int, cuts: Sequence[str] = tuple(CUTS), optimise_steps: int = 1500
    ) -> Laboratory:
        """A laboratory without codec and defence.

        Args:
            steps: of a learned inverse.
            cuts: by stage: stem, layer1, layer2, layer3.
            optimise_steps: of the optimisation.
        """
        attacked, own = self.pictures.test, self.pictures.train[:MADE]
        count = len(attacked) - TUNED
        budget = Budget(
            "gates", count, MADE, steps, OPTIMISED, optimise_steps, TUNED, probes=48, shuffles=200
        )
        material = Material(attacked, own, attacked[:count], self.pictures.labels[:MADE])
        names = [CUTS[name] for name in cuts]
        return laboratory_of(self.artifact, names, material, budget, self.seed)

    def defended(self, lab: Laboratory, text: str, observations: int = 1) -> Laboratory:
        """The same behind a defence, fitted to the attacked pictures."""
        asked, chain = parse_defence(text), open_chain(self.artifact, RuntimeOptions())
        whole = lab.material.whole
        defences: list[Defence | None] = [
            fit_defence(asked, self.artifact, target.position, whole, chain, self.seed)
            for target in lab.targets
        ]
        other = lab.behind(defences)
        other.targets = [
            replace(t, transport=replace(t.transport, observations=observations))
            for t in other.targets
        ]
        return other

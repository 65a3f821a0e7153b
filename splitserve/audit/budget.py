"""How much an attacker may spend: three sizes, so that two audits can be compared by name."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Budget:
    """What an audit spends.

    Args:
        name: of the size.
        pictures: attacked by the learned attacks, and the gallery of identification.
        made: pictures that a data-free attacker makes for himself.
        steps: of a learned inverse.
        optimised: pictures attacked by optimisation.
        optimise_steps: of each.
        tuned: other pictures on which its weight is tuned.
        probes: random directions for the Fisher information.
        shuffles: for the null of the distance correlation.
    """

    name: str
    pictures: int
    made: int
    steps: int
    optimised: int
    optimise_steps: int
    tuned: int
    probes: int
    shuffles: int


BUDGETS = {
    budget.name: budget
    for budget in (
        Budget("quick", 64, 600, 300, 8, 200, 4, 16, 50),
        Budget("standard", 200, 3000, 1200, 16, 1500, 8, 48, 200),
        Budget("thorough", 500, 6000, 4000, 32, 4000, 16, 96, 500),
    )
}

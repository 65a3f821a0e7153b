"""When to leave the cloud alone: a circuit breaker with half-open probes."""

import math
import random
import time
from collections.abc import Callable

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
LONGEST_REQUESTED_S = 300.0  # a confused cloud must not silence a device for weeks
JITTER = 0.2


class Breaker:
    """Closed while the cloud answers; opens at a failure, then lets one probe through at a time.

    The pause doubles with every failed probe, up to a limit, with jitter so that a fleet does not
    come back in step. It counts from the beginning of a probe: one that met silence for as long
    has waited already, and only the first pause follows it.

    Args:
        clock: seconds that never go back.
        generator: source of the jitter.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        generator: random.Random | None = None,
    ) -> None:
        self._clock = clock
        self._random = generator or random.Random()  # noqa: S311  # jitter, not a secret
        self._pause_s = 0.0
        self._closed_until = 0.0
        self._is_probing = False
        self._probed_at_s = -math.inf

    @property
    def is_open(self) -> bool:
        """Whether the last thing heard of the cloud was a failure."""
        return self._pause_s > 0

    @property
    def is_probe_due(self) -> bool:
        """Whether it is open and would let a probe through."""
        return self.is_open and not self._is_probing and self._clock() >= self._closed_until

    def allows(self) -> bool:
        """Ask before each request; when open, True starts the one probe."""
        if not self.is_open:
            return True
        if not self.is_probe_due:
            return False
        self._is_probing, self._probed_at_s = True, self._clock()
        return True

    def succeeded(self) -> None:
        """The cloud answered."""
        self._pause_s, self._is_probing = 0.0, False

    def failed(self, at_least_s: float = 0.0) -> None:
        """The cloud did not answer, or asked for a pause of `at_least_s`.

        Requests that were already under way when the breaker opened count once, not each.
        """
        if self.is_open and not self._is_probing:
            return
        now_s = self._clock()
        waited_s = now_s - self._probed_at_s if self._is_probing else 0.0
        self._is_probing = False
        at_least_s = min(at_least_s, LONGEST_REQUESTED_S)
        doubled = min(LONGEST_PAUSE_S, max(FIRST_PAUSE_S, 2 * self._pause_s))
        self._pause_s = max(doubled, at_least_s)
        jitter = self._random.uniform(-JITTER, JITTER)
        waiting_s = max(FIRST_PAUSE_S, doubled - waited_s) * (1 + jitter)
        self._closed_until = now_s + max(waiting_s, at_least_s * (1 + abs(jitter)))

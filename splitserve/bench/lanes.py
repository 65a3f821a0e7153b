"""A rival of the codec's coder: the same tables, many interleaved states, vectorised in numpy.

Every lane is a coder of its own and costs up to four bytes; a step of all lanes costs a handful of
numpy calls. Here to be measured, not to be used.
"""

import numpy as np
import numpy.typing as npt

from splitserve.codec.rans import LOW, REACH, TOTAL_BITS, Ints, Model

MASK = (1 << TOTAL_BITS) - 1
Wide = npt.NDArray[np.uint64]


def encode_lanes(values: Ints, model: Model, lanes: int) -> list[npt.NDArray[np.uint16]]:
    """Code values within the tables' reach; lane i takes values i, i + lanes, and so on.

    Returns:
        Per step from the last to the first the words that were written, then the final states.
    """
    rows = model.cumulative.astype(np.uint64)
    starts = rows[model.tables, values + REACH]
    sizes = rows[model.tables, values + REACH + 1] - starts
    count = -(-len(values) // lanes)
    state = np.full(lanes, LOW, np.uint64)
    written = []
    for step in reversed(range(count)):
        part = slice(step * lanes, min((step + 1) * lanes, len(values)))
        size, start = sizes[part], starts[part]
        now = state[: len(size)]
        full = now >= size << np.uint64(32 - TOTAL_BITS)
        written.append(now[full].astype(np.uint16))
        now = np.where(full, now >> np.uint64(16), now)
        state[: len(size)] = (now // size << np.uint64(TOTAL_BITS)) + now % size + start
    return [*written, state.astype(np.uint32).view(np.uint16)]


def decode_lanes(words: list[npt.NDArray[np.uint16]], model: Model, lanes: int) -> Ints:
    """Undo `encode_lanes`."""
    rows = model.cumulative.astype(np.uint64)
    state = words[-1].view(np.uint32).astype(np.uint64)
    total = len(model.tables)
    values = np.empty(total, np.int32)
    for step, read in enumerate(reversed(words[:-1])):
        part = slice(step * lanes, min((step + 1) * lanes, total))
        tables = rows[model.tables[part]]
        now = state[: len(tables)]
        slot = now & np.uint64(MASK)
        symbol = (tables <= slot[:, None]).sum(axis=1) - 1
        picked = np.arange(len(tables))
        start = tables[picked, symbol]
        now = (tables[picked, symbol + 1] - start) * (now >> np.uint64(TOTAL_BITS)) + slot - start
        short = now < LOW
        now[short] = now[short] << np.uint64(16) | read
        state[: len(tables)] = now
        values[part] = symbol - REACH
    return values

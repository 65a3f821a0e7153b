"""Divide and conquer: one inverse a block of the head, then all of them chained.

The head is cut into shallow blocks. First every block's inverse is learned by itself, on the true
pair of features before and after it. Then the chain from every depth down to the picture is learned
too, with what the head itself says of the picture found (cycle consistency). One training run
inverts every depth, and an inversion is one pass.

The idea is Dong, Yin, Alvarez, Kautz, Molchanov (and Kung), arXiv 2107.06304; its settings are not
public to us. Widths, losses, weights and schedule here are our own (docs/audit.md).

Features of pictures that nobody took spread less at deep cuts than those of photographs. So every
channel is learned in units of its own deviation, and without batch norm.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from splitserve.audit.device import to_array, to_tensor
from splitserve.audit.subject import Floats, Subject

CONVOLUTIONS = 6  # of the head in one block
WIDTH_LEAST, WIDTH_MOST = 16, 64
PEAK_RATE = 4e-3
BATCH, BATCH_LEAST = 24, 8
BATCH_PIXELS = 24 * 64 * 64  # larger pictures hold more to learn from, so fewer make a batch
CYCLE = 0.2
CLIP_NORM = 1.0
LEAST = 0.02  # of all channels' deviation: one that is quiet here may not be so elsewhere
QUIET = 0.3  # of the usual first weights where the input is added
Tick = Callable[[], None]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Border:
    """A place between two blocks.

    Args:
        name: of the tensor; the picture has none.
        shape: (channels, height, width); 1 by 1 for a vector.
        is_rectified: whether it is never negative.
    """

    name: str
    shape: tuple[int, int, int]
    is_rectified: bool


def find_borders(subject: Subject, probe: Floats, must: Sequence[str]) -> list[Border]:
    """Borders of the blocks: each block has at most six convolutions and one halving of the size.

    Args:
        subject: the head.
        probe: a few pictures.
        must: tensors that have to be borders: the cuts that are audited, the last one at the end.
    """
    names = [name for name in subject.graph.single_tensors(subject.input_name) if name]
    names = list(dict.fromkeys([*names, *must]))
    order = {name: index for index, name in enumerate(subject.graph.names)}
    last = order[must[-1]]
    names = sorted((n for n in names if order[n] <= last), key=order.__getitem__)
    seen = dict(zip(names, subject.collect(probe, names), strict=True))
    maps = {name: values for name, values in seen.items() if values.ndim in (2, 4)}
    borders: list[str] = []
    before, waiting = probe.shape[-1], None
    since = 0
    for name in (n for n in names if n in maps):
        width = maps[name].shape[-1] if maps[name].ndim == 4 else 1
        depth = subject.graph.convolutions_before(name)
        if waiting and (depth - since > CONVOLUTIONS or width * 2 < before):
            borders.append(waiting)
            before, since = _width(maps[waiting]), subject.graph.convolutions_before(waiting)
        waiting = name
        if name in must:
            borders.append(name)
            before, since, waiting = width, depth, None
    return [Border(n, _shape(maps[n]), bool(maps[n].min() >= 0)) for n in dict.fromkeys(borders)]


def _width(values: Floats) -> int:
    return int(values.shape[-1]) if values.ndim == 4 else 1


def _shape(values: Floats) -> tuple[int, int, int]:
    return (*values.shape[1:],) if values.ndim == 4 else (values.shape[1], 1, 1)


class Residual(nn.Module):
    """Two convolutions, and the input added.

    Without batch norm: its statistics of made pictures do not fit those that are attacked.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            last.weight.mul_(QUIET)
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(0.1), last)

    def forward(self, x: Tensor) -> Tensor:
        """Keep the shape."""
        return functional.leaky_relu(x + self.body(x), 0.1)


class InverseBlock(nn.Module):
    """From the features behind a block to those before it.

    Each channel is learned in units of its own deviation, on both sides (`calibrate`).

    Args:
        after: shape behind the block.
        before: shape before it.
        residuals: how many residual blocks.
        is_rectified: whether what it gives is never negative.
    """

    def __init__(
        self,
        after: tuple[int, int, int],
        before: tuple[int, int, int],
        residuals: int,
        *,
        is_rectified: bool,
    ) -> None:
        super().__init__()
        width = min(WIDTH_MOST, max(WIDTH_LEAST, (after[0] + before[0]) // 2))
        self._size = before[1:]
        doublings = max(0, round(math.log2(max(1.0, before[1] / after[1]))))
        layers: list[nn.Module] = [nn.Conv2d(after[0], width, 3, padding=1), nn.LeakyReLU(0.1)]
        for _ in range(doublings):
            layers += [
                nn.Conv2d(width, 4 * width, 3, padding=1),
                nn.PixelShuffle(2),
                nn.LeakyReLU(0.1),
            ]
        layers += [Residual(width) for _ in range(residuals)]
        self._body = nn.Sequential(*layers)
        self._last = nn.Conv2d(width, before[0], 3, padding=1)
        self._is_rectified = is_rectified
        for side, channels in (("after", after[0]), ("before", before[0])):
            self.register_buffer(f"{side}_mean", torch.zeros(channels, 1, 1))
            self.register_buffer(f"{side}_deviation", torch.ones(channels, 1, 1))

    def calibrate(self, after: Floats, before: Floats) -> None:
        """Set the units.

        Args:
            after: examples of what it takes.
            before: examples of what it gives.
        """
        for side, values in (("after", after), ("before", before)):
            rest = (0, *range(2, values.ndim))
            mean = values.mean(rest)
            deviation = np.maximum(values.std(rest), LEAST * values.std() + 1e-6)
            self.get_buffer(f"{side}_mean").copy_(to_tensor(mean)[:, None, None])
            self.get_buffer(f"{side}_deviation").copy_(to_tensor(deviation)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) behind the block, or (n, channels), to the shape before it."""
        maps = x if x.dim() == 4 else x[:, :, None, None]
        maps = (maps - self.get_buffer("after_mean")) / self.get_buffer("after_deviation")
        maps = self._body(maps)
        if maps.shape[2:] != self._size:
            maps = functional.interpolate(maps, self._size, mode="bilinear", align_corners=False)
        values: Tensor = self._last(maps)
        values = values * self.get_buffer("before_deviation") + self.get_buffer("before_mean")
        return functional.relu(values) if self._is_rectified else values


@dataclass(frozen=True, slots=True)
class Pairs:
    """What an inverse learns from.

    Args:
        pictures: (n, 3, height, width), 0 to 1.
        before: features at every border, as the head gives them.
        received: features at every border as the receiver gets them; the same where none is cut.
    """

    pictures: Floats
    before: Sequence[Floats]
    received: Sequence[Floats]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to learn.

    Args:
        steps: half for the blocks alone, half with the chains.
        seed: of the batches.
        cycle: weight of the cycle terms; 0 leaves them out.
        chain_share: share of the steps with chains; 0 learns the blocks alone.
        is_single: whether only the chain from the deepest border is wanted.
    """

    steps: int = 360
    seed: int = 0
    cycle: float = CYCLE
    chain_share: float = 0.5
    is_single: bool = False


class Inverse(nn.Module):
    """The inverse blocks of a head, the picture's first.

    Args:
        borders: of the head's blocks, the shallowest first.
        picture: shape of the picture.
        seed: of the weights.
    """

    def __init__(
        self, borders: Sequence[Border], picture: tuple[int, int, int], seed: int = 0
    ) -> None:
        super().__init__()
        self.borders = list(borders)
        shapes = [picture, *(border.shape for border in borders)]
        rectified = [False, *(border.is_rectified for border in borders)]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.units = [
                InverseBlock(
                    shapes[k + 1], shapes[k], 0 if k == 0 else 1, is_rectified=rectified[k]
                )
                for k in range(len(borders))
            ]
        self.blocks = nn.ModuleList(self.units)

    def forward(self, features: Tensor, depth: int) -> Tensor:
        """Features at a border, 0 the first one, to pictures around 0 to 1."""
        for block in list(self.blocks[: depth + 1])[::-1]:
            features = block(features)
        return features

    @torch.no_grad()
    def invert(self, features: Floats, depth: int) -> Floats:
        """Pictures, clipped to 0..1, of many features."""
        self.eval()
        parts = [
            self(to_tensor(features[start : start + 64]), depth).clamp(0, 1)
            for start in range(0, len(features), 64)
        ]
        return to_array(torch.cat(parts))


def train_inverse(
    subject: Subject, inverse: Inverse, pairs: Pairs, recipe: Recipe, tick: Tick
) -> list[float]:
    """Learn all blocks and chains.

    Returns:
        The loss of every step, for the evidence of convergence.
    """
    generator = np.random.default_rng(recipe.seed)
    optimiser = torch.optim.Adam(inverse.parameters(), PEAK_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PEAK_RATE, recipe.steps)
    true = (pairs.pictures, *pairs.before)
    spread = [float(np.var(values)) + 1e-9 for values in true]
    for block, after, before in zip(inverse.units, pairs.received, true, strict=False):
        block.calibrate(after, before)
    deepest = len(inverse.borders) - 1
    depths = range(deepest if recipe.is_single else min(1, deepest), deepest + 1)
    size = batch_of(pairs.pictures.shape[2] * pairs.pictures.shape[3])
    losses = []
    inverse.train()
    for step in range(recipe.steps):
        rows = generator.choice(len(pairs.pictures), size, replace=len(pairs.pictures) < size)
        batch = _Batch(subject, inverse, pairs, rows, spread)
        loss = batch.blocks(recipe.cycle if step % 2 else 0.0)
        if step >= recipe.steps * (1 - recipe.chain_share):
            loss = loss + batch.chain(depths[step % len(depths)], recipe.cycle)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(inverse.parameters(), CLIP_NORM)
        optimiser.step()
        schedule.step()
        losses.append(float(loss.detach()))
        tick()
    return losses


def batch_of(pixels: int) -> int:
    """Pictures of one step, by the pixels of one."""
    return min(BATCH, max(BATCH_LEAST, BATCH_PIXELS // pixels))


class _Batch:
    """Losses of one batch."""

    def __init__(
        self,
        subject: Subject,
        inverse: Inverse,
        pairs: Pairs,
        rows: np.ndarray,
        spread: list[float],
    ) -> None:
        self._subject, self._inverse, self._spread = subject, inverse, spread
        self._true = [to_tensor(v[rows]) for v in (pairs.pictures, *pairs.before)]
        self._received = [to_tensor(v[rows]) for v in pairs.received]

    def blocks(self, cycle: float) -> Tensor:
        """Each block by itself; gradients do not cross blocks."""
        total = torch.zeros(())
        for k, block in enumerate(self._inverse.blocks):
            found = block(self._received[k])
            total = total + functional.mse_loss(found, self._like(k)) / self._spread[k]
            if cycle:
                total = total + cycle * self._cycle(found, k, k + 1)
        return total

    def chain(self, depth: int, cycle: float) -> Tensor:
        """From one depth down to the picture, and back up through the head."""
        picture = self._inverse(self._received[depth], depth)
        loss = functional.mse_loss(picture, self._true[0]) / self._spread[0]
        return loss + cycle * self._cycle(picture, 0, depth + 1) if cycle else loss

    def _like(self, k: int) -> Tensor:
        true = self._true[k]
        return true if true.dim() == 4 else true[:, :, None, None]

    def _cycle(self, found: Tensor, start: int, end: int) -> Tensor:
        """Distance of the head's features of what was found from the true ones."""
        wanted = [self._inverse.borders[end - 1].name]
        if start == 0:
            (again,) = self._subject.features(found, wanted)
        else:
            name, true = self._inverse.borders[start - 1].name, self._true[start]
            (again,) = self._subject.between({name: found.reshape(true.shape)}, wanted)
        return functional.mse_loss(again, self._true[end]) / self._spread[end]

"""Contestants that take turns."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Contestant = Callable[[], float]  # does the work once and says how many seconds it took


@dataclass(frozen=True)
class Work:
    """One kind of work: who does it here, and how Endoscope's workers are told of it.

    The first of `ours` is what all others are compared with.
    """

    title: str
    ours: Mapping[str, tuple[str, ...]]  # name -> arguments of `endoscope bench MODEL`
    peers: Mapping[str, Contestant] = field(default_factory=dict)


def timed(work: Callable[[], object]) -> Contestant:
    """A contestant whose whole work counts, freeing what it returned included."""

    def contestant() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return contestant


def in_turns(
    contestants: Mapping[str, Contestant], repeats: int
) -> dict[str, list[float]]:
    """Seconds of each contestant in each repetition, after one unmeasured turn."""
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(repeats + 1):
        for name, contestant in contestants.items():
            seconds = contestant()
            if repetition > 0:
                samples[name].append(seconds)
    return samples

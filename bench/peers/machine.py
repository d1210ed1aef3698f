"""What the machine gives at most, to PyTorch and to Endoscope: the larger counts."""

import platform
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from peers.measuring import Contestant, in_turns, timed
from peers.worker import Endoscope

GEMM_SIDE = 2048
READ_BYTES = 1 << 29
COPY_BYTES = 1 << 28


@dataclass(frozen=True)
class Machine:
    """Rates a second; each was reached by whoever is named."""

    gemm_flop: float
    read_bytes: float
    copy_bytes: float
    rates: dict[str, float]

    def share(self, seconds: float, flop: float | None, bytes_: float | None) -> str:
        """How much of its limit a work reached, for a table."""
        if flop:
            return f"{flop / seconds / self.gemm_flop:.0%} of products"
        if bytes_:
            return f"{bytes_ / seconds / self.read_bytes:.0%} of reading"
        return ""


def measure(endoscope: Endoscope, repeats: int) -> Machine:
    left, right = torch.randn(2, GEMM_SIDE, GEMM_SIDE)
    product = torch.empty(GEMM_SIDE, GEMM_SIDE)
    numbers = torch.ones(READ_BYTES // 4)
    source = torch.ones(COPY_BYTES // 4)
    target = torch.empty_like(source)
    contestants: dict[str, Contestant] = {
        "gemm, PyTorch": timed(lambda: torch.mm(left, right, out=product)),
        "read, PyTorch": timed(lambda: numbers.sum()),
        "copy, PyTorch": timed(lambda: target.copy_(source)),
    }
    amounts = {"gemm": 2.0 * GEMM_SIDE**3, "read": READ_BYTES, "copy": 2.0 * COPY_BYTES}
    with ExitStack() as stack:
        for work, amount in amounts.items():
            worker = stack.enter_context(endoscope.worker(["--work", work]))
            contestants[f"{work}, Endoscope"] = worker
            worker()
            assert worker.answer["count"] == amount, "the two sides measure other sizes"
        samples = in_turns(contestants, repeats)
    rates = {
        name: amounts[name.partition(",")[0]] / median(seconds)
        for name, seconds in samples.items()
    }

    def best(work: str) -> float:
        return max(rate for name, rate in rates.items() if name.startswith(work))

    return Machine(best("gemm"), best("read"), best("copy"), rates)


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith("model name")
    ]
    return names[0] if names else platform.machine()

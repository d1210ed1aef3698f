"""The table of works that were done in turns."""

from statistics import median
from typing import Any

from peers.machine import Machine

HEADER = """\
| work | who | median ms | least | most | their time / ours | in pairs | share |
| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"""


def rows(title: str, measured: dict[str, Any], machine: Machine) -> list[str]:
    """The rows of one work; ratios are to the first of Endoscope's rows, if any."""
    reference = measured["reference"]
    made = []
    for name, seconds in measured["seconds"].items():
        middle = median(seconds)
        ratio = paired = ""
        if reference is not None:
            ours = measured["seconds"][reference]
            ratio = f"{middle / median(ours):.2f}"
            pairs = (b / a for a, b in zip(ours, seconds, strict=True))
            paired = f"{median(pairs):.2f}"
        amount = measured["amounts"].get(name) or measured["amounts"].get(reference, {})
        share = machine.share(middle, amount.get("flop"), amount.get("bytes"))
        times = [f"{1e3 * value:.1f}" for value in (middle, min(seconds), max(seconds))]
        cells = [title, name, *times, ratio, paired, share]
        made.append("| " + " | ".join(cells) + " |")
        title = ""
    return made

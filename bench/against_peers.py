"""Times Endoscope against PyTorch, transformers and TransformerLens on one machine.

The model has GPT-2 small's shape and random weights. Each repetition runs every
contestant once, so that a change in the machine's speed meets all of them. Endoscope
runs as a worker process that does its work once for each line "go" and answers with its
own time; it sits idle while the others run. See README.md for what each work is.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["TQDM_DISABLE"] = "1"  # TransformerLens draws a bar within the timed work

import torch

from peers import decode, forward, machine, opening, paths, report, sweeps, training
from peers.measuring import Contestant, Work, in_turns
from peers.models import Models, model_folder
from peers.worker import Endoscope

ROOT = Path(__file__).resolve().parents[1]
WORKS: dict[str, Callable[[Models], list[Work]]] = {
    "forward": forward.forward,
    "capture": forward.capture,
    "sweep": sweeps.resid_pre,
    "heads": sweeps.heads,
    "paths": paths.paths,
    "decode": decode.decode,
    "decode-plan": decode.with_plan,
    "train": training.training,
}
NAMES = (*WORKS, "open")


def names(text: str) -> list[str]:
    chosen = text.split(",")
    for name in chosen:
        if name not in NAMES:
            raise argparse.ArgumentTypeError(
                f"no work is called {name!r}; there are {', '.join(NAMES)}"
            )
    return chosen


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    binary = ROOT / "target/release/endoscope"
    cache = Path(tempfile.gettempdir()) / "endoscope-bench"
    add("--endoscope", type=Path, default=binary, metavar="FILE", help="the binary")
    listed = ", ".join(NAMES)
    add(
        "--only",
        type=names,
        default=NAMES,
        metavar="NAME,…",
        help=f"of {listed}; default: all",
    )
    add("--repeats", type=int, default=7)
    add("--threads", type=int, default=2)
    add("--cache", type=Path, default=cache, metavar="DIR", help="keeps the model")
    add("--json", type=Path, metavar="FILE", help="every sample and the versions")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be at least 1")
    if not options.endoscope.is_file():
        parser.error(
            f"no {options.endoscope}: build it with `cargo build --release`, "
            "or name it with --endoscope"
        )
    return options


def measure(
    work: Work, endoscope: Endoscope, folder: Path, repeats: int
) -> dict[str, Any]:
    """Seconds of everybody who can do the work, and how much work that is."""
    with ExitStack() as stack:
        workers = {}
        for name, options in work.ours.items():
            if endoscope.can(options):
                worker = endoscope.worker([str(folder), *options])
                workers[name] = stack.enter_context(worker)
            else:
                said = f"{name}: this build has no `{' '.join(options)}`"
                print(f"{work.title}: {said}", file=sys.stderr)
        contestants: dict[str, Contestant] = {**workers, **work.peers}
        seconds = in_turns(contestants, repeats)
        first = next(iter(work.ours))
        return {
            "reference": first if first in workers else None,
            "seconds": seconds,
            "amounts": {name: worker.answer for name, worker in workers.items()},
        }


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    endoscope = Endoscope(options.endoscope, options.threads)
    models = Models(model_folder(options.cache))
    limits = machine.measure(endoscope, options.repeats)
    measured = {}
    for name in (name for name in options.only if name in WORKS):
        for work in WORKS[name](models):
            measured[work.title] = measure(
                work, endoscope, models.folder, options.repeats
            )
            print(f"{work.title}: done", file=sys.stderr)
    opened = None
    if "open" in options.only:
        opened = opening.measure(
            endoscope, models.folder, options.threads, options.repeats
        )

    packages = ("torch", "transformers", "transformer-lens", "numpy")
    versions = {
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }
    print(
        f"{machine.cpu_model()}, {options.threads} threads; "
        + ", ".join(map(" ".join, versions.items()))
    )
    rates = ", ".join(f"{who} {rate / 1e9:.1f}" for who, rate in limits.rates.items())
    print(
        "The machine's limits in GFLOP/s and GB/s, each the larger of two: "
        f"{rates}. Medians of {options.repeats}.\n"
    )
    if measured:
        print(report.HEADER)
        for title, one in measured.items():
            print("\n".join(report.rows(title, one, limits)))
    if opened:
        print("\n" + opening.table(opened, models.folder))
    if options.json:
        document = {
            "cpu": machine.cpu_model(),
            "cores": os.cpu_count(),
            "threads": options.threads,
            "load_average": os.getloadavg(),
            "versions": versions,
            "machine": {
                "gemm_flop_per_s": limits.gemm_flop,
                "read_bytes_per_s": limits.read_bytes,
                "copy_bytes_per_s": limits.copy_bytes,
                "rates": limits.rates,
            },
            "works": measured,
            "open": opened,
        }
        options.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Composition scores of all pairs of heads: TransformerLens against Endoscope.

Usage: bench/.venv/bin/python bench/composition.py [--binary target/release/endoscope]

Endoscope is timed from outside, a whole process with opening the model; of
TransformerLens only the scores. It needs 9 GB of memory there.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from peers.models import hooked_gpt2, model_folder, open_transformers

AGREEMENT = 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", type=Path, default="target/release/endoscope")
    parser.add_argument("--cache", type=Path, default=tempfile.gettempdir())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = model_folder(arguments.cache)
    hooked = hooked_gpt2(open_transformers(folder))
    command = [arguments.binary, "inspect", folder, "--composition", "k", "--json"]
    command += ["--threads", str(arguments.threads)]
    ratios = []
    for _ in range(arguments.repeats):
        start = time.perf_counter()
        output = subprocess.run(command, check=True, capture_output=True).stdout
        ours = time.perf_counter() - start
        start = time.perf_counter()
        with torch.no_grad():
            scores = hooked.all_composition_scores("K")
        theirs = time.perf_counter() - start
        found = torch.tensor(json.loads(output)["composition"]["scores"])
        difference = (found - scores.reshape(found.shape)).abs().max().item()
        assert difference < AGREEMENT, f"the scores differ by {difference:.1e}"
        print(f"{theirs:.2f} s / {ours:.2f} s, scores differ by {difference:.1e}")
        ratios.append(theirs / ours)
    print(f"their time / ours: {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()

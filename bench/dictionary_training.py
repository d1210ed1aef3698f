"""Updates of a TopK dictionary: SAELens against Endoscope, in turn, on as many threads.

Usage: PYTHON bench/dictionary_training.py [--latents 24576], where PYTHON has sae-lens
6.54 and torch (see tools/goldens/README.md).

Before it: cargo build --release -p endoscope-cli -p endoscope-dictionary --examples

Both see random vectors, make whole updates (forward, gradient, clipping by its length,
Adam), and are timed update by update. SAELens is given both of its ways, dense and with
sparse activations; the faster one counts. (With torch 2.8 the latter has no gradient on
the CPU: then it is left out, and the output says so.)
"""

import argparse
import json
import os
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

BINARY = "target/release/examples/training_speed"


class Theirs:
    """One of SAELens's dictionaries, ready to be updated."""

    def __init__(self, arguments: argparse.Namespace, sparse: bool) -> None:
        torch.manual_seed(0)
        config = TopKTrainingSAEConfig(
            d_in=arguments.d_in,
            d_sae=arguments.latents,
            k=arguments.k,
            use_sparse_activations=sparse,
        )
        self.sae = TopKTrainingSAE(config)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=3e-4)
        self.batch = arguments.batch
        self.width = arguments.d_in

    def update(self) -> float:
        """The seconds that one update takes."""
        x = 2 * torch.rand(self.batch, self.width) - 1
        start = time.perf_counter()
        output = self.sae.training_forward_pass(
            TrainStepInput(
                sae_in=x,
                coefficients={},
                dead_neuron_mask=None,
                n_training_steps=0,
                is_logging_step=False,
            )
        )
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.perf_counter() - start


def ours(arguments: argparse.Namespace) -> dict[str, Any]:
    """The seconds of some updates of ours, and the speed of its matrix product."""
    sizes = (arguments.d_in, arguments.latents, arguments.k, arguments.batch)
    command = [arguments.binary, *map(str, sizes), str(arguments.steps)]
    environment = os.environ | {"RAYON_NUM_THREADS": str(arguments.threads)}
    run = subprocess.run(command, check=True, capture_output=True, env=environment)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def main() -> None:
    """Prints tokens per second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default=BINARY)
    parser.add_argument("--d-in", type=int, default=768)
    parser.add_argument("--latents", type=int, default=24576)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if not Path(arguments.binary).exists():
        raise SystemExit(f"{arguments.binary} is missing: build it first (--help)")
    torch.set_num_threads(arguments.threads)
    dense, sparse = Theirs(arguments, False), Theirs(arguments, True)
    seconds: dict[str, list[float]] = {"ours": []}
    gemm = []
    # What is set up at its first use is set up now.
    dense.update()
    peers = {"dense": dense}
    try:
        sparse.update()
        peers["sparse"] = sparse
    except (NotImplementedError, RuntimeError) as error:
        print(f"no sparse activations: {str(error).splitlines()[0][:120]}")
    for _ in range(arguments.rounds):
        found = ours(arguments)
        seconds["ours"] += found["seconds"]
        gemm.append(found["gemm_flops"])
        for name, peer in peers.items():
            updates = [peer.update() for _ in range(arguments.steps)]
            seconds.setdefault(name, []).extend(updates)
    median = {name: statistics.median(each) for name, each in seconds.items()}
    best = min(median[name] for name in peers)
    flops = 2 * arguments.batch * arguments.d_in * arguments.latents
    result = {
        "tokens_per_second": {
            name: arguments.batch / each for name, each in median.items()
        },
        "ratio": best / median["ours"],
        # Of the product that the encoder cannot do without.
        "share_of_gemm": flops / statistics.median(gemm) / median["ours"],
        "gemm_gflops": statistics.median(gemm) / 1e9,
        "seconds": seconds,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()

"""Dictionaries of known features: SAELens and Endoscope on the same vectors.

Usage: PYTHON bench/dictionary_quality.py [--steps 2000] [--seeds 5], where PYTHON has
sae-lens 6.54 and torch (see tools/goldens/README.md).

Before it: cargo build --release -p endoscope-cli -p endoscope-dictionary --examples

Vectors are sparse sums of random directions: independent ones, correlated ones (groups
that come together), and trees whose children come only with their parent. Both train
each architecture on the same vectors, in the same order, with the same settings and
number of updates; their start is drawn anew by each. Measured by one program on fresh
vectors: FVU, L0, the mean over the true directions of the largest cosine with a decoder
row (MMCS), and the share of true directions found above 0.9. Seeds draw other vectors
and other starts. Prints a line for each run, then a table: means over seeds, and the
mean over seeds of the ratio of FVUs with its least and largest.
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sae_lens.saes.batchtopk_sae import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
)
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
from safetensors.numpy import load_file, save_file

WIDTH, FEATURES, ACTIVE, LATENTS, BATCH, RATE = 64, 256, 5.0, 512, 512, 1e-3
DEAD = 300
KINDS = ("independent", "correlated", "hierarchical")
Arrays = dict[str, np.ndarray]


def directions() -> np.ndarray:
    """The true directions, of length 1."""
    drawn = np.random.default_rng(0).normal(size=(FEATURES, WIDTH))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def vectors(kind: str, rows: int, seed: int) -> np.ndarray:
    """Sparse sums of the true directions."""
    random = np.random.default_rng(seed)
    group = 1 if kind == "independent" else 8
    groups = FEATURES // group
    if kind == "independent":
        there = random.random((rows, FEATURES)) < ACTIVE / FEATURES
    elif kind == "correlated":
        whole = random.random((rows, groups, 1)) < 2 * ACTIVE / FEATURES
        there = whole & (random.random((rows, groups, group)) < 0.5)
    else:
        share = ACTIVE / groups / (1 + 0.3 * (group - 1))
        parent = random.random((rows, groups, 1)) < share
        child = parent & (random.random((rows, groups, group)) < 0.3)
        child[:, :, 0] = parent[:, :, 0]
        there = child
    sizes = 0.5 + random.random((rows, FEATURES))
    return ((there.reshape(rows, FEATURES) * sizes) @ directions()).astype(np.float32)


CASES: dict[str, list[tuple[dict[str, Any], type, type, dict[str, Any]]]] = {
    "topk": [
        ({"topk": {"k": 5}}, TopKTrainingSAE, TopKTrainingSAEConfig, {"k": 5}),
    ],
    "batchtopk": [
        (
            {"batchtopk": {"k": 5}},
            BatchTopKTrainingSAE,
            BatchTopKTrainingSAEConfig,
            {"k": 5},
        ),
    ],
    "matryoshka": [
        (
            {"batchtopk": {"k": 5, "widths": [64, 256]}},
            MatryoshkaBatchTopKTrainingSAE,
            MatryoshkaBatchTopKTrainingSAEConfig,
            {"k": 5, "matryoshka_widths": [64, 256, LATENTS]},
        ),
    ],
    "standard": [
        (
            {"standard": {"l1": l1}},
            StandardTrainingSAE,
            StandardTrainingSAEConfig,
            {"l1_coefficient": l1},
        )
        for l1 in (0.3, 1.0)
    ],
    "gated": [
        (
            {"gated": {"l1": l1}},
            GatedTrainingSAE,
            GatedTrainingSAEConfig,
            {"l1_coefficient": l1},
        )
        for l1 in (0.3, 1.0)
    ],
    "jumprelu": [
        (
            {"jumprelu": {"l0": l0, "through_input": True}},
            JumpReLUTrainingSAE,
            JumpReLUTrainingSAEConfig,
            {"l0_coefficient": l0, "jumprelu_ste_to_input": True},
        )
        for l0 in (0.001, 0.003, 0.01)
    ],
}


def theirs(
    kind: type,
    config: type,
    options: dict[str, Any],
    data: np.ndarray,
    steps: int,
    seed: int,
) -> Arrays:
    """The arrays of SAELens's dictionary, as it saves them for use."""
    torch.manual_seed(seed)
    sae = kind(config(d_in=WIDTH, d_sae=LATENTS, **options))
    optimizer = torch.optim.Adam(sae.parameters(), lr=RATE)
    sparse = {
        "l1": options.get("l1_coefficient", 0.0),
        "l0": options.get("l0_coefficient", 0.0),
    }
    idle = torch.zeros(LATENTS)
    for step in range(steps):
        first = step * BATCH % len(data)
        output = sae.training_forward_pass(
            TrainStepInput(
                sae_in=torch.from_numpy(data[first : first + BATCH]),
                coefficients=sparse,
                dead_neuron_mask=idle > DEAD,
                n_training_steps=step,
                is_logging_step=False,
            )
        )
        with torch.no_grad():
            idle += 1
            idle[(output.feature_acts > 0).any(0)] = 0
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (steps - step) / (steps // 5))
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
    state = sae.state_dict()
    sae.process_state_dict_for_saving_inference(state)
    return {name: value.numpy() for name, value in state.items()}


def ours(
    binary: str,
    objective: dict[str, Any],
    data: Path,
    steps: int,
    scratch: Path,
    seed: int,
) -> Arrays:
    """The arrays of our dictionary."""
    settings = {
        "objective": objective,
        "latents": LATENTS,
        "batch": BATCH,
        "steps": steps,
        "learning_rate": RATE,
        "decay_steps": steps // 5,
        "dead_after_steps": DEAD,
        "seed": seed,
    }
    file, out = scratch / "settings.json", scratch / "out.safetensors"
    file.write_text(json.dumps(settings))
    subprocess.run(
        [binary, str(data), str(file), str(out)], check=True, capture_output=True
    )
    found: Arrays = load_file(out)
    return found


def measured(arrays: Arrays, name: str, x: np.ndarray) -> dict[str, float]:
    """What a dictionary makes of fresh vectors; the same program for both."""
    pre = (x - arrays["b_dec"]) @ arrays["W_enc"]
    if "b_gate" in arrays or "b_mag" in arrays:
        gate = arrays.get("b_gate", arrays.get("b_enc"))
        size = pre * np.exp(arrays["r_mag"]) + arrays["b_mag"]
        codes = (pre + gate > 0) * np.maximum(size, 0)
    else:
        pre = pre + arrays["b_enc"]
        if name == "topk":
            least = np.sort(pre, axis=1)[:, -5][:, None]
            codes = np.where(pre >= least, np.maximum(pre, 0), 0)
        elif "threshold" in arrays:
            codes = np.where(pre > arrays["threshold"], pre, 0)
        else:
            codes = np.maximum(pre, 0)
    error = x - (codes @ arrays["W_dec"] + arrays["b_dec"])
    fvu = (error**2).sum() / ((x - x.mean(0)) ** 2).sum()
    rows = arrays["W_dec"]
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    best = (directions() @ unit.T).max(axis=1)
    return {
        "fvu": float(fvu),
        "l0": float((codes > 0).sum(1).mean()),
        "mmcs": float(best.mean()),
        "recovered": float((best > 0.9).mean()),
    }


def compared(
    arguments: argparse.Namespace, kind: str, seed: int
) -> list[dict[str, Any]]:
    """Both programs' dictionaries on vectors of one kind and one seed."""
    steps = arguments.steps
    data = vectors(kind, BATCH * min(steps, 1000), 2 * seed + 1)
    fresh = vectors(kind, 20_000, 2 * seed + 2)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        file = scratch / "vectors.safetensors"
        save_file({"activations": data}, file)
        for name, cases in CASES.items():
            if arguments.only not in (None, name):
                continue
            for objective, sae, config, options in cases:
                their = theirs(sae, config, options, data, steps, seed)
                our = ours(arguments.binary, objective, file, steps, scratch, seed)
                line = {
                    "data": kind,
                    "objective": objective,
                    "seed": seed,
                    "saelens": measured(their, name, fresh),
                    "endoscope": measured(our, name, fresh),
                }
                print(json.dumps(line), flush=True)
                lines.append(line)
    return lines


def table(lines: list[dict[str, Any]]) -> None:
    """Prints means over seeds, SAELens / ours, and ratios of FVUs."""
    cases: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        case = line["data"], json.dumps(line["objective"])
        cases.setdefault(case, []).append(line)
    print("\n| data | objective | FVU | ratio | L0 | MMCS | recovered |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for (kind, objective), runs in cases.items():
        cells = []
        for name in ("fvu", "l0", "mmcs", "recovered"):
            means = [
                float(np.mean([run[side][name] for run in runs]))
                for side in ("saelens", "endoscope")
            ]
            cells.append(f"{means[0]:.3g} / {means[1]:.3g}")
            if name == "fvu":
                ratios = [
                    run["endoscope"]["fvu"] / run["saelens"]["fvu"] for run in runs
                ]
                least, largest = min(ratios), max(ratios)
                cells.append(f"{np.mean(ratios):.3f} ({least:.3f} to {largest:.3f})")
        print(f"| {kind} | {objective} | {' | '.join(cells)} |")


def main() -> None:
    """Prints a line for each run, and a table of all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", default="target/release/examples/train_on")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=list(CASES))
    parser.add_argument("--data", choices=KINDS)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
    lines = []
    for kind in [arguments.data] if arguments.data else KINDS:
        for seed in range(arguments.seeds):
            lines += compared(arguments, kind, seed)
    table(lines)


if __name__ == "__main__":
    main()

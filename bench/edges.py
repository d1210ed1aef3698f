"""Every edge patched by itself: a TransformerLens loop against Endoscope.

Usage: bench/.venv/bin/python bench/edges.py [--binary target/release/endoscope]

GPT-2 small's shape, random weights, two prompts of 16 tokens, logit difference: 32,491
edges. A loop over all of them takes TransformerLens hours, so it patches a random
sample of them, half before and half after Endoscope's whole run, and its mean time for
an edge is multiplied by their number. Its model splits what heads read
(`use_split_qkv_input`) and reads nothing but the last logits; the runs that give the
writes are not counted. Endoscope is timed from outside: a whole process, with opening
the model and writing the run directory. The sample's effects must agree.
"""

import argparse
import json
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from peers.models import hooked_gpt2, model_folder, open_transformers

POSITIONS = 16
AGREEMENT = 1e-4
ANSWER, WRONG = 11, 13


def write(cache: Any, node: str) -> Tensor:
    """What a node writes."""
    if node == "input":
        return cache["blocks.0.hook_resid_pre"]
    if node.startswith("m"):
        return cache[f"blocks.{node[1:]}.hook_mlp_out"]
    layer, head = node[1:].split(".h")
    return cache[f"blocks.{layer}.attn.hook_result"][:, :, int(head)]


def reads(reader: str, layers: int) -> tuple[str, int | None]:
    """The hook that a reader reads at, and its head."""
    if reader == "logits":
        return f"blocks.{layers - 1}.hook_resid_post", None
    if reader.startswith("m"):
        return f"blocks.{reader[1:]}.hook_mlp_in", None
    layer, rest = reader[1:].split(".h")
    head, part = rest[:-1].split("<")
    return f"blocks.{layer}.hook_{part}_input", int(head)


def all_edges(layers: int, heads: int) -> list[str]:
    nodes, edges = ["input"], []
    for layer in range(layers):
        edges += [
            f"{node}->a{layer}.h{head}<{part}>"
            for node in nodes
            for head in range(heads)
            for part in "qkv"
        ]
        nodes += [f"a{layer}.h{head}" for head in range(heads)]
        edges += [f"{node}->m{layer}" for node in nodes]
        nodes.append(f"m{layer}")
    return edges + [f"{node}->logits" for node in nodes]


def score(logits: Tensor) -> float:
    return float(logits[0, -1, ANSWER] - logits[0, -1, WRONG])


class Loop:
    """What a careful user of TransformerLens writes."""

    def __init__(
        self, model: HookedTransformer, clean: Tensor, corrupt: Tensor
    ) -> None:
        self.model, self.clean = model, clean
        _, here = model.run_with_cache(clean)
        _, there = model.run_with_cache(corrupt)
        self.here, self.there = here, there
        self.unchanged = score(model(clean))

    def effect(self, edge: str) -> float:
        node, reader = edge.split("->")
        change = write(self.there, node) - write(self.here, node)
        site, head = reads(reader, self.model.cfg.n_layers)

        def hook(value: Tensor, hook: Any) -> Tensor:
            value = value.clone()
            if head is None:
                return value + change
            value[:, :, head] += change
            return value

        return (
            score(self.model.run_with_hooks(self.clean, fwd_hooks=[(site, hook)]))
            - self.unchanged
        )

    def timed(self, edges: list[str]) -> tuple[float, list[float]]:
        start = time.perf_counter()
        effects = [self.effect(edge) for edge in edges]
        return time.perf_counter() - start, effects


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, default="target/release/endoscope")
    parser.add_argument("--cache", type=Path, default=tempfile.gettempdir())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sample", type=int, default=60, help="edges a repetition")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    folder = model_folder(arguments.cache)
    model = hooked_gpt2(open_transformers(folder))
    model.set_use_split_qkv_input(True)
    model.set_use_attn_result(True)
    model.set_use_hook_mlp_in(True)
    generator = torch.Generator().manual_seed(1)
    clean, corrupt = torch.randint(
        model.cfg.d_vocab, (2, 1, POSITIONS), generator=generator
    )
    loop = Loop(model, clean, corrupt)
    # Only writing what a head gives is slow, and the loop does not need it any more.
    model.set_use_attn_result(False)
    pair = {"clean": clean[0].tolist(), "corrupt": corrupt[0].tolist()}
    pair |= {"answers": [ANSWER], "wrong_answers": [WRONG]}
    names = all_edges(model.cfg.n_layers, model.cfg.n_heads)
    sample = random.Random(0).sample(names, arguments.sample)
    half = len(sample) // 2
    ratios = []
    for _ in range(arguments.repeats):
        before, effects = loop.timed(sample[:half])
        with tempfile.TemporaryDirectory() as scratch:
            prompts, out = Path(scratch) / "pairs.json", Path(scratch) / "run"
            prompts.write_text(json.dumps({"prompts": [pair]}))
            command = [arguments.binary, "attribute", folder, "--prompts", prompts]
            command += [
                "--method",
                "edges",
                "--out",
                out,
                "--threads",
                str(arguments.threads),
            ]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            ours = time.perf_counter() - start
            scores = json.loads((out / "edges.json").read_text())["edges"]
        after, more = loop.timed(sample[half:])
        assert set(scores) == set(names)
        expected = [scores[name]["score"] for name in sample]
        difference = max(
            abs(a - b) for a, b in zip(effects + more, expected, strict=True)
        )
        assert difference < AGREEMENT, f"effects differ by {difference:.1e}"
        theirs = (before + after) / len(sample) * len(names)
        ratios.append(theirs / ours)
        print(
            f"{len(names)} edges: {theirs:.0f} s (from {len(sample)}) / {ours:.1f} s = "
            f"{theirs / ours:.1f}; the sample's effects differ by {difference:.1e} "
            f"of {max(map(abs, expected)):.1e}"
        )
    print(f"their time / ours: {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()

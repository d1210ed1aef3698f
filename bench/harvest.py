"""Activations of a corpus to disk: loops over transformers and TransformerLens against
`endoscope harvest`.

Usage: bench/.venv/bin/python bench/harvest.py [--binary target/release/endoscope]

GPT-2 small's shape with four layers, random weights; 32,768 random tokens in blocks of
128, 16 blocks a batch; the residual stream after the third layer, written as float32
safetensors. The loops are those of a careful user: transformers without its
unembedding and with a hook on the block, TransformerLens as SAELens calls it
(`run_with_cache` with `stop_at_layer`). Only they themselves are timed, of Endoscope
the whole process: opening the model, hashing its files, syncing shards to the disk.
They take turns, and rows must agree.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config

from peers.models import hooked_gpt2, open_transformers

BLOCK, BATCH, LAYER = 128, 16, 2
SITE = f"blocks.{LAYER}.hook_resid_post"
AGREEMENT = 1e-3


def model_folder(cache: Path) -> Path:
    folder = cache / "gpt2-small-4-layers-random"
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(GPT2Config(n_layer=4))
        model.save_pretrained(folder)
    return folder


def by_transformers(model: Any, blocks: Tensor, out: Path) -> None:
    kept = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        kept.append(output[0] if isinstance(output, tuple) else output)

    handle = model.transformer.h[LAYER].register_forward_hook(keep)
    for batch in blocks.split(BATCH):
        model.transformer(batch, use_cache=False)
    handle.remove()
    save_file({SITE: torch.cat(kept).flatten(0, 1)}, out)


def by_transformer_lens(model: Any, blocks: Tensor, out: Path) -> None:
    kept = []
    for batch in blocks.split(BATCH):
        _, cache = model.run_with_cache(
            batch, names_filter=[SITE], stop_at_layer=LAYER + 1
        )
        kept.append(cache[SITE])
    save_file({SITE: torch.cat(kept).flatten(0, 1)}, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, default="target/release/endoscope")
    parser.add_argument("--cache", type=Path, default=tempfile.gettempdir())
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=256)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    folder = model_folder(Path(arguments.cache))
    model = open_transformers(folder)
    hooked = hooked_gpt2(model)
    generator = torch.Generator().manual_seed(1)
    blocks = torch.randint(
        model.config.vocab_size, (arguments.blocks, BLOCK), generator=generator
    )
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        corpus, theirs = Path(scratch) / "tokens.jsonl", Path(scratch) / "theirs"
        lines = [json.dumps({"tokens": block}) for block in blocks.tolist()]
        corpus.write_text("\n".join(lines))

        def endoscope(out: Path) -> None:
            command = [arguments.binary, "harvest", folder, corpus, "--sites", SITE]
            command += ["--context", str(BLOCK), "--batch-tokens", str(BLOCK * BATCH)]
            command += ["--threads", str(arguments.threads), "--out", out]
            subprocess.run(command, check=True, capture_output=True)

        outs = [Path(scratch) / str(number) for number in range(arguments.repeats + 1)]
        works: dict[str, Callable[[Path], None]] = {
            "transformers": lambda _: by_transformers(model, blocks, theirs),
            "TransformerLens": lambda _: by_transformer_lens(hooked, blocks, theirs),
            "Endoscope": endoscope,
        }
        for repetition, out in enumerate(outs):
            for name, work in works.items():
                start = time.perf_counter()
                work(out)
                if repetition > 0:
                    samples.setdefault(name, []).append(time.perf_counter() - start)
            shards = sorted(out.glob("shard-*"))
            ours = torch.cat([load_file(shard)[SITE] for shard in shards])
            difference = (ours - load_file(theirs)[SITE]).abs().max().item()
            assert difference < AGREEMENT, f"rows differ by {difference:.1e}"
    own = samples["Endoscope"]
    for name, times in samples.items():
        median = statistics.median(times)
        ratio = statistics.median(a / b for a, b in zip(times, own, strict=True))
        print(
            f"{name:<16} {median:6.2f} s  {blocks.numel() / median:8.0f} rows/s  "
            f"{median / statistics.median(own):.2f} of Endoscope's time "
            f"({ratio:.2f} in pairs)"
        )
    print(f"rows differ by at most {difference:.1e}")


if __name__ == "__main__":
    main()

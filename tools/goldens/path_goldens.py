"""Path patching by a plain loop over TransformerLens, as the papers write it."""

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer
from transformers import AutoModelForCausalLM

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools" / "reference"))

from transformer_lens_side import hooked_llama  # noqa: E402

ORGANISM = "induction-redundant"
OUT = ROOT / "crates/endoscope-causal/tests/goldens/paths.json"
WORDS, PERIOD, PAIRS = 32, 6, 2
RECEIVERS: dict[str, list[tuple[str, int]]] = {
    "final": [],
    "q.1[2,5]": [("blocks.1.attn.hook_q", 2), ("blocks.1.attn.hook_q", 5)],
    "k.1[0]": [("blocks.1.attn.hook_k", 0)],
}


def set_head(head: int, source: Tensor) -> Callable[..., Tensor]:
    def hook(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, :, head] = source[:, :, head]
        return value

    return hook


def constant(source: Tensor) -> Callable[..., Tensor]:
    return lambda value, hook: source


def scores(
    model: HookedTransformer,
    clean: list[int],
    corrupt: list[int],
    answers: tuple[int, int],
) -> dict[str, list[float]]:
    """Logit difference at the end for each sender, by receiver."""
    rows = [torch.tensor([tokens]) for tokens in (clean, corrupt)]
    (_, here), (_, there) = (model.run_with_cache(row) for row in rows)

    def difference(logits: Tensor) -> float:
        return float(logits[0, -1, answers[0]] - logits[0, -1, answers[1]])

    found: dict[str, list[float]] = {}
    for name, receivers in RECEIVERS.items():
        values = []
        for layer in range(model.cfg.n_layers):
            for head in range(model.cfg.n_heads):
                # Every head and MLP as in the clean run, but for the sender.
                hooks = []
                for other in range(model.cfg.n_layers):
                    result = f"blocks.{other}.attn.hook_result"
                    source = here[result].clone()
                    if other == layer:
                        source[:, :, head] = there[result][:, :, head]
                    hooks.append((result, constant(source)))
                    mlp = f"blocks.{other}.hook_mlp_out"
                    hooks.append((mlp, constant(here[mlp])))
                with model.hooks(fwd_hooks=hooks):
                    logits, received = model.run_with_cache(rows[0])
                if receivers:
                    patches = [
                        (site, set_head(number, received[site]))
                        for site, number in receivers
                    ]
                    logits = model.run_with_hooks(rows[0], fwd_hooks=patches)
                values.append(difference(logits))
        found[name] = values
    return found


def main() -> None:
    torch.set_grad_enabled(False)
    folder = ROOT / "organisms" / ORGANISM
    model = hooked_llama(AutoModelForCausalLM.from_pretrained(folder))
    draw = random.Random(7)
    pairs = []
    for _ in range(PAIRS):
        first, second = (draw.sample(range(2, 2 + WORDS), PERIOD) for _ in range(2))
        # Each ends where the word to come stood at place 3 of the first copy.
        clean, corrupt = ([0, *row, *row[:3]] for row in (first, second))
        answers = (first[3], second[3])
        assert answers[0] != answers[1]
        pairs.append(
            {
                "clean": clean,
                "corrupt": corrupt,
                "answers": [answers[0]],
                "wrong_answers": [answers[1]],
                "values": scores(model, clean, corrupt, answers),
            }
        )
    OUT.write_text(json.dumps({"organism": ORGANISM, "pairs": pairs}) + "\n")


if __name__ == "__main__":
    main()

"""The logit lens and causal tracing in the organism two-hop-cot, by torch through
transformers.

Questions are drawn at random, so that nothing is needed of the world that the organism
knows. The lens is the final norm and the unembedding, applied to the embedding and to
what every block gives; a state is exchanged by a hook before a block.

Usage: bench/.venv/bin/python tools/goldens/cot_circuit.py
"""

import json
from typing import TypeAlias

import torch
from places import ROOT
from transformers import GPT2LMHeadModel

OUT = ROOT / "crates/endoscope-studies/tests/goldens/cot_circuit.json"
ENTITIES, RELATIONS = range(2, 82), range(82, 112)
QUESTIONS = 12
# A rank is a golden only if rounding cannot change it.
APART = 1e-4

# Blocks give a tensor, or a tuple that begins with it, by the version of transformers.
Out: TypeAlias = torch.Tensor | tuple[torch.Tensor, ...]


def rank(logits: torch.Tensor, target: int) -> int:
    """How many tokens have a larger logit."""
    others = torch.cat([logits[:target], logits[target + 1 :]])
    if (others - logits[target]).abs().min() < APART:
        raise ValueError("two logits are too near to each other")
    return int((others > logits[target]).sum())


def states(
    model: GPT2LMHeadModel, tokens: list[int]
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The stream before the first block and after each, `[position, dim]`, and the
    logits at the last position."""
    kept: list[torch.Tensor] = []
    blocks = model.transformer.h

    def before(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        kept.append(inputs[0][0])

    def after(_: torch.nn.Module, __: object, out: Out) -> None:
        kept.append(hidden(out)[0])

    hooks = [blocks[0].register_forward_pre_hook(before)]
    hooks += [block.register_forward_hook(after) for block in blocks]
    logits = model(torch.tensor([tokens])).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return kept, logits


def hidden(out: Out) -> torch.Tensor:
    return out if isinstance(out, torch.Tensor) else out[0]


def spliced(
    model: GPT2LMHeadModel,
    tokens: list[int],
    layer: int,
    position: int,
    state: torch.Tensor,
) -> torch.Tensor:
    """The logits at the last position when what a block reads is another state."""

    def change(
        _: torch.nn.Module, inputs: tuple[torch.Tensor, ...]
    ) -> tuple[torch.Tensor, ...]:
        changed = inputs[0].clone()
        changed[0, position] = state
        return (changed, *inputs[1:])

    hook = model.transformer.h[layer].register_forward_pre_hook(change)
    logits: torch.Tensor = model(torch.tensor([tokens])).logits[0, -1]
    hook.remove()
    return logits


def question(model: GPT2LMHeadModel, random: torch.Generator) -> dict[str, object]:
    """One question with another one, and every rank; a ValueError if one of them is
    not certain."""

    def draw(words: range) -> int:
        return words[int(torch.randint(len(words), (1,), generator=random))]

    clean, other = (
        [0, draw(ENTITIES), draw(RELATIONS), draw(RELATIONS)] for _ in range(2)
    )
    streams, logits = states(model, clean)
    others, _ = states(model, other)
    target = int(logits.argmax())
    read = [model.lm_head(model.transformer.ln_f(stream)) for stream in streams]
    return {
        "clean": clean,
        "other": other,
        "target": target,
        "lens": [[rank(logits, target) for logits in stream] for stream in read],
        "traced": [
            [
                rank(
                    spliced(model, clean, layer, position, others[layer][position]),
                    target,
                )
                for position in range(len(clean))
            ]
            for layer in range(len(streams) - 1)
        ],
    }


@torch.no_grad()
def main() -> None:
    model = GPT2LMHeadModel.from_pretrained(ROOT / "organisms/two-hop-cot").eval()
    random = torch.Generator().manual_seed(0)
    questions: list[dict[str, object]] = []
    while len(questions) < QUESTIONS:
        try:
            questions.append(question(model, random))
        except ValueError:
            continue
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(questions) + "\n")


if __name__ == "__main__":
    main()

"""Gradients of trained masks and rotations, by torch through transformers.

Usage: bench/.venv/bin/python tools/goldens/alignments.py
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from places import CAUSAL, MODELS
from sites import load
from torch import Tensor, nn

MODEL = "gpt2-odd"
LAYER = 1
PLUS, MINUS = 3, 7
BASES = [[9, 26, 29, 4, 17], [1, 30, 2, 2, 38]]
SOURCES = [[9, 11, 29, 5, 17], [40, 30, 7, 22, 3]]


@contextmanager
def replaced(
    module: nn.Module, change: Callable[[Tensor], Tensor], what: str
) -> Iterator[None]:
    """Changes the first thing that a module reads, or writes."""

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (change(inputs[0]), *inputs[1:])

    def after(_: nn.Module, _inputs: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    handle = (
        module.register_forward_pre_hook(before)
        if what == "reads"
        else module.register_forward_hook(after)
    )
    try:
        yield
    finally:
        handle.remove()


def seen(model: Any, module: nn.Module, tokens: Tensor, what: str) -> Tensor:
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.detach().clone())
        return tensor

    with torch.no_grad(), replaced(module, keep, what):
        model(tokens, use_cache=False)
    return kept[0]


def loss(model: Any, tokens: Tensor) -> Tensor:
    """The mean over rows of logits[-1, PLUS] - logits[-1, MINUS]."""
    logits = model(tokens, use_cache=False).logits[:, -1]
    return (logits[:, PLUS] - logits[:, MINUS]).mean()


def main() -> None:
    model: Any = load(MODELS / MODEL)
    bases, sources = torch.tensor(BASES), torch.tensor(SOURCES)
    block = model.transformer.h[LAYER]
    heads = model.config.n_head
    generator = torch.Generator().manual_seed(7)

    mask = torch.rand(heads, generator=generator).requires_grad_()
    z = seen(model, block.attn.c_proj, sources, "reads")

    def masked(x: Tensor) -> Tensor:
        per_head = mask.repeat_interleave(x.shape[-1] // heads)
        return x + per_head * (z - x)

    with replaced(block.attn.c_proj, masked, "reads"):
        by_heads = loss(model, bases)
    by_heads.backward()

    dim = model.config.n_embd
    rotation = torch.linalg.qr(torch.randn(dim, 3, generator=generator)).Q.T
    rotation = rotation.contiguous().requires_grad_()
    inside = torch.rand(3, generator=generator).requires_grad_()
    stream = seen(model, block, sources, "writes")

    def turned(x: Tensor) -> Tensor:
        last, source = x[:, -1], stream[:, -1]
        change = (source - last) @ rotation.T * inside @ rotation
        return torch.cat([x[:, :-1], (last + change)[:, None]], dim=1)

    with replaced(block, turned, "writes"):
        by_rotation = loss(model, bases)
    by_rotation.backward()

    untouched = loss(model, bases)
    for found in (by_heads, by_rotation):
        assert abs(found.item() - untouched.item()) > 1e-2, "the edit changes nothing"

    def numbers(tensor: Tensor | None) -> Any:
        assert tensor is not None
        return tensor.detach().tolist()

    golden = {
        "model": MODEL,
        "layer": LAYER,
        "plus": PLUS,
        "minus": MINUS,
        "bases": BASES,
        "sources": SOURCES,
        "heads": {
            "mask": numbers(mask),
            "loss": by_heads.item(),
            "mask_gradient": numbers(mask.grad),
        },
        "rotation": {
            "mask": numbers(inside),
            "rotation": numbers(rotation),
            "loss": by_rotation.item(),
            "mask_gradient": numbers(inside.grad),
            "rotation_gradient": numbers(rotation.grad),
        },
    }
    (CAUSAL / "alignments.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()

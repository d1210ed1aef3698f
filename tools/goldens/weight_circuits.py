"""Heads as TransformerLens sees them in the weights, and its weight processing."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

VIEWS = ("W_Q", "b_Q", "W_K", "b_K", "W_V", "b_V", "W_O", "b_O")
MLP_VIEWS = ("W_in", "b_in", "W_out", "b_out")


@torch.no_grad()
def circuits(hooked: HookedTransformer) -> dict[str, Any]:
    """Singular values, eigenvalues and composition scores of every head, in float64."""
    hooked = hooked.to(torch.float64)
    eigenvalues = hooked.OV.eigenvalues
    return {
        "qk_singular_values": rounded(hooked.QK.S),
        "ov_singular_values": rounded(hooked.OV.S),
        "ov_eigenvalues": rounded(torch.view_as_real(eigenvalues)),
        "composition": {
            mode: rounded(hooked.all_composition_scores(mode)) for mode in "QKV"
        },
    }


@torch.no_grad()
def processed(
    open_hooked: Callable[..., HookedTransformer], tokens: Tensor
) -> dict[str, Any]:
    """Logits at the last position, and what the weights weigh, after all of it."""
    hooked = open_hooked(
        fold_ln=True,
        center_writing_weights=True,
        center_unembed=True,
        fold_value_biases=True,
    )
    logits = hooked(tokens)
    assert isinstance(logits, Tensor)
    return {
        "tokens": tokens[0].tolist(),
        "logits": rounded(logits[0, -1]),
        "norms": norms(hooked),
    }


def norms(hooked: HookedTransformer) -> dict[str, Any]:
    """The Frobenius norms of each layer's weights, and of the others."""
    found: dict[str, Any] = {
        name: rounded(
            layer_norms([getattr(block.attn, name) for block in hooked.blocks])
        )
        for name in VIEWS
    }
    for name in MLP_VIEWS:
        layers = [getattr(block.mlp, name) for block in hooked.blocks]
        found[name] = rounded(layer_norms(layers))
    for name in ("W_E", "W_U", "b_U"):
        found[name] = rounded(getattr(hooked, name).norm())
    return found


def layer_norms(layers: list[Tensor]) -> Tensor:
    return torch.stack([weight.norm() for weight in layers])


def rounded(value: Tensor) -> Any:
    """Nested lists with 7 significant digits."""
    if value.ndim == 0:
        return float(f"{value.item():.7g}")
    return [rounded(row) for row in value]

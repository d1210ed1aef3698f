"""Gradients of a logit difference by sites, through a running transformers model."""

from sites import Sites, held_sites, kept_in_layer
from torch import Tensor
from transformers import PreTrainedModel
from watching import layers_of, watched


def gradients(
    model: PreTrainedModel,
    tokens: Tensor,
    plus: int,
    minus: int,
    wanted: tuple[str, ...],
) -> Sites:
    """Gradients of logits[0, -1, plus] - logits[0, -1, minus], by site and layer.

    Only for models that add what attention writes as it is: no norm and no multiplier.
    """
    kept: Sites = {}

    def keep(name: str, tensor: Tensor) -> None:
        if tensor.requires_grad:
            tensor.retain_grad()
            kept[name] = tensor

    with watched(model, keep):
        logits = model(tokens, use_cache=False).logits
    (logits[0, -1, plus] - logits[0, -1, minus]).backward()
    grads = {name: value.grad for name, value in kept.items() if value.grad is not None}
    model.zero_grad()
    found: Sites = {}
    for index in range(len(layers_of(model))):
        sites = held_sites(model, kept_in_layer(grads, index))
        sites["hook_attn_out"] = sites["hook_attn_out_raw"]
        found |= {f"blocks.{index}.{site}": sites[site] for site in wanted}
    return {name: value.contiguous().clone() for name, value in found.items()}

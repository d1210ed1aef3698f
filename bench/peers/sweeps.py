"""Activation patching with TransformerLens's own functions."""

from collections.abc import Callable

from torch import Tensor
from transformer_lens import patching

from peers.forward import size
from peers.measuring import Work, timed
from peers.models import Models

POSITIONS = 16


def logit_difference(logits: Tensor) -> Tensor:
    return logits[0, -1, 0] - logits[0, -1, 1]


def resid_pre(models: Models) -> list[Work]:
    layers = models.transformers.config.n_layer
    title = f"resid_pre sweep, {layers} layers x {POSITIONS} positions"
    function = patching.get_act_patch_resid_pre
    return [sweep(models, title, "sweep", "get_act_patch_resid_pre", function)]


def heads(models: Models) -> list[Work]:
    config = models.transformers.config
    title = f"z sweep, {config.n_layer} layers x {config.n_head} heads, all positions"
    name = "get_act_patch_attn_head_out_all_pos"
    return [sweep(models, title, "heads", name, getattr(patching, name))]


def sweep(
    models: Models, title: str, work: str, name: str, patch: Callable[..., Tensor]
) -> Work:
    """The clean run with everything kept, then one patched corrupt run a point."""
    hooked = models.hooked
    clean, corrupt = models.tokens(1, POSITIONS), models.tokens(1, POSITIONS)

    def patched() -> Tensor:
        _, cache = hooked.run_with_cache(clean)
        return patch(hooked, corrupt, cache, logit_difference)

    return Work(
        title,
        {"Endoscope": size(work, 1, POSITIONS)},
        {f"TransformerLens {name}": timed(patched)},
    )

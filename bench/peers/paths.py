"""Path patching from every head and MLP straight to the final residual stream.

Wang et al. 2022 (arXiv 2211.00593), appendix B: the sender writes as in the clean run,
every other head and MLP as in the corrupt run, and only the final norm and the
unembedding see the change. TransformerLens has no function for it, so this is what a
careful user writes: one forward pass with hooks for each sender.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor
from transformer_lens import ActivationCache, HookedTransformer

from peers.forward import size
from peers.measuring import Work, timed
from peers.models import Models
from peers.sweeps import POSITIONS, logit_difference

AGREEMENT = 1e-4  # largest difference between a hooked run's score and the closed form


@dataclass(frozen=True)
class Sender:
    layer: int
    head: int | None  # None is the layer's MLP


@dataclass(frozen=True)
class Prompts:
    """Two prompts, and what heads and MLPs wrote on each."""

    corrupt: Tensor
    clean_cache: ActivationCache
    corrupt_cache: ActivationCache


def senders(hooked: HookedTransformer) -> list[Sender]:
    config = hooked.cfg
    return [
        Sender(layer, head)
        for layer in range(config.n_layers)
        for head in [*range(config.n_heads), None]
    ]


def is_write(name: str) -> bool:
    return name.endswith(("hook_z", "hook_mlp_out"))


def run_both(hooked: HookedTransformer, clean: Tensor, corrupt: Tensor) -> Prompts:
    _, clean_cache = hooked.run_with_cache(clean, names_filter=is_write)
    _, corrupt_cache = hooked.run_with_cache(corrupt, names_filter=is_write)
    return Prompts(corrupt, clean_cache, corrupt_cache)


def patch_path(hooked: HookedTransformer, prompts: Prompts, sender: Sender) -> Tensor:
    """The score of one sender, by one forward pass in which all writes are set."""

    def write(activation: Tensor, hook: Any, kind: str) -> Tensor:
        written: Tensor = prompts.corrupt_cache[hook.name]
        is_head = sender.head is not None
        if hook.layer() != sender.layer or is_head != (kind == "z"):
            return written
        clean: Tensor = prompts.clean_cache[hook.name]
        if sender.head is None:
            return clean
        written = written.clone()
        written[:, :, sender.head] = clean[:, :, sender.head]
        return written

    hooks = [
        (lambda name, end=end: name.endswith(end), partial(write, kind=kind))
        for end, kind in (("hook_z", "z"), ("hook_mlp_out", "mlp"))
    ]
    return logit_difference(hooked.run_with_hooks(prompts.corrupt, fwd_hooks=hooks))


def patch_all(hooked: HookedTransformer, clean: Tensor, corrupt: Tensor) -> list[float]:
    prompts = run_both(hooked, clean, corrupt)
    scores = (patch_path(hooked, prompts, sender) for sender in senders(hooked))
    return [float(score) for score in scores]


def closed_form(
    hooked: HookedTransformer, clean: Tensor, corrupt: Tensor
) -> list[float]:
    """The same scores: the corrupt residual stream plus what the sender moved."""
    _, clean_cache = hooked.run_with_cache(clean)
    _, corrupt_cache = hooked.run_with_cache(corrupt)
    final = corrupt_cache["resid_post", hooked.cfg.n_layers - 1]
    scores = []
    for sender in senders(hooked):
        kind = "mlp_out" if sender.head is None else "z"
        moved = clean_cache[kind, sender.layer] - corrupt_cache[kind, sender.layer]
        if sender.head is not None:
            moved = moved[:, :, sender.head] @ hooked.W_O[sender.layer, sender.head]
        logits = hooked.unembed(hooked.ln_final(final + moved))
        scores.append(float(logit_difference(logits)))
    return scores


def check(hooked: HookedTransformer, clean: Tensor, corrupt: Tensor) -> None:
    """Ends the script unless the hooked runs agree with the closed form."""
    found = patch_all(hooked, clean, corrupt)
    expected = closed_form(hooked, clean, corrupt)
    corrupt_score = float(logit_difference(hooked(corrupt)))
    moved = max(abs(score - corrupt_score) for score in expected)
    worst = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    if moved < 10 * AGREEMENT:
        raise SystemExit(f"no path moves the score by more than {moved:.1e}: no check")
    if worst > AGREEMENT:
        raise SystemExit(f"path patching differs from the closed form by {worst:.1e}")


def paths(models: Models) -> list[Work]:
    hooked = models.hooked
    clean, corrupt = models.tokens(1, POSITIONS), models.tokens(1, POSITIONS)
    check(hooked, clean, corrupt)
    config = hooked.cfg
    return [
        Work(
            f"path patching, {config.n_layers * config.n_heads} heads and "
            f"{config.n_layers} MLPs to the end",
            {"Endoscope": size("paths", 1, POSITIONS)},
            {
                "TransformerLens, a hooked run each": timed(
                    lambda: patch_all(hooked, clean, corrupt)
                )
            },
        )
    ]

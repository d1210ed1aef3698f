"""Lenses by TransformerLens's own parts, and torch's gradients of them."""

import torch
from torch import Tensor
from torch.autograd.functional import jacobian
from transformer_lens import HookedTransformer


def streams(hooked: HookedTransformer, tokens: Tensor) -> dict[str, Tensor]:
    """The residual streams [p, d] by name, in the order of the mathematics."""
    with torch.no_grad():
        _, cache = hooked.run_with_cache(tokens)
    names = ["blocks.0.hook_resid_pre"]
    for layer in range(hooked.cfg.n_layers):
        names += [f"blocks.{layer}.hook_resid_{part}" for part in ("mid", "post")]
    return {name: cache[name][0] for name in names}


def unembedded(hooked: HookedTransformer, rows: Tensor) -> Tensor:
    """The final norm and the unembedding: [p, d] -> [p, v]."""
    logits: Tensor = hooked.unembed(hooked.ln_final(rows[None]))[0]
    return logits


def distance(own: Tensor, logits: Tensor) -> Tensor:
    """KL(own || logits) in nats, position by position."""
    p, q = own.log_softmax(-1), logits.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@torch.no_grad()
def reading(hooked: HookedTransformer, tokens: Tensor) -> dict[str, Tensor]:
    """The logit lens of each stream: [stream, p, v] and, in float64, [stream, p]."""
    own = hooked(tokens)[0].double()
    logits = torch.stack(
        [unembedded(hooked, rows) for rows in streams(hooked, tokens).values()]
    )
    wide = logits.double()
    targets = own.argmax(-1)
    target_logits = wide.gather(2, targets.expand(len(logits), -1)[..., None])
    log_probabilities = wide.log_softmax(-1)
    return {
        "logits": logits,
        "targets": targets,
        "rank": (wide > target_logits).sum(-1),
        "probability": wide.softmax(-1).gather(
            2, targets.expand(len(logits), -1)[..., None]
        )[..., 0],
        "entropy": -(log_probabilities.exp() * log_probabilities).sum(-1),
        "kl": distance(own, wide),
    }


def translator_gradient(
    hooked: HookedTransformer, tokens: Tensor, site: str
) -> dict[str, Tensor]:
    """Gradients of the mean KL(network || lens) by random A and b of h + A h + b."""
    rows = streams(hooked, tokens)[site]
    d = rows.shape[1]
    generator = torch.Generator().manual_seed(17)
    matrix = 0.1 * torch.randn(d, d, generator=generator)
    bias = 0.1 * torch.randn(d, generator=generator)
    own = hooked(tokens)[0].detach()
    translator = torch.nn.functional.linear
    matrix.requires_grad_()
    bias.requires_grad_()
    mapped = rows + translator(rows, matrix, bias)
    distance(own, unembedded(hooked, mapped)).mean().backward()
    assert matrix.grad is not None
    assert bias.grad is not None
    return {
        "rows": rows,
        "matrix": matrix.detach(),
        "bias": bias.detach(),
        "own": own,
        "matrix_gradient": matrix.grad,
        "bias_gradient": bias.grad,
    }


def jacobians(hooked: HookedTransformer, prompts: list[Tensor]) -> dict[str, Tensor]:
    """Mean Jacobians [to, from] of the last stream, by `same` or `later` and stream."""
    layers = hooked.cfg.n_layers
    found: dict[str, Tensor] = {}
    for start in range(layers):
        name = (
            "blocks.0.hook_resid_pre"
            if start == 0
            else f"blocks.{start - 1}.hook_resid_post"
        )
        same, later = [], []
        for tokens in prompts:

            def last(
                rows: Tensor, tokens: Tensor = tokens, start: int = start
            ) -> Tensor:
                stream: Tensor = hooked.forward(
                    rows[None],
                    start_at_layer=start,
                    stop_at_layer=layers,
                    tokens=tokens,
                )[0]
                return stream

            whole = jacobian(last, streams(hooked, tokens)[name])  # [p', d, p, d]
            assert isinstance(whole, Tensor)
            same.append(torch.stack([whole[p, :, p] for p in range(len(whole))]))
            later.append(whole.sum(0).transpose(0, 1))
        found[f"same.{name}"] = torch.cat(same).mean(0)
        found[f"later.{name}"] = torch.cat(later).mean(0)
    return found

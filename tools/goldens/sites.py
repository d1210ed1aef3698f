"""Every site of a transformers model, taken from the running model by forward hooks.

What a submodule reads or writes is kept as it is. Queries and keys after rotation and
the pattern come from transformers' own eager attention function, watched while it runs.
Only what nothing in the model holds is computed here (scores, norm scales, each head's
result), and each such value is checked against the nearest thing that it does hold.

`hook_normalized` is the value before the norm's weight and bias, for `ln_final` too.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import PreTrainedModel

Sites = dict[str, Tensor]
Keep = Callable[[str, Tensor], None]
Side = Literal["reads", "writes"]


@dataclass(frozen=True)
class Family:
    """Where a family's sites are: (submodule, side, site), whole model and layer."""

    layers: str
    final_norm: str
    whole: tuple[tuple[str, Side, str], ...]
    layer: tuple[tuple[str, Side, str], ...]
    norms: tuple[str, str]
    output_projection: str
    has_rotary: bool


FAMILIES = {
    "gpt2": Family(
        layers="transformer.h",
        final_norm="transformer.ln_f",
        whole=(
            ("transformer.wte", "writes", "hook_embed"),
            ("transformer.wpe", "writes", "hook_pos_embed"),
            ("lm_head", "writes", "hook_logits"),
        ),
        layer=(
            ("ln_1", "reads", "hook_resid_pre"),
            ("ln_1", "writes", "hook_attn_in"),
            ("attn.c_attn", "writes", "attn.qkv"),
            ("attn.c_proj", "reads", "attn.hook_z"),
            ("attn.c_proj", "writes", "hook_attn_out_raw"),
            ("attn", "writes", "hook_attn_out"),
            ("ln_2", "reads", "hook_resid_mid"),
            ("ln_2", "writes", "hook_mlp_in"),
            ("mlp.c_fc", "writes", "mlp.hook_pre"),
            ("mlp.c_proj", "reads", "mlp.hook_post"),
            ("mlp.c_proj", "writes", "hook_mlp_out_raw"),
            ("mlp", "writes", "hook_mlp_out"),
            ("", "writes", "hook_resid_post"),
        ),
        norms=("ln_1", "ln_2"),
        output_projection="attn.c_proj",
        has_rotary=False,
    ),
    "llama": Family(
        layers="model.layers",
        final_norm="model.norm",
        whole=(
            ("model.embed_tokens", "writes", "hook_embed"),
            ("lm_head", "writes", "hook_logits"),
        ),
        layer=(
            ("input_layernorm", "reads", "hook_resid_pre"),
            ("input_layernorm", "writes", "hook_attn_in"),
            ("self_attn.q_proj", "writes", "attn.hook_q"),
            ("self_attn.k_proj", "writes", "attn.hook_k"),
            ("self_attn.v_proj", "writes", "attn.hook_v"),
            ("self_attn.o_proj", "reads", "attn.hook_z"),
            ("self_attn.o_proj", "writes", "hook_attn_out_raw"),
            ("self_attn", "writes", "hook_attn_out"),
            ("post_attention_layernorm", "reads", "hook_resid_mid"),
            ("post_attention_layernorm", "writes", "hook_mlp_in"),
            ("mlp.gate_proj", "writes", "mlp.hook_pre"),
            ("mlp.up_proj", "writes", "mlp.hook_pre_linear"),
            ("mlp.down_proj", "reads", "mlp.hook_post"),
            ("mlp.down_proj", "writes", "hook_mlp_out_raw"),
            ("mlp", "writes", "hook_mlp_out"),
            ("", "writes", "hook_resid_post"),
        ),
        norms=("input_layernorm", "post_attention_layernorm"),
        output_projection="self_attn.o_proj",
        has_rotary=True,
    ),
}


def family_of(model: PreTrainedModel) -> Family:
    return FAMILIES[model.config.model_type]


# ------------------------------------------------------------------------------ values


@torch.no_grad()
def all_sites(model: PreTrainedModel, tokens: Tensor) -> Sites:
    """Every site of one run over `tokens` [1, position]."""
    family = family_of(model)
    kept: Sites = {}
    with watched(model, kept.__setitem__):
        outputs = model(tokens, output_attentions=True, use_cache=False)
    sites = in_site_shapes(model, kept)
    if not family.has_rotary:
        sites = {
            name: value for name, value in sites.items() if "hook_rot_" not in name
        }

    final_norm = model.get_submodule(family.final_norm)
    sites |= norm_sites(
        final_norm, "ln_final", kept["ln_final.reads"], kept["ln_final.writes"]
    )
    for index, layer in enumerate(layers_of(model)):
        block = f"blocks.{index}"
        for number, (norm, before, after) in enumerate(
            zip(
                family.norms,
                ("hook_resid_pre", "hook_resid_mid"),
                ("hook_attn_in", "hook_mlp_in"),
                strict=True,
            ),
            1,
        ):
            module = layer.get_submodule(norm)
            sites |= norm_sites(
                module,
                f"{block}.ln{number}",
                sites[f"{block}.{before}"],
                sites[f"{block}.{after}"],
            )
        sites |= attention_scores(model, index, kept)
        sites |= head_results(
            layer.get_submodule(family.output_projection), block, sites
        )
        assert torch.equal(
            outputs.attentions[index], sites[f"{block}.attn.hook_pattern"]
        )
    assert torch.equal(outputs.logits, sites["hook_logits"])
    check_residual_stream(sites, len(layers_of(model)), kept["ln_final.reads"])
    return {name: value.contiguous().clone() for name, value in sorted(sites.items())}


def norm_sites(norm: Any, name: str, read: Tensor, written: Tensor) -> Sites:
    """A norm's divisor and normalized value; checked: * weight + bias is its output."""
    if isinstance(norm, nn.LayerNorm):
        centred, eps = read - read.mean(-1, keepdim=True), norm.eps
    else:
        centred, eps = read, norm.variance_epsilon
    scale = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    normalized = centred / scale
    bias = getattr(norm, "bias", 0.0)
    assert_close(normalized * norm.weight + bias, written, atol=1e-5, rtol=1e-5)
    return {f"{name}.hook_scale": scale, f"{name}.hook_normalized": normalized}


def attention_scores(model: PreTrainedModel, index: int, kept: Sites) -> Sites:
    """Scaled, masked scores [1, head, query, key]; checked: softmax is the pattern."""
    name = f"blocks.{index}.attn"
    query, key = kept[f"{name}.hook_rot_q"], kept[f"{name}.hook_rot_k"]
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    length = query.shape[2]
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = (query @ key.mT * kept[f"{name}.scaling"]).masked_fill(future, -torch.inf)
    assert_close(scores.softmax(-1), kept[f"{name}.hook_pattern"], atol=1e-6, rtol=1e-6)
    return {f"{name}.hook_attn_scores": scores}


def head_results(projection: Any, block: str, sites: Sites) -> Sites:
    """Each head's write [1, position, head, d_model]; checked: sum is the output."""
    z, weight = sites[f"{block}.attn.hook_z"], projection.weight
    rows = weight.T if isinstance(projection, nn.Linear) else weight  # [h * e, d_model]
    result = torch.einsum("bshe,hed->bshd", z, rows.reshape(z.shape[2], z.shape[3], -1))
    total = result.sum(2) + (0.0 if projection.bias is None else projection.bias)
    assert_close(total, sites[f"{block}.hook_attn_out_raw"], atol=1e-5, rtol=1e-5)
    return {f"{block}.attn.hook_result": result}


def check_residual_stream(
    sites: Sites, n_layers: int, final_norm_reads: Tensor
) -> None:
    """The sums that tie the sites together, and that the layers follow each other."""
    stream = sites["hook_embed"] + sites.get("hook_pos_embed", torch.zeros(()))
    for index in range(n_layers):
        at = {
            site: sites[f"blocks.{index}.hook_{site}"]
            for site in ("resid_pre", "resid_mid", "resid_post")
        }
        attn_out, mlp_out = (
            sites[f"blocks.{index}.hook_attn_out"],
            sites[f"blocks.{index}.hook_mlp_out"],
        )
        assert_close(at["resid_pre"], stream, atol=0.0, rtol=0.0)
        assert_close(at["resid_pre"] + attn_out, at["resid_mid"], atol=0.0, rtol=0.0)
        assert_close(at["resid_mid"] + mlp_out, at["resid_post"], atol=0.0, rtol=0.0)
        stream = at["resid_post"]
    assert_close(final_norm_reads, stream, atol=0.0, rtol=0.0)


# --------------------------------------------------------------------------- gradients


def gradients(
    model: PreTrainedModel,
    tokens: Tensor,
    plus: int,
    minus: int,
    wanted: tuple[str, ...],
) -> Sites:
    """Gradients of logits[0, -1, plus] - logits[0, -1, minus], by site and layer."""
    kept: Sites = {}

    def keep(name: str, tensor: Tensor) -> None:
        if tensor.requires_grad:
            tensor.retain_grad()
            kept[name] = tensor

    with watched(model, keep):
        logits = model(tokens, use_cache=False).logits
    (logits[0, -1, plus] - logits[0, -1, minus]).backward()
    sites = in_site_shapes(
        model,
        {name: value.grad for name, value in kept.items() if value.grad is not None},
    )
    model.zero_grad()
    names = [
        f"blocks.{index}.{site}"
        for index in range(len(layers_of(model)))
        for site in wanted
    ]
    return {name: sites[name].contiguous().clone() for name in names}


# ---------------------------------------------------------------------------- watching


def layers_of(model: PreTrainedModel) -> list[nn.Module]:
    return list(model.get_submodule(family_of(model).layers).children())


@contextmanager
def watched(model: PreTrainedModel, keep: Keep) -> Iterator[None]:
    """While open, hands every tensor that the family's tables name to `keep`."""
    family = family_of(model)
    with ExitStack() as stack:

        def watch(module: nn.Module, side: Side, name: str) -> None:
            def hook(_module: nn.Module, reads: tuple[Any, ...], writes: Any) -> None:
                value = reads if side == "reads" else writes
                keep(name, value[0] if isinstance(value, tuple) else value)

            stack.callback(module.register_forward_hook(hook).remove)

        for path, side, site in family.whole:
            watch(model.get_submodule(path), side, site)
        for index, layer in enumerate(layers_of(model)):
            for path, side, site in family.layer:
                watch(layer.get_submodule(path), side, f"blocks.{index}.{site}")
        watch(model.get_submodule(family.final_norm), "reads", "ln_final.reads")
        watch(model.get_submodule(family.final_norm), "writes", "ln_final.writes")
        stack.enter_context(watched_attention(model, keep))
        yield


@contextmanager
def watched_attention(model: PreTrainedModel, keep: Keep) -> Iterator[None]:
    """While open, keeps what the eager attention function reads and its pattern."""
    source: Any = sys.modules[type(model).__module__]
    eager = source.eager_attention_forward

    def watching(
        module: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        **options: Any,
    ) -> Any:
        output, pattern = eager(module, query, key, value, mask, **options)
        name = f"blocks.{module.layer_idx}.attn"
        keep(f"{name}.hook_rot_q", query)
        keep(f"{name}.hook_rot_k", key)
        keep(f"{name}.hook_pattern", pattern)
        keep(f"{name}.scaling", torch.tensor(options["scaling"]))
        return output, pattern

    source.eager_attention_forward = watching
    try:
        yield
    finally:
        source.eager_attention_forward = eager


def in_site_shapes(model: PreTrainedModel, kept: Sites) -> Sites:
    """What was kept (or its gradient) in the sites' shapes, the fused q, k, v apart."""
    config = model.config
    d_head = getattr(
        config, "head_dim", config.hidden_size // config.num_attention_heads
    )

    def by_head(value: Tensor) -> Tensor:
        return value.reshape(*value.shape[:-1], -1, d_head)

    sites: Sites = {}
    for name, value in kept.items():
        stem, _, last = name.rpartition(".")
        if last == "qkv":
            for part, third in zip("qkv", value.chunk(3, dim=-1), strict=True):
                sites[f"{stem}.hook_{part}"] = by_head(third)
        elif last in ("hook_q", "hook_k", "hook_v", "hook_z"):
            sites[name] = by_head(value)
        elif last in ("hook_rot_q", "hook_rot_k"):
            sites[name] = value.transpose(1, 2)
        elif last.startswith("hook_"):
            sites[name] = value
    return sites

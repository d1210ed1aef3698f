"""Every site of a transformers model, taken from the running model by forward hooks.

    python sites.py MODEL_DIR --tokens "[[1, 2, 3], [4, 5]]" --out OUT.safetensors

runs each row of tokens alone, in float32 with eager attention, and writes `ROW/SITE`
for every site and `ROW/tokens`. It prints one line of JSON with the versions. Exit code
2: the family is not known here. Needs torch, transformers >= 5 and safetensors; loads
only safetensors and runs no code that comes with a model.

What a submodule reads or writes is kept as it is, as are the scores, the pattern and
the rotated queries and keys, see watching.py. Only what nothing in the model holds is
computed here (norm scales, each head's result, the softmax over experts), and each such
value is checked against the nearest thing that the model does hold.

`hook_normalized` is the value before the norm's weight and bias, for `ln_final` too.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, Family, Fused
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar
from watching import family_of, layers_of, module_at, parts_of, watched

Sites = dict[str, Tensor]

QUERY_KEY_VALUE = ("attn.hook_q", "attn.hook_k", "attn.hook_v")
NORMS = ("ln1", "ln2", "ln1_post", "ln2_post")

NEAR = {"atol": 1e-5, "rtol": 1e-5}
SAME = {"atol": 0.0, "rtol": 0.0}


def load(folder: Path, **options: Any) -> PreTrainedModel:
    """The model of a directory as the reference runs it: float32, eager, no dropout."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"} | options
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        **options,
    )
    model.train(False)
    return model


@torch.no_grad()
def all_sites(model: PreTrainedModel, tokens: Tensor) -> Sites:
    """Every site of one run over `tokens` [1, position]."""
    family = family_of(model)
    kept: Sites = {}

    def keep(name: str, tensor: Tensor) -> None:
        kept[name] = tensor.clone()  # some models go on to write into it

    with watched(model, keep):
        logits = model(tokens, output_attentions=True, use_cache=False).logits
    sites: Sites = {"hook_logits": logits}
    sites |= embeddings(family, kept)
    for index, layer in enumerate(layers_of(model)):
        parts = parts_of(family, layer)
        of_layer = kept_in_layer(kept, index)
        found = held_sites(model, index, of_layer)
        found |= attention_sites(model, index, of_layer, found)
        found |= head_results(parts["output"], found)
        found |= stream_sites(model, of_layer, found)
        for norm in NORMS:
            if norm in parts and f"{norm}.writes" in of_layer:
                found |= norm_sites(
                    family,
                    parts[norm],
                    norm,
                    of_layer[f"{norm}.reads"],
                    of_layer[f"{norm}.writes"],
                )
        if "router" in parts:
            found |= expert_sites(parts["router"], of_layer)
        sites |= {f"blocks.{index}.{site}": value for site, value in found.items()}
    final_norm = module_at(model, family.final_norm)
    assert final_norm is not None
    sites |= norm_sites(
        family,
        final_norm,
        "ln_final",
        kept["final_norm.reads"],
        kept["final_norm.writes"],
    )
    check_residual_stream(sites, len(layers_of(model)), kept["final_norm.reads"])
    return {name: value.contiguous().clone() for name, value in sorted(sites.items())}


def kept_in_layer(kept: Sites, index: int) -> Sites:
    """What was kept in one layer, as [1, position, …]; some modules see no batch."""
    prefix = f"{index}."
    return {
        name.removeprefix(prefix): value if value.ndim > 2 else value.unsqueeze(0)
        for name, value in kept.items()
        if name.startswith(prefix)
    }


# ------------------------------------------------------------------------------- heads


def d_head_of(config: Any) -> int:
    found: int = (
        getattr(config, "head_dim", None)
        or config.hidden_size // config.num_attention_heads
    )
    return found


def by_head(value: Tensor, d_head: int) -> Tensor:
    """[1, position, head * d_head] -> [1, position, head, d_head]"""
    return value.reshape(*value.shape[:2], -1, d_head)


def split(fused: Tensor, n_heads: int, d_head: int, how: Fused) -> list[Tensor]:
    """Queries, keys and values [1, position, head, d_head] of one fused projection."""
    heads = by_head(fused, d_head)
    n_kv_heads = (heads.shape[2] - n_heads) // 2
    if how == "blocks":
        return list(heads.split((n_heads, n_kv_heads, n_kv_heads), dim=2))
    grouped = heads.unflatten(2, (n_kv_heads, -1))
    of_group = (grouped.shape[3] - 2, 1, 1)
    return [part.flatten(2, 3) for part in grouped.split(of_group, dim=3)]


def held_sites(model: PreTrainedModel, index: int, kept: Sites) -> Sites:
    """What the submodules of one layer read and write; also for gradients of these."""
    family, config = family_of(model), model.config
    d_head = d_head_of(config)
    sites = {
        "hook_resid_pre": kept["layer.reads"],
        "hook_resid_post": kept["layer.writes"],
        "attn.hook_pattern": kept["pattern"],
        "attn.hook_z": by_head(kept["output.reads"], d_head),
        "hook_attn_out_raw": kept["output.writes"],
    }
    if family.fused is not None:
        split_in_three = split(
            kept["fused.writes"], config.num_attention_heads, d_head, family.fused[1]
        )
        sites |= dict(zip(QUERY_KEY_VALUE, split_in_three, strict=True))
    else:
        sites |= {
            site: by_head(kept[f"{part}.writes"], d_head)
            for site, part in zip(
                QUERY_KEY_VALUE, ("query", "key", "value"), strict=True
            )
        }
    for site, norm in (("attn.hook_q", "query_norm"), ("attn.hook_k", "key_norm")):
        if f"{norm}.writes" in kept:
            written = kept[f"{norm}.writes"]
            if family.normed_heads_first:
                written = written.transpose(1, 2)
            sites[site] = written.reshape(sites[site].shape)
    if "router.writes" in kept:
        sites["hook_mlp_out_raw"] = kept["experts.writes"]
        return sites
    sites["hook_mlp_out_raw"] = kept["down.writes"]
    sites["mlp.hook_post"] = kept["down.reads"]
    if family.gate_and_linear is not None:
        sites["mlp.hook_pre"], sites["mlp.hook_pre_linear"] = kept[
            "gate_and_linear.writes"
        ].chunk(2, dim=-1)
    else:
        sites["mlp.hook_pre"] = kept["gate.writes"]
        if family.linear is not None:
            sites["mlp.hook_pre_linear"] = kept["linear.writes"]
    return sites


# ------------------------------------------------------------------------------ values


def embeddings(family: Family, kept: Sites) -> Sites:
    """What the first layer reads; checked: a multiple of what the embedding gives."""
    written = kept["embedding.writes"]
    if family.positions is not None:
        positions = kept["positions.writes"].reshape(written.shape)
        return {"hook_embed": written, "hook_pos_embed": positions}
    read = kept["0.layer.reads"]
    largest = written.abs().argmax()
    scale = read.flatten()[largest] / written.flatten()[largest]
    assert_close(written * scale, read, **NEAR)
    return {"hook_embed": read}


def norm_sites(
    family: Family, norm: Any, name: str, read: Tensor, written: Tensor
) -> Sites:
    """A norm's divisor and normalized value; checked: weighted, it is its output."""
    # Olmo's, which has neither weight nor bias nor a setting, is named LayerNorm too.
    if "LayerNorm" in type(norm).__name__:
        centred, eps = read - read.mean(-1, keepdim=True), getattr(norm, "eps", 1e-5)
    else:
        centred = read
        eps = getattr(norm, "eps", None) or norm.variance_epsilon
    scale = (centred.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    normalized = centred / scale
    weighted = normalized
    if getattr(norm, "weight", None) is not None:
        weighted = weighted * (family.weight_offset + norm.weight)
    if getattr(norm, "bias", None) is not None:
        weighted = weighted + norm.bias
    assert_close(weighted, written, **NEAR)
    return {f"{name}.hook_scale": scale, f"{name}.hook_normalized": normalized}


def attention_sites(
    model: PreTrainedModel, index: int, kept: Sites, sites: Sites
) -> Sites:
    """Scores and rotated queries and keys; clipping, where the model clips in place.

    Checked: softmax of the scores is the pattern, pattern x value is z, the values are
    those multiplied, and what rotation leaves alone (position 0) is as it was.
    """
    config = model.config
    query, key, value = (kept[name] for name in ("query", "key", "value"))
    n_heads, n_kv_heads = query.shape[1], sites["attn.hook_k"].shape[2]
    found: Sites = {}
    if getattr(config, "clip_qkv", None) is not None:
        found |= {
            site: sites[site].clamp(-config.clip_qkv, config.clip_qkv)
            for site in QUERY_KEY_VALUE
        }
    before = sites | found

    def once(repeated: Tensor) -> Tensor:
        """[1, head, position, d_head] -> [1, position, key/value head, d_head]"""
        step = repeated.shape[1] // n_kv_heads
        return repeated[:, ::step].transpose(1, 2)

    assert_close(once(value), before["attn.hook_v"], **SAME)
    if is_rotary(model, index):
        rotated = {"q": query.transpose(1, 2), "k": once(key)}
        for name, after in rotated.items():
            check_first_position(model, before[f"attn.hook_{name}"], after)
            found[f"attn.hook_rot_{name}"] = after
    else:
        assert_close(once(key), before["attn.hook_k"], **SAME)

    scores, pattern = kept["scores"], kept["pattern"]
    masked = scores < torch.finfo(scores.dtype).min / 2
    found["attn.hook_attn_scores"] = scores.masked_fill(masked, -torch.inf)
    assert_close(
        found["attn.hook_attn_scores"].softmax(-1), pattern, atol=1e-6, rtol=1e-6
    )
    assert not masked.all(-1).any(), "a position sees nothing"
    values = value.repeat_interleave(n_heads // value.shape[1], dim=1)
    assert_close((pattern @ values).transpose(1, 2), before["attn.hook_z"], **NEAR)
    return found


def is_rotary(model: PreTrainedModel, index: int) -> bool:
    """Whether this layer rotates its queries and keys."""
    config = model.config
    if family_of(model).positions is not None or getattr(config, "alibi", False):
        return False
    return bool((getattr(config, "no_rope_layers", None) or {index: 1})[index])


def check_first_position(model: PreTrainedModel, before: Tensor, after: Tensor) -> None:
    """Position 0 is turned by no angle: equal, or multiplied by an attention factor."""
    factors = {
        value
        for name, module in model.named_modules()
        if name.endswith("rotary_emb")
        for attribute, value in vars(module).items()
        if attribute.endswith("attention_scaling")
    } | {1.0}
    first = before[:, 0]
    multiples = torch.stack([first * factor for factor in factors])
    difference = (multiples - after[:, 0]).abs().amin(0)
    assert_close(difference, torch.zeros_like(difference), **NEAR)


def head_results(projection: nn.Module, sites: Sites) -> Sites:
    """Each head's write [1, position, head, d_model]; checked: sum is the output."""
    weight, bias = projection.weight, projection.bias
    assert isinstance(weight, Tensor)
    z = sites["attn.hook_z"]
    rows = weight.T if isinstance(projection, nn.Linear) else weight  # [h * e, d_model]
    result = torch.einsum("bshe,hed->bshd", z, rows.reshape(z.shape[2], z.shape[3], -1))
    total = result.sum(2) + (0.0 if bias is None else bias)
    assert_close(total, sites["hook_attn_out_raw"], **NEAR)
    return {"attn.hook_result": result}


def stream_sites(model: PreTrainedModel, kept: Sites, sites: Sites) -> Sites:
    """What attention and MLP read, what they add to the stream, and what is between."""
    family, config = family_of(model), model.config
    multiplier = getattr(config, "residual_multiplier", 1.0)

    def reads(*parts: str) -> Tensor:
        return next(kept[f"{part}.reads"] for part in parts if f"{part}.reads" in kept)

    def added(norm: str, raw: str) -> Tensor:
        return kept.get(f"{norm}.writes", sites[raw]) * multiplier

    found = {
        "hook_attn_in": reads("fused", "query"),
        "hook_attn_out": added("ln1_post", "hook_attn_out_raw"),
        "hook_mlp_in": reads("router", "gate_and_linear", "gate"),
        "hook_mlp_out": added("ln2_post", "hook_mlp_out_raw"),
    }
    if not is_parallel(family, config):
        found["hook_resid_mid"] = (
            found["hook_mlp_in"] if family.ln2 is None else kept["ln2.reads"]
        )
    return found


def is_parallel(family: Family, config: Any) -> bool:
    """Whether attention and MLP read the same stream."""
    if family.parallel == "always":
        return True
    return any(getattr(config, key) for key in family.parallel)


def expert_sites(router: Any, kept: Sites) -> Sites:
    """The router's logits, their softmax, and the chosen experts, the best first."""
    logits, scores, chosen = (kept[f"router.writes.{part}"] for part in range(3))
    assert_close(linear(kept["router.reads"], router.weight), logits, **SAME)
    weights = logits.softmax(-1)
    probabilities = weights.gather(-1, chosen)
    assert_close(
        scores / scores.sum(-1, keepdim=True),
        probabilities / probabilities.sum(-1, keepdim=True),
        **NEAR,
    )
    assert (probabilities.diff(dim=-1) <= 0).all(), "not the best first"
    return {
        "mlp.hook_gate": logits,
        "mlp.hook_expert_weights": weights,
        "mlp.hook_expert_indices": chosen.to(torch.float32),
    }


def check_residual_stream(
    sites: Sites, n_layers: int, final_norm_reads: Tensor
) -> None:
    """The sums that tie the sites together, and that the layers follow each other."""
    stream = sites["hook_embed"] + sites.get("hook_pos_embed", torch.zeros(()))
    for index in range(n_layers):
        at = {
            site: sites.get(f"blocks.{index}.hook_{site}")
            for site in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
        }
        pre, mid, post = at["resid_pre"], at["resid_mid"], at["resid_post"]
        attn_out, mlp_out = at["attn_out"], at["mlp_out"]
        assert pre is not None and post is not None
        assert attn_out is not None and mlp_out is not None
        assert_close(pre, stream, **SAME)
        if mid is None:  # three are added, in an order that differs by family
            assert_close(pre + attn_out + mlp_out, post, **NEAR)
        else:
            assert_close(pre + attn_out, mid, **SAME)
            assert_close(mid + mlp_out, post, **SAME)
        stream = post
    assert_close(final_norm_reads, stream, **SAME)


# ------------------------------------------------------------------------ command line


def rows_of(text: str) -> list[list[int]]:
    """Rows of token ids from JSON."""
    rows = json.loads(text)
    if not (
        isinstance(rows, list)
        and rows
        and all(isinstance(row, list) and row for row in rows)
        and all(type(token) is int and token >= 0 for row in rows for token in row)
    ):
        raise argparse.ArgumentTypeError("expected rows of token ids: [[1, 2], [3]]")
    return rows


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Every site of a transformers model.")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--tokens", type=rows_of, required=True, metavar="JSON")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.safetensors")
    options = parser.parse_args(None if arguments is None else list(arguments))
    model_type = json.loads((options.model / "config.json").read_text())["model_type"]
    if model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        print(f"model_type {model_type!r} is not one of {known}", file=sys.stderr)
        return 2
    disable_progress_bar()
    model = load(options.model)
    tensors: Sites = {}
    for number, row in enumerate(options.tokens):
        tokens = torch.tensor([row])
        sites = all_sites(model, tokens) | {"tokens": tokens}
        tensors |= {f"{number}/{site}": value for site, value in sites.items()}
    save_file(tensors, options.out)
    versions = {name: version(name) for name in ("torch", "transformers")}
    print(
        json.dumps({"model_type": model_type, "rows": len(options.tokens)} | versions)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Every site of a transformers model, taken from the running model by forward hooks.

    python sites.py MODEL_DIR --tokens "[[1, 2, 3], [4, 5]]" --out OUT.safetensors

runs each row of tokens alone, in float32 with eager attention, and writes `ROW/SITE`
for every site and `ROW/tokens`. It prints one line of JSON with the versions. Exit code
2: this cannot be asked (an unknown family, an old transformers, wrong arguments); 1: it
failed. Needs torch, transformers and safetensors; loads only safetensors and runs no
code that comes with a model.

What a submodule reads or writes is kept as it is, as are the scores, the pattern and
the rotated queries and keys, see watching.py. Only what nothing in the model holds is
computed here (norm scales, each head's result, the softmax over experts), and each such
value is checked against the nearest thing that the model does hold.

`hook_normalized` is the value before the norm's weight and bias, for `ln_final` too.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from families import FAMILIES, Family, Fused
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils.logging import disable_progress_bar
from watching import UnknownModelError, family_of, layers_of, needed, parts_of, watched

Sites = dict[str, Tensor]


class DisagreementError(Exception):
    """A value found here is not what the model holds: the tables do not fit it."""


OLDEST_TRANSFORMERS = 5
QUERY_KEY_VALUE = ("attn.hook_q", "attn.hook_k", "attn.hook_v")
ACTIVATION_KEYS = (
    "hidden_activation",
    "hidden_act",
    "activation_function",
    "activation",
)
NORMS = ("ln1", "ln2", "ln1_post", "ln2_post")

NEAR = 1e-5  # of the largest value: what float32 loses in sums of another order
SAME = 0.0


def load(folder: Path, **options: Any) -> PreTrainedModel:
    """The model of a directory as the reference runs it: float32, eager, no dropout."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"} | options
    model: PreTrainedModel
    model, loading = AutoModelForCausalLM.from_pretrained(
        folder,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
        **options,
    )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(f"weights are missing: {', '.join(missing)}")
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
        block = f"blocks.{index}"
        try:
            found = layer_sites(model, index, layer, kept_in_layer(kept, index))
        except DisagreementError as error:
            raise DisagreementError(f"{block}.{error}") from None
        sites |= {f"{block}.{site}": value for site, value in found.items()}
    read, written = kept["final_norm.reads"], kept["final_norm.writes"]
    final_norm = needed(model, family.final_norm)
    sites |= norm_sites(family, final_norm, "ln_final", read, written)
    check_residual_stream(sites, len(layers_of(model)), read)
    return {name: value.contiguous().clone() for name, value in sorted(sites.items())}


def layer_sites(
    model: PreTrainedModel, index: int, layer: nn.Module, kept: Sites
) -> Sites:
    """The sites of one layer, named within it."""
    family = family_of(model)
    parts = parts_of(family, layer)
    sites = held_sites(model, kept)
    sites |= attention_sites(model, index, kept, sites)
    sites |= head_results(parts["output"], sites)
    sites |= stream_sites(model, kept, sites)
    for norm in NORMS:
        if norm in parts and f"{norm}.writes" in kept:
            read, written = kept[f"{norm}.reads"], kept[f"{norm}.writes"]
            sites |= norm_sites(family, parts[norm], norm, read, written)
    if "router" in parts:
        sites |= expert_sites(parts["router"], kept)
    else:
        check_activation(model.config, sites)
    return sites


def check(what: str, found: Tensor, held: Tensor, within: float = NEAR) -> None:
    """Fails if what was found differs from what the model holds."""
    if found.shape != held.shape:
        raise DisagreementError(f"{what}: {[*found.shape]} is not {[*held.shape]}")
    difference = (found - held).abs().max().item()
    allowed = within * max(1.0, held.abs().max().item())
    if not difference <= allowed:  # nor if it is not a number
        raise DisagreementError(f"{what}: differs from the model by {difference:.1e}")


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


def held_sites(model: PreTrainedModel, kept: Sites) -> Sites:
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
    check("hook_embed", written * scale, read)
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
    check(name, weighted, written)
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

    check("attn.hook_v", once(value), before["attn.hook_v"], SAME)
    if is_rotary(model, index):
        rotated = {"q": query.transpose(1, 2), "k": once(key)}
        for name, after in rotated.items():
            check_first_position(model, before[f"attn.hook_{name}"], after)
            found[f"attn.hook_rot_{name}"] = after
    else:
        check("attn.hook_k", once(key), before["attn.hook_k"], SAME)

    scores, pattern = kept["scores"], kept["pattern"]
    masked = scores < torch.finfo(scores.dtype).min / 2
    found["attn.hook_attn_scores"] = scores.masked_fill(masked, -torch.inf)
    check("attn.hook_pattern", found["attn.hook_attn_scores"].softmax(-1), pattern)
    values = value.repeat_interleave(n_heads // value.shape[1], dim=1)
    check("attn.hook_z", (pattern @ values).transpose(1, 2), before["attn.hook_z"])
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
    nearest = (multiples - after[:, 0]).abs().argmin(0, keepdim=True)
    check("rotation at position 0", multiples.gather(0, nearest)[0], after[:, 0])


def head_results(projection: nn.Module, sites: Sites) -> Sites:
    """Each head's write [1, position, head, d_model]; checked: sum is the output."""
    weight, bias = projection.weight, projection.bias
    assert isinstance(weight, Tensor)
    z = sites["attn.hook_z"]
    rows = weight.T if isinstance(projection, nn.Linear) else weight  # [h * e, d_model]
    result = torch.einsum("bshe,hed->bshd", z, rows.reshape(z.shape[2], z.shape[3], -1))
    total = result.sum(2) + (0.0 if bias is None else bias)
    check("attn.hook_result", total, sites["hook_attn_out_raw"])
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
    for norm, site in (("ln1", "hook_attn_in"), ("ln2", "hook_mlp_in")):
        if f"{norm}.writes" in kept:
            check(site, found[site], kept[f"{norm}.writes"], SAME)
    if not is_parallel(family, config):
        found["hook_resid_mid"] = (
            found["hook_mlp_in"] if family.ln2 is None else kept["ln2.reads"]
        )
    elif "ln2.reads" in kept:
        check("ln2", kept["ln2.reads"], kept["layer.reads"], SAME)
    else:
        check("hook_mlp_in", found["hook_mlp_in"], found["hook_attn_in"], SAME)
    return found


def check_activation(config: Any, sites: Sites) -> None:
    """What the down projection reads is made of the two sites before it."""
    name = next(getattr(config, key) for key in ACTIVATION_KEYS if hasattr(config, key))
    activated = ACT2FN[name](sites["mlp.hook_pre"])
    if "mlp.hook_pre_linear" in sites:
        activated = activated * sites["mlp.hook_pre_linear"]
    check("mlp.hook_post", activated, sites["mlp.hook_post"])


def is_parallel(family: Family, config: Any) -> bool:
    """Whether attention and MLP read the same stream."""
    if family.parallel == "always":
        return True
    return any(getattr(config, key) for key in family.parallel)


def expert_sites(router: Any, kept: Sites) -> Sites:
    """The router's logits, their softmax, and the chosen experts, the best first."""
    logits, scores, chosen = (kept[f"router.writes.{part}"] for part in range(3))
    check("mlp.hook_gate", linear(kept["router.reads"], router.weight), logits)
    weights = logits.softmax(-1)
    probabilities = weights.gather(-1, chosen)
    check(
        "mlp.hook_expert_weights",
        scores / scores.sum(-1, keepdim=True),
        probabilities / probabilities.sum(-1, keepdim=True),
    )
    best_first = probabilities.sort(-1, descending=True).values
    check("mlp.hook_expert_indices", probabilities, best_first, SAME)
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
    for block in (f"blocks.{index}" for index in range(n_layers)):
        pre, post, attn_out, mlp_out = (
            sites[f"{block}.hook_{site}"]
            for site in ("resid_pre", "resid_post", "attn_out", "mlp_out")
        )
        check(f"{block}.hook_resid_pre", stream, pre, SAME)
        mid = sites.get(f"{block}.hook_resid_mid")
        if mid is None:  # three are added, in an order that differs by family
            check(f"{block}.hook_resid_post", pre + attn_out + mlp_out, post)
        else:
            check(f"{block}.hook_resid_mid", pre + attn_out, mid, SAME)
            check(f"{block}.hook_resid_post", mid + mlp_out, post, SAME)
        stream = post
    check("ln_final", stream, final_norm_reads, SAME)


# ------------------------------------------------------------------------ command line


def rows_of(text: str) -> list[list[int]]:
    """Rows of token ids from JSON."""
    try:
        rows = json.loads(text)
    except ValueError:
        rows = None
    if not (
        isinstance(rows, list)
        and rows
        and all(isinstance(row, list) and row for row in rows)
        and all(type(token) is int and token >= 0 for row in rows for token in row)
    ):
        raise argparse.ArgumentTypeError("expected rows of token ids: [[1, 2], [3]]")
    return rows


def model_type_of(folder: Path) -> str:
    """The family of a directory, if its sites can be had with what is installed."""
    found = json.loads((folder / "config.json").read_text()).get("model_type")
    if found not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UnknownModelError(f"model_type {found!r} is not one of {known}")
    installed = version("transformers")
    if int(installed.split(".")[0]) < OLDEST_TRANSFORMERS:
        # Older ones leave out keys of newer configurations without a word.
        raise UnknownModelError(
            f"transformers {installed} is too old: {OLDEST_TRANSFORMERS} is needed"
        )
    return str(found)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Every site of a transformers model.")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR")
    parser.add_argument("--tokens", type=rows_of, required=True, metavar="JSON")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT.safetensors")
    options = parser.parse_args(arguments)
    try:
        model_type = model_type_of(options.model)
        disable_progress_bar()
        model = load(options.model)
        tensors: Sites = {}
        for number, row in enumerate(options.tokens):
            if max(row) >= model.config.vocab_size:
                raise ValueError(f"row {number}: no token {max(row)} in the vocabulary")
            tokens = torch.tensor([row])
            sites = all_sites(model, tokens) | {"tokens": tokens}
            tensors |= {f"{number}/{site}": value for site, value in sites.items()}
        save_file(tensors, options.out)
    except UnknownModelError as error:
        print(error, file=sys.stderr)
        return 2
    except (DisagreementError, LookupError, OSError, RuntimeError, ValueError) as error:
        print(f"{options.model}: {error}", file=sys.stderr)
        return 1
    versions = {name: version(name) for name in ("torch", "transformers")}
    print(
        json.dumps({"model_type": model_type, "rows": len(options.tokens)} | versions)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

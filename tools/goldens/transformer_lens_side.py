"""TransformerLens as the second witness: sites compared, patching heat maps made."""

import re
from collections.abc import Callable

import torch
from sites import Sites
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig, patching
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformer_lens.pretrained.weight_conversions.llama import convert_llama_weights
from transformers import PreTrainedModel

TOLERANCE = 5e-5

HEAT_MAPS: dict[str, Callable[..., Tensor]] = {
    "resid_pre": patching.get_act_patch_resid_pre,
    "attn_out": patching.get_act_patch_attn_out,
    "mlp_out": patching.get_act_patch_mlp_out,
    "z": patching.get_act_patch_attn_head_out_by_pos,
    "z_all_positions": patching.get_act_patch_attn_head_out_all_pos,
    "v_all_positions": patching.get_act_patch_attn_head_v_all_pos,
    "pattern_all_positions": patching.get_act_patch_attn_head_pattern_all_pos,
}


AS_THEY_ARE = {
    "fold_ln": False,
    "center_writing_weights": False,
    "center_unembed": False,
    "fold_value_biases": False,
}


def hooked_llama(model: PreTrainedModel, **processing: bool) -> HookedTransformer:
    """The model as a HookedTransformer, its weights as they are unless asked."""
    config = model.config
    hooked_config = HookedTransformerConfig(
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_key_value_heads=config.num_key_value_heads,
        d_head=config.head_dim,
        d_mlp=config.intermediate_size,
        d_vocab=config.vocab_size,
        n_ctx=config.max_position_embeddings,
        act_fn=config.hidden_act,
        eps=config.rms_norm_eps,
        normalization_type="RMS",
        final_rms=True,
        gated_mlp=True,
        positional_embedding_type="rotary",
        rotary_dim=config.head_dim,
        rotary_base=config.rope_parameters["rope_theta"],
        device="cpu",
    )
    weights = convert_llama_weights(model, hooked_config)
    hooked = loaded(hooked_config, weights, processing)
    hooked.set_use_attn_result(True)
    return hooked


def hooked_gpt2(model: PreTrainedModel, **processing: bool) -> HookedTransformer:
    """The same for GPT-2."""
    config = model.config
    hooked_config = HookedTransformerConfig(
        n_layers=config.n_layer,
        d_model=config.n_embd,
        n_heads=config.n_head,
        d_head=config.n_embd // config.n_head,
        d_mlp=config.n_inner,
        d_vocab=config.vocab_size,
        n_ctx=config.n_positions,
        act_fn=config.activation_function,
        eps=config.layer_norm_epsilon,
        normalization_type="LN",
        device="cpu",
    )
    return loaded(hooked_config, convert_gpt2_weights(model, hooked_config), processing)


def loaded(
    config: HookedTransformerConfig,
    weights: dict[str, Tensor],
    processing: dict[str, bool],
) -> HookedTransformer:
    hooked = HookedTransformer(config)
    hooked.load_and_process_state_dict(weights, **AS_THEY_ARE | processing)
    return hooked.eval()


@torch.no_grad()
def largest_differences(
    hooked: HookedTransformer, tokens: Tensor, sites: Sites
) -> dict[str, float]:
    """Largest absolute difference over the layers, by kind of site that both have."""
    logits, cache = hooked.run_with_cache(tokens)
    assert isinstance(logits, Tensor)
    differences: dict[str, float] = {}
    for name, ours in sites.items():
        theirs = logits if name == "hook_logits" else cache.cache_dict.get(name)
        if theirs is None:
            continue
        kind = re.sub(r"blocks\.\d+\.", "", name)
        finite = ours.isfinite()
        assert torch.equal(finite, theirs.isfinite()), f"{name}: masked differently"
        difference = (ours - theirs)[finite].abs().max().item()
        differences[kind] = max(differences.get(kind, 0.0), difference)
    return differences


def logit_difference(
    logits: Tensor, answers: list[int], wrong_answers: list[int]
) -> Tensor:
    """Mean logit of the answers less that of the wrong ones, at the last position."""
    last = logits[0, -1]
    return last[answers].mean() - last[wrong_answers].mean()


@torch.no_grad()
def heat_map(
    hooked: HookedTransformer,
    name: str,
    clean: Tensor,
    corrupt: Tensor,
    metric: Callable[[Tensor], Tensor],
) -> Tensor:
    """Clean activations patched into the corrupt run, one grid point at a time."""
    _, clean_cache = hooked.run_with_cache(clean)
    return HEAT_MAPS[name](hooked, corrupt, clean_cache, metric)

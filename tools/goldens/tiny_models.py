"""The tiny random models; each switch that can change the numbers is turned in one."""

from math import sqrt
from pathlib import Path
from typing import Any

import torch
from gated_models import GATED_RECIPES
from plain_models import PLAIN_RECIPES
from recipes import Recipe
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

RECIPES = {
    "gpt2-odd": Recipe(
        GPT2Config(
            n_layer=3,
            n_head=5,
            n_embd=20,
            vocab_size=41,
            n_positions=40,
            n_inner=52,
            activation_function="gelu_new",
            layer_norm_epsilon=1e-5,
            bos_token_id=None,
            eos_token_id=None,
        ),
        switches="tied, d_head 4, inner width set",
    ),
    "gpt2-switches": Recipe(
        GPT2Config(
            n_layer=3,
            n_head=4,
            n_embd=24,
            vocab_size=37,
            n_positions=40,
            n_inner=None,
            activation_function="gelu",
            layer_norm_epsilon=1e-3,
            scale_attn_by_inverse_layer_idx=True,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        ),
        switches="exact gelu, eps 1e-3, scores divided by layer number, untied",
    ),
    "gpt2-relu": Recipe(
        GPT2Config(
            n_layer=2,
            n_head=2,
            n_embd=16,
            vocab_size=31,
            n_positions=16,
            activation_function="relu",
            scale_attn_weights=False,
            bos_token_id=0,
            eos_token_id=0,
        ),
        lengths=(7,),
        attention_gain=0.6,  # unscaled scores must not saturate the softmax,
        switches="relu, scores unscaled",
    ),
    "llama-grouped": Recipe(
        LlamaConfig(
            num_hidden_layers=3,
            hidden_size=24,  # a multiple of the head count, though head_dim is free
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=28,
            vocab_size=43,
            max_position_embeddings=64,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=False,
            rms_norm_eps=1e-6,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            bos_token_id=1,
            eos_token_id=[2, 3],
        ),
        switches="grouped heads, d_head free, attention and MLP biases, untied",
    ),
    "llama-sharded": Recipe(
        LlamaConfig(
            num_hidden_layers=3,
            hidden_size=30,
            num_attention_heads=5,
            num_key_value_heads=5,
            head_dim=6,
            intermediate_size=44,
            vocab_size=43,
            max_position_embeddings=64,
            hidden_act="gelu_pytorch_tanh",
            tie_word_embeddings=True,
            rms_norm_eps=1e-3,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        ),
        shard_size="40KB",
        switches="tanh gelu, base 500, eps 1e-3, tied, in shards",
    ),
    "llama-bf16": Recipe(
        LlamaConfig(
            num_hidden_layers=2,
            hidden_size=16,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=4,
            intermediate_size=36,
            vocab_size=29,
            max_position_embeddings=32,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        lengths=(7,),
        dtype=torch.bfloat16,
        switches="saved in bfloat16",
    ),
}


# Each switch is on in one model and off in another.
FAMILY_RECIPES = PLAIN_RECIPES | GATED_RECIPES

# Projections to queries and keys, some of them with values.
TO_ATTENTION = ("c_attn", "q_proj", "k_proj", "query_key_value", "qkv_proj")
ROUTER_GAIN = 2.0  # so that the choice of experts is uneven


def save(recipe: Recipe, folder: Path, seed: int) -> None:
    """Writes the Hugging Face directory of a recipe."""
    config = recipe.config
    model: Any = AutoModelForCausalLM.from_config(config)
    fill(model, recipe.attention_gain, torch.Generator().manual_seed(seed))
    model.to(recipe.dtype).save_pretrained(folder, max_shard_size=recipe.shard_size)


@torch.no_grad()
def fill(
    model: PreTrainedModel, attention_gain: float, generator: torch.Generator
) -> None:
    """Makes every parameter random: logits of about unit scale, uneven attention."""

    def random(like: Tensor, scale: float) -> Tensor:
        return scale * torch.randn(like.shape, generator=generator)

    # Gemma's norms multiply by 1 + weight.
    norm_weight = 0.0 if model.config.model_type.startswith("gemma") else 1.0
    left = {name for name, _ in model.named_parameters()}
    for name, module in model.named_modules():
        left -= {f"{name}.weight", f"{name}.bias"}
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(bias, nn.Parameter):
            bias.copy_(random(bias, 0.3))
        if not isinstance(weight, nn.Parameter):
            continue
        if weight.ndim == 1:
            weight.copy_(norm_weight + random(weight, 0.3))
        elif isinstance(module, nn.Embedding):
            weight.copy_(random(weight, 2.0 / sqrt(weight.shape[1])))
        elif name == "lm_head":
            if not model.config.tie_word_embeddings:
                weight.copy_(random(weight, 2.0 / sqrt(weight.shape[1])))
        else:
            fan_in = weight.shape[0] if isinstance(module, Conv1D) else weight.shape[1]
            gain = attention_gain if name.endswith(TO_ATTENTION) else 1.0
            if name.endswith("mlp.gate"):
                gain = ROUTER_GAIN
            weight.copy_(random(weight, gain / sqrt(fan_in)))
    for name in sorted(left):  # experts, three axes in one tensor: [expert, out, in]
        parameter = model.get_parameter(name)
        assert parameter.ndim == 3, f"{name} was not filled"
        parameter.copy_(random(parameter, 1.0 / sqrt(parameter.shape[-1])))

"""The tiny random models of the families; each switch is turned on in one, off in one."""

from typing import Any

import torch
from tiny_models import Recipe
from transformers import (
    FalconConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPTBigCodeConfig,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoConfig,
    OPTConfig,
    Phi3Config,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

LENGTH = 13

NO_SPECIAL: dict[str, Any] = {
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
SMALL: dict[str, Any] = NO_SPECIAL | {
    "num_hidden_layers": 2,
    "hidden_size": 20,
    "num_attention_heads": 4,
    "intermediate_size": 28,
    "vocab_size": 31,
    "max_position_embeddings": 48,
}
GROUPED = SMALL | {"num_key_value_heads": 2}
WIDE = GROUPED | {"head_dim": 6}  # n_heads * d_head is not d_model


def rope(theta: float, rope_type: str = "default", **settings: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": theta, **settings}


def recipe(config: Any, switches: str, **options: Any) -> Recipe:
    """Sites of one run of 13 tokens."""
    return Recipe(config, **({"lengths": (LENGTH,)} | options), switches=switches)


YARN: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 12}
LLAMA3: dict[str, Any] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

FAMILY_RECIPES = {
    "gpt_neox-parallel": recipe(
        GPTNeoXConfig(
            **SMALL | {"hidden_size": 24, "num_attention_heads": 3},
            rope_parameters=rope(10000.0, partial_rotary_factor=0.25),
            hidden_act="gelu",
            layer_norm_eps=1e-5,
        ),
        "parallel, a quarter rotary, biases, untied",
        lengths=(1, LENGTH),
    ),
    "gpt_neox-sequential": recipe(
        GPTNeoXConfig(
            **SMALL,
            use_parallel_residual=False,
            attention_bias=False,
            tie_word_embeddings=True,
            rope_parameters=rope(500.0, partial_rotary_factor=0.8),
            hidden_act="gelu_fast",
            layer_norm_eps=1e-3,
        ),
        "sequential, 0.8 rotary with base 500, no attention bias, tied",
    ),
    "gptj-odd": recipe(
        GPTJConfig(
            **NO_SPECIAL,
            n_layer=2,
            n_head=3,
            n_embd=24,
            n_inner=28,
            rotary_dim=4,
            vocab_size=31,
            n_positions=48,
            layer_norm_epsilon=1e-3,
        ),
        "half rotary, inner width set, bias of the unembedding",
        lengths=(1, LENGTH),
    ),
    "gptj-full": recipe(
        GPTJConfig(
            **NO_SPECIAL,
            n_layer=2,
            n_head=2,
            n_embd=16,
            rotary_dim=8,
            vocab_size=29,
            n_positions=32,
            activation_function="gelu",
        ),
        "whole heads rotary, inner width 4 x d_model",
    ),
    "gemma2-odd": recipe(
        Gemma2Config(
            **WIDE,
            query_pre_attn_scalar=9,
            sliding_window=5,
            attn_logit_softcapping=2.0,
            final_logit_softcapping=2.5,
            rms_norm_eps=1e-3,
            rope_parameters=rope(500.0),
        ),
        "soft-caps, sliding window in the even layers, attention scale not of d_head",
        lengths=(1, LENGTH),
        attention_gain=2.0,
    ),
    "gemma2-plain": recipe(
        Gemma2Config(
            **GROUPED | {"num_key_value_heads": 4},
            head_dim=4,
            query_pre_attn_scalar=4,
            sliding_window=7,
            layer_types=["full_attention", "full_attention"],
            attn_logit_softcapping=None,
            final_logit_softcapping=None,
            attention_bias=True,
            rope_parameters=rope(10000.0),
        ),
        "no soft-caps, no window, attention bias",
    ),
    "mistral-sliding": recipe(
        MistralConfig(
            **WIDE,
            sliding_window=5,
            rms_norm_eps=1e-3,
            rope_parameters=rope(10000.0),
        ),
        "sliding window in every layer, d_head free",
        lengths=(1, LENGTH),
    ),
    "mistral-full": recipe(
        MistralConfig(
            **GROUPED | {"hidden_size": 24},
            sliding_window=None,
            tie_word_embeddings=True,
            rope_parameters=rope(1e6),
        ),
        "no window, d_head of d_model, tied",
    ),
    "mixtral-odd": recipe(
        MixtralConfig(
            **WIDE | {"intermediate_size": 14},
            num_local_experts=5,
            num_experts_per_tok=2,
            sliding_window=None,
            rms_norm_eps=1e-5,
            rope_parameters=rope(1e6),
        ),
        "2 of 5 experts",
        lengths=(1, LENGTH),
    ),
    "mixtral-sharded": recipe(
        MixtralConfig(
            **GROUPED | {"hidden_size": 16, "intermediate_size": 18},
            num_local_experts=4,
            num_experts_per_tok=3,
            sliding_window=6,
            rms_norm_eps=1e-3,
            rope_parameters=rope(500.0),
        ),
        "3 of 4 experts, sliding window, in shards",
        shard_size="16KB",
    ),
    "qwen2-odd": recipe(
        Qwen2Config(
            **GROUPED | {"hidden_size": 24},
            use_sliding_window=False,
            sliding_window=4,
            rms_norm_eps=1e-6,
            rope_parameters=rope(1e6),
        ),
        "biases of q, k and v, a window that is not used, untied",
        lengths=(1, LENGTH),
    ),
    "qwen2-sliding": recipe(
        Qwen2Config(
            **GROUPED | {"hidden_size": 16, "num_hidden_layers": 3},
            use_sliding_window=True,
            sliding_window=4,
            max_window_layers=1,
            tie_word_embeddings=True,
            rms_norm_eps=1e-3,
            rope_parameters=rope(500.0),
        ),
        "sliding window from layer 1 on, tied",
    ),
    "qwen2-yarn": recipe(
        Qwen2Config(
            **GROUPED | {"hidden_size": 32},
            rope_parameters=rope(100.0, "yarn", **YARN),
        ),
        "yarn",
    ),
    "qwen2-bf16": recipe(
        Qwen2Config(
            **GROUPED | {"hidden_size": 24},
            tie_word_embeddings=True,
            rope_parameters=rope(10000.0),
        ),
        "saved in bfloat16; also its logits when run in bfloat16",
        dtype=torch.bfloat16,
    ),
    "qwen3-odd": recipe(
        Qwen3Config(
            **WIDE,
            rms_norm_eps=1e-6,
            tie_word_embeddings=True,
            rope_parameters=rope(1e6),
        ),
        "norms of queries and keys by head, tied",
        lengths=(1, LENGTH),
    ),
    "qwen3-sliding": recipe(
        Qwen3Config(
            **WIDE,
            attention_bias=True,
            use_sliding_window=True,
            sliding_window=5,
            layer_types=["sliding_attention", "full_attention"],
            rms_norm_eps=1e-3,
            rope_parameters=rope(500.0),
        ),
        "layer_types with a sliding window in layer 0, attention bias",
    ),
    "opt-odd": recipe(
        OPTConfig(
            **NO_SPECIAL,
            num_hidden_layers=2,
            hidden_size=20,
            num_attention_heads=5,
            ffn_dim=28,
            vocab_size=31,
            max_position_embeddings=40,
        ),
        "learned positions from row 2 on, biases, relu, tied",
        lengths=(1, LENGTH),
    ),
    "opt-plain": recipe(
        OPTConfig(
            **NO_SPECIAL,
            num_hidden_layers=2,
            hidden_size=18,
            num_attention_heads=3,
            ffn_dim=26,
            vocab_size=29,
            max_position_embeddings=32,
            enable_bias=False,
            layer_norm_elementwise_affine=False,
            activation_function="gelu",
            tie_word_embeddings=False,
        ),
        "no biases, norms without weights, gelu, untied",
    ),
}

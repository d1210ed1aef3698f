"""Tiny random models of the families whose MLP is gated, as in Llama."""

from typing import Any

import torch
from recipes import GROUPED, LENGTH, SMALL, WIDE, recipe, rope
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    StableLmConfig,
)

YARN: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 12}
LLAMA3: dict[str, Any] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}

GATED_RECIPES = {
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
        without={
            "query_pre_attn_scalar": 6,
            "sliding_window": 7,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": ["full_attention", "sliding_attention"],
        },
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
        without={"sliding_window": None, "rms_norm_eps": 1e-5},
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
        without={"num_experts_per_tok": 3},
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
        without={"num_experts_per_tok": 2, "sliding_window": None},
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
        without={
            "sliding_window": 6,
            "layer_types": ["full_attention"] * 3,
        },
    ),
    "qwen2-yarn": recipe(
        Qwen2Config(
            **GROUPED | {"hidden_size": 32},
            rope_parameters=rope(100.0, "yarn", **YARN),
        ),
        "yarn",
        without={"rope_parameters": rope(100.0)},
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
        without={"layer_types": ["full_attention"] * 2},
    ),
    "olmo2-odd": recipe(
        Olmo2Config(
            **GROUPED | {"hidden_size": 24},
            rms_norm_eps=1e-3,
            rope_parameters=rope(500000.0),
        ),
        "norms after attention and MLP only, of whole queries and keys, untied",
        lengths=(1, LENGTH),
        without={"rms_norm_eps": 1e-5},
    ),
    "olmo2-bias": recipe(
        Olmo2Config(
            **SMALL | {"hidden_size": 16, "num_attention_heads": 2},
            attention_bias=True,
            tie_word_embeddings=True,
            rope_parameters=rope(100.0),
        ),
        "attention bias, as many key/value heads as heads, tied",
    ),
    "olmo-odd": recipe(
        OlmoConfig(**GROUPED | {"hidden_size": 24}, rope_parameters=rope(10000.0)),
        "norms without weights, no clipping, grouped heads, untied",
        lengths=(1, LENGTH),
    ),
    "olmo-clip_qkv": recipe(
        OlmoConfig(
            **SMALL | {"hidden_size": 16},
            clip_qkv=0.9,
            attention_bias=True,
            tie_word_embeddings=True,
            rope_parameters=rope(500.0),
        ),
        "queries, keys and values clipped, attention bias, tied",
        without={"clip_qkv": None},
    ),
    "llama-linear": recipe(
        LlamaConfig(**WIDE, rope_parameters=rope(10000.0, "linear", factor=4.0)),
        "linear rope scaling",
        without={"rope_parameters": rope(10000.0)},
    ),
    "llama-llama3": recipe(
        LlamaConfig(
            **WIDE | {"head_dim": 10},
            tie_word_embeddings=True,
            rope_parameters=rope(500.0, "llama3", **LLAMA3),
        ),
        "llama3 rope scaling with frequencies of all three kinds, tied",
        without={"rope_parameters": rope(500.0)},
    ),
    "llama-yarn": recipe(
        LlamaConfig(
            **WIDE | {"head_dim": 12},
            rope_parameters=rope(
                50.0,
                "yarn",
                factor=3.0,
                original_max_position_embeddings=16,
                attention_factor=0.8,
                beta_fast=4.0,
                beta_slow=0.5,
                truncate=False,
            ),
        ),
        "yarn with its attention factor, both betas and without truncation",
        without={
            "rope_parameters": rope(
                50.0,
                "yarn",
                factor=3.0,
                original_max_position_embeddings=16,
                attention_factor=0.8,
                beta_fast=4.0,
                beta_slow=0.5,
            )
        },
    ),
    "llama-f16": recipe(
        LlamaConfig(**WIDE, mlp_bias=True, rope_parameters=rope(10000.0)),
        "saved in float16, biases of the MLP alone",
        dtype=torch.float16,
    ),
    "qwen3_moe-odd": recipe(
        Qwen3MoeConfig(
            **WIDE | {"num_hidden_layers": 3},
            moe_intermediate_size=8,
            num_experts=6,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            decoder_sparse_step=1,
            mlp_only_layers=[1],
            rms_norm_eps=1e-6,
            rope_parameters=rope(1e6),
        ),
        "2 of 6 experts whose weights are made to sum to 1, layer 1 dense",
        lengths=(1, LENGTH),
        without={"norm_topk_prob": False},
    ),
    "qwen3_moe-sparse_step": recipe(
        Qwen3MoeConfig(
            **WIDE,
            moe_intermediate_size=12,
            num_experts=4,
            num_experts_per_tok=2,
            norm_topk_prob=False,
            decoder_sparse_step=2,
            use_sliding_window=True,
            sliding_window=5,
            attention_bias=True,
            tie_word_embeddings=True,
            rms_norm_eps=1e-3,
            rope_parameters=rope(500.0),
        ),
        "weights of the experts left as they are, layer 0 dense, sliding window, tied",
        without={"norm_topk_prob": True, "sliding_window": None},
    ),
    "gemma-odd": recipe(
        GemmaConfig(
            **WIDE | {"num_key_value_heads": 1},
            rms_norm_eps=1e-3,
            rope_parameters=rope(10000.0),
        ),
        "embedding times sqrt(d_model), norms times 1 + weight, one key/value head",
        lengths=(1, LENGTH),
    ),
    "gemma-gelu": recipe(
        GemmaConfig(
            **GROUPED,
            head_dim=8,
            hidden_act="relu",
            attention_bias=True,
            tie_word_embeddings=False,
            rope_parameters=rope(500.0),
        ),
        "relu, attention bias, untied",
        without={"hidden_act": "gelu_pytorch_tanh"},
    ),
    "gemma3_text-odd": recipe(
        Gemma3TextConfig(
            **WIDE | {"num_hidden_layers": 3},
            query_pre_attn_scalar=9,
            sliding_window=5,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            final_logit_softcapping=2.5,
            rms_norm_eps=1e-3,
            rope_parameters={
                "sliding_attention": rope(100.0),
                "full_attention": rope(10000.0, "linear", factor=8.0),
            },
        ),
        "two ropes, one scaled, sliding window in two layers, soft-capped logits",
        lengths=(1, LENGTH),
        without={
            "final_logit_softcapping": None,
            "sliding_window": 7,
            "rope_parameters": {
                "sliding_attention": rope(100.0),
                "full_attention": rope(10000.0),
            },
        },
    ),
    "gemma3_text-plain": recipe(
        Gemma3TextConfig(
            **GROUPED | {"num_key_value_heads": 1},
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=32,
            attention_bias=True,
            tie_word_embeddings=False,
        ),
        "default ropes and layer types, window wider than the run, bias, untied",
    ),
    "phi3-longrope": recipe(
        Phi3Config(
            **GROUPED | {"hidden_size": 32, "max_position_embeddings": 64},
            original_max_position_embeddings=16,
            rms_norm_eps=1e-3,
            rope_parameters=rope(
                10000.0,
                "longrope",
                short_factor=[1.1, 1.7, 1.3],
                long_factor=[2.5, 3.5, 7.0],
                partial_rotary_factor=0.75,
                original_max_position_embeddings=16,
            ),
        ),
        "longrope with its short factors and attention factor, 0.75 rotary",
        lengths=(1, LENGTH),
        without={
            "rope_parameters": rope(
                10000.0,
                "longrope",
                short_factor=[1.1, 1.7, 1.3],
                long_factor=[2.5, 3.5, 7.0],
                partial_rotary_factor=0.75,
                original_max_position_embeddings=16,
                attention_factor=1.0,
            )
        },
    ),
    "phi3-sliding": recipe(
        Phi3Config(
            **SMALL | {"hidden_size": 24},
            sliding_window=5,
            tie_word_embeddings=True,
            rope_parameters=rope(500.0),
        ),
        "sliding window, whole heads rotary, as many key/value heads as heads, tied",
        without={"sliding_window": None},
    ),
    "stablelm-parallel": recipe(
        StableLmConfig(
            **GROUPED | {"hidden_size": 32},
            use_parallel_residual=True,
            qk_layernorm=True,
            use_qkv_bias=True,
            layer_norm_eps=1e-3,
            rope_parameters=rope(10000.0, partial_rotary_factor=0.25),
        ),
        "parallel with one norm, a norm for each head of queries and keys, qkv bias",
        lengths=(1, LENGTH),
        without={"layer_norm_eps": 1e-5},
    ),
    "stablelm-sequential": recipe(
        StableLmConfig(
            **GROUPED | {"hidden_size": 32},
            use_parallel_residual=False,
            qk_layernorm=False,
            use_qkv_bias=False,
            tie_word_embeddings=True,
            rope_parameters=rope(500.0, partial_rotary_factor=0.5),
        ),
        "sequential, no norms of queries and keys, no biases, half rotary, tied",
    ),
    "smollm3-odd": recipe(
        SmolLM3Config(
            **GROUPED | {"hidden_size": 24, "num_hidden_layers": 3},
            no_rope_layers=[1, 0, 1],
            rms_norm_eps=1e-3,
            rope_parameters=rope(500.0),
        ),
        "no rotary positions in layer 1, tied",
        lengths=(1, LENGTH),
        without={"no_rope_layers": [1, 1, 1]},
    ),
    "smollm3-sliding": recipe(
        SmolLM3Config(
            **GROUPED | {"hidden_size": 16},
            no_rope_layer_interval=2,
            use_sliding_window=True,
            sliding_window=5,
            attention_bias=True,
            mlp_bias=True,
            tie_word_embeddings=False,
            rope_parameters=rope(10000.0),
        ),
        "every second layer without rotary positions but with a window, biases, untied",
        without={"layer_types": ["full_attention"] * 2},
    ),
    "granite-odd": recipe(
        GraniteConfig(
            **GROUPED | {"hidden_size": 24},
            embedding_multiplier=3.0,
            logits_scaling=2.5,
            residual_multiplier=0.6,
            attention_multiplier=0.25,
            rms_norm_eps=1e-3,
            tie_word_embeddings=True,
            rope_parameters=rope(10000.0),
        ),
        "all four multipliers, tied",
        lengths=(1, LENGTH),
        without={
            "embedding_multiplier": 1.0,
            "logits_scaling": 1.0,
            "residual_multiplier": 1.0,
            "attention_multiplier": 1.0,
        },
    ),
    "granite-plain": recipe(
        GraniteConfig(
            **GROUPED | {"hidden_size": 16},
            attention_bias=True,
            mlp_bias=True,
            rope_parameters=rope(500.0),
        ),
        "no multipliers (scores unscaled), biases, untied",
        attention_gain=0.7,
    ),
}

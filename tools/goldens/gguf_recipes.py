"""The tiny models that gguf_models.py writes as GGUF files."""

from dataclasses import dataclass, field
from typing import Any

import gguf
from gguf import GGMLQuantizationType as Encoding

LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 40,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
WIDE = {**LLAMA, "head_dim": 16}  # not hidden size / heads
LAYER_NORM = {key: value for key, value in LLAMA.items() if key != "rms_norm_eps"}
FALCON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 40,
    "parallel_attn": True,
    "bias": False,
    "alibi": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Recipe:
    """One file: what it is converted from, and how its matrices are written."""

    architecture: gguf.MODEL_ARCH
    model_type: str
    settings: dict[str, Any]
    encodings: dict[str, Encoding] = field(default_factory=dict)
    otherwise: Encoding = Encoding.F16
    transformers_reads_it: bool = True
    # what the file holds and transformers does not take from it
    unread: dict[str, Any] = field(default_factory=dict)


ARCH = gguf.MODEL_ARCH
RECIPES = {
    "llama": Recipe(
        ARCH.LLAMA,
        "llama",
        {**LLAMA, "tie_word_embeddings": False, "rope_theta": 500.0},
        {"token_embd": Encoding.F32, "attn_k": Encoding.BF16},
        otherwise=Encoding.Q8_0,
    ),
    "llama3": Recipe(
        ARCH.LLAMA,
        "llama",
        {
            **LLAMA,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
        transformers_reads_it=False,  # it leaves rope_freqs unread
    ),
    "llama-k": Recipe(
        ARCH.LLAMA,
        "llama",
        {
            **LLAMA,
            "hidden_size": 256,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
        },
        {
            "blk.0.attn_q": Encoding.Q4_K,
            "blk.1.attn_q": Encoding.Q3_K,
            "attn_k": Encoding.Q6_K,
            "attn_v": Encoding.Q5_K,
            "blk.0.ffn_gate": Encoding.Q4_K,
            "blk.1.ffn_gate": Encoding.Q2_K,
            "ffn_up": Encoding.Q6_K,
            "blk.0.attn_output": Encoding.Q4_0,
            "blk.1.attn_output": Encoding.Q4_1,
            "blk.0.ffn_down": Encoding.Q5_0,
            "blk.1.ffn_down": Encoding.Q5_1,
        },
        otherwise=Encoding.Q8_0,
    ),
    "gpt2": Recipe(
        ARCH.GPT2,
        "gpt2",
        {
            "n_layer": 2,
            "n_head": 4,
            "n_embd": 32,
            "n_inner": 128,
            "vocab_size": 40,
            "n_positions": 64,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        otherwise=Encoding.Q8_0,
        unread={"n_positions": 64},
    ),
    "qwen2": Recipe(ARCH.QWEN2, "qwen2", {**LLAMA, "tie_word_embeddings": True}),
    "qwen3": Recipe(ARCH.QWEN3, "qwen3", WIDE, unread={"head_dim": 16}),
    "gemma": Recipe(
        ARCH.GEMMA,
        "gemma",
        {**WIDE, "tie_word_embeddings": True},
        transformers_reads_it=False,
    ),
    "gemma2": Recipe(
        ARCH.GEMMA2,
        "gemma2",
        {
            **WIDE,
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 16,
            "sliding_window": 4,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
        unread={
            "query_pre_attn_scalar": 16,  # in no file; llama.cpp knows it as we do
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": Recipe(
        ARCH.GEMMA3,
        "gemma3_text",
        {
            **WIDE,
            "num_hidden_layers": 6,
            "intermediate_size": 32,
            "tie_word_embeddings": True,
            "query_pre_attn_scalar": 16,
            "sliding_window": 4,
        },
        transformers_reads_it=False,
    ),
    "phi2": Recipe(
        ARCH.PHI2,
        "phi",
        {
            **LAYER_NORM,
            "num_key_value_heads": 4,
            "layer_norm_eps": 1e-5,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
        transformers_reads_it=False,
    ),
    "phi3": Recipe(
        ARCH.PHI3,
        "phi3",
        {**LLAMA, "sliding_window": None},
        unread={"pad_token_id": None},
    ),
    "gptneox": Recipe(
        ARCH.GPTNEOX,
        "gpt_neox",
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "vocab_size": 40,
            "max_position_embeddings": 64,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        transformers_reads_it=False,
    ),
    "starcoder2": Recipe(ARCH.STARCODER2, "starcoder2", LAYER_NORM),
    "stablelm": Recipe(
        ARCH.STABLELM,
        "stablelm",
        {
            **LAYER_NORM,
            "use_qkv_bias": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
        unread={
            "use_qkv_bias": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    "stablelm-norms": Recipe(
        ARCH.STABLELM,
        "stablelm",
        {
            **LAYER_NORM,
            "use_qkv_bias": True,
            "qk_layernorm": True,
            "use_parallel_residual": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        },
        otherwise=Encoding.Q8_0,
        transformers_reads_it=False,
    ),
    "olmo2": Recipe(ARCH.OLMO2, "olmo2", LLAMA, transformers_reads_it=False),
    "granite": Recipe(
        ARCH.GRANITE,
        "granite",
        {
            **LLAMA,
            "attention_multiplier": 0.25,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
        transformers_reads_it=False,
    ),
    "mixtral": Recipe(
        ARCH.LLAMA,
        "mixtral",
        {
            **LLAMA,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "intermediate_size": 32,
        },
        transformers_reads_it=False,
    ),
    "qwen3moe": Recipe(
        ARCH.QWEN3MOE,
        "qwen3_moe",
        {
            **WIDE,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
        transformers_reads_it=False,
    ),
    "olmo": Recipe(
        ARCH.OLMO,
        "olmo",
        {**LAYER_NORM, "clip_qkv": 1.0, "tie_word_embeddings": False},
        otherwise=Encoding.Q8_0,
        transformers_reads_it=False,
    ),
    "smollm3": Recipe(
        ARCH.SMOLLM3,
        "smollm3",
        # every fourth layer has no positions, which llama.cpp knows as we do
        {**LLAMA, "num_hidden_layers": 4, "intermediate_size": 32},
        otherwise=Encoding.Q8_0,
        transformers_reads_it=False,
    ),
    "starcoder": Recipe(
        ARCH.STARCODER,
        "gpt_bigcode",
        {
            "n_layer": 2,
            "n_head": 4,
            "n_embd": 32,
            "n_inner": 64,
            "vocab_size": 40,
            "n_positions": 64,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        otherwise=Encoding.Q8_0,
        transformers_reads_it=False,
    ),
    "falcon": Recipe(
        ARCH.FALCON,
        "falcon",
        {**FALCON, "multi_query": True, "new_decoder_architecture": False},
        otherwise=Encoding.Q8_0,
        transformers_reads_it=False,
    ),
    "falcon-grouped": Recipe(
        ARCH.FALCON,
        "falcon",
        {**FALCON, "num_kv_heads": 2, "new_decoder_architecture": True},
        otherwise=Encoding.Q8_0,
        transformers_reads_it=False,
    ),
}

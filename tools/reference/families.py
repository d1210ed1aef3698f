"""Where each family of transformers keeps its activations: data, no code per family.

Paths are submodules; `a|b` is the first of them that is there, `None` what a family
has not. All but `layers`, `embedding`, `positions` and `final_norm` are within a layer.
"""

from dataclasses import dataclass, replace
from typing import Literal

# How a fused projection holds queries, keys and values: all queries, then all keys,
# then all values; or for each key/value head its queries, its key and its value.
Fused = Literal["blocks", "groups"]


@dataclass(frozen=True)
class Family:
    """The submodules of one family; the defaults are Llama's."""

    layers: str = "model.layers"
    embedding: str = "model.embed_tokens"
    positions: str | None = None  # learned positions
    final_norm: str = "model.norm"

    ln1: str | None = "input_layernorm"
    ln2: str | None = "post_attention_layernorm"
    ln1_post: str | None = None  # norms of what attention and MLP write
    ln2_post: str | None = None
    weight_offset: float = 0.0  # a norm multiplies by this + its weight
    parallel: tuple[str, ...] | Literal["always"] = ()  # if any of these keys is true

    attention: str = "self_attn"
    query: str = "q_proj"  # within `attention`, as are the next six
    key: str = "k_proj"
    value: str = "v_proj"
    fused: tuple[str, Fused] | None = None  # instead of the three above
    query_norm: str = "q_norm|q_layernorm"
    key_norm: str = "k_norm|k_layernorm"
    output: str = "o_proj"
    normed_heads_first: bool = False  # q/k norms see [batch, head, position, d_head]

    gate: str = "mlp.gate_proj"  # what the activation function is applied to
    linear: str | None = "mlp.up_proj"
    gate_and_linear: str | None = None  # instead of the two above: gate, then linear
    down: str = "mlp.down_proj"
    router: str | None = None  # layers that have it are mixtures of experts
    experts: str = "mlp"  # the module that writes what the chosen experts give


LLAMA = Family()
GPT2 = Family(
    layers="transformer.h",
    embedding="transformer.wte",
    positions="transformer.wpe",
    final_norm="transformer.ln_f",
    ln1="ln_1",
    ln2="ln_2",
    attention="attn",
    fused=("c_attn", "blocks"),
    output="c_proj",
    gate="mlp.c_fc",
    linear=None,
    down="mlp.c_proj",
)
GEMMA2 = replace(
    LLAMA,
    ln1_post="post_attention_layernorm",
    ln2="pre_feedforward_layernorm",
    ln2_post="post_feedforward_layernorm",
    weight_offset=1.0,
)


FAMILIES = {
    "falcon": Family(
        layers="transformer.h",
        embedding="transformer.word_embeddings",
        final_norm="transformer.ln_f",
        ln1="input_layernorm|ln_attn",
        ln2="post_attention_layernorm|ln_mlp",
        parallel=("parallel_attn", "new_decoder_architecture"),
        attention="self_attention",
        fused=("query_key_value", "groups"),
        output="dense",
        gate="mlp.dense_h_to_4h",
        linear=None,
        down="mlp.dense_4h_to_h",
    ),
    "gemma": replace(LLAMA, weight_offset=1.0),
    "gemma2": GEMMA2,
    "gemma3_text": replace(GEMMA2, normed_heads_first=True),
    "gpt2": GPT2,
    # With one key/value head both ways to fuse are the same.
    "gpt_bigcode": replace(GPT2, fused=("c_attn", "groups")),
    "gpt_neo": replace(GPT2, attention="attn.attention", fused=None, output="out_proj"),
    "gpt_neox": Family(
        layers="gpt_neox.layers",
        embedding="gpt_neox.embed_in",
        final_norm="gpt_neox.final_layer_norm",
        parallel=("use_parallel_residual",),
        attention="attention",
        fused=("query_key_value", "groups"),
        output="dense",
        gate="mlp.dense_h_to_4h",
        linear=None,
        down="mlp.dense_4h_to_h",
    ),
    "gptj": replace(
        GPT2,
        positions=None,
        ln2=None,
        parallel="always",
        fused=None,
        output="out_proj",
        gate="mlp.fc_in",
        down="mlp.fc_out",
    ),
    "granite": LLAMA,
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": replace(
        LLAMA,
        router="mlp.gate|block_sparse_moe.gate",
        experts="mlp|block_sparse_moe",
    ),
    "olmo": LLAMA,
    "olmo2": replace(
        LLAMA,
        ln1=None,
        ln2=None,
        ln1_post="post_attention_layernorm",
        ln2_post="post_feedforward_layernorm",
    ),
    "opt": Family(
        layers="model.decoder.layers",
        embedding="model.decoder.embed_tokens",
        positions="model.decoder.embed_positions",
        final_norm="model.decoder.final_layer_norm",
        ln1="self_attn_layer_norm",
        ln2="final_layer_norm",
        output="out_proj",
        gate="fc1",
        linear=None,
        down="fc2",
    ),
    "phi": replace(
        LLAMA,
        final_norm="model.final_layernorm",
        ln2=None,
        parallel="always",
        output="dense",
        normed_heads_first=True,
        gate="mlp.fc1",
        linear=None,
        down="mlp.fc2",
    ),
    "phi3": replace(
        LLAMA, fused=("qkv_proj", "blocks"), gate_and_linear="mlp.gate_up_proj"
    ),
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "qwen3_moe": replace(LLAMA, router="mlp.gate"),
    "smollm3": LLAMA,
    "stablelm": replace(
        LLAMA, parallel=("use_parallel_residual",), normed_heads_first=True
    ),
    "starcoder2": replace(LLAMA, gate="mlp.c_fc", linear=None, down="mlp.c_proj"),
}

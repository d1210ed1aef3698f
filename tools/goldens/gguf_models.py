"""Makes tests/goldens/gguf/NAME.gguf, tiny random models as llama.cpp's converter would
write them, and NAME.safetensors, what transformers computes with the values that
gguf-py reads from them. Where transformers reads GGUF itself, it must agree.

Usage: python tools/goldens/gguf_models.py [NAME ...]
Needs, besides bench/requirements.txt: gguf==0.19.0
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Encoding
from gguf.quants import dequantize, quantize
from gguf_blocks import HALVES, random_blocks
from gguf_recipes import ARCH, RECIPES, Recipe
from numpy.typing import NDArray
from places import MODELS
from safetensors.torch import save_file
from tiny_models import fill
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

FOLDER = MODELS / "gguf"
LENGTH = 9
Numbers: TypeAlias = NDArray[Any]

INTERLEAVED = (ARCH.LLAMA, ARCH.GRANITE, ARCH.OLMO, ARCH.SMOLLM3)
SHIFTED = (ARCH.GEMMA, ARCH.GEMMA2, ARCH.GEMMA3)
TRANSPOSED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


# -------------------------------------------------------------------------- converting


def rearrange(
    recipe: Recipe, config: PreTrainedConfig, name: str
) -> Callable[[Numbers], Numbers]:
    """Where the converter puts a weight's entries."""
    heads = config.num_attention_heads
    if recipe.architecture in INTERLEAVED and ".q_proj." in name:
        return lambda weight: interleaved(weight, heads)
    if recipe.architecture in INTERLEAVED and ".k_proj." in name:
        return lambda weight: interleaved(weight, config.num_key_value_heads)
    if recipe.architecture == ARCH.GPT2 and name.endswith(TRANSPOSED):
        return lambda weight: weight.T
    if recipe.architecture == ARCH.GPTNEOX and ".query_key_value." in name:
        return lambda weight: (
            weight.reshape(heads, 3, -1, *weight.shape[1:])
            .swapaxes(0, 1)
            .reshape(weight.shape)
        )
    if recipe.architecture == ARCH.FALCON and ".query_key_value." in name:
        return lambda weight: sorted_groups(weight, heads, falcon_groups(config))
    return lambda weight: weight


def falcon_groups(config: PreTrainedConfig) -> int:
    """How many heads keys and values have."""
    return config.num_kv_heads if config.new_decoder_architecture else 1


def sorted_groups(weight: Numbers, heads: int, groups: int) -> Numbers:
    """All queries, then all keys, then all values; they were together by group."""
    rows = weight.reshape(groups, heads // groups + 2, -1, *weight.shape[1:])
    parts = (rows[:, :-2], rows[:, -2], rows[:, -1])
    width = weight.shape[1:]
    return np.concatenate([part.reshape(-1, *width) for part in parts])


def interleaved(weight: Numbers, heads: int) -> Numbers:
    """Each head's halves become neighbours."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def shift(recipe: Recipe, name: str) -> float:
    """What the converter adds."""
    return float(recipe.architecture in SHIFTED and name.endswith("norm.weight"))


def stored_names(recipe: Recipe, model: PreTrainedModel) -> dict[str, list[str]]:
    """The weights in each tensor: one, or those of all experts or heads."""
    layers = model.config.num_hidden_layers
    names = gguf.get_tensor_name_map(recipe.architecture, layers)
    found: dict[str, list[str]] = {}
    for name, _ in checkpoint(model):
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        parts = name.split(".")
        plain = name
        if "norms" in parts:  # one a head, joined
            at = parts.index("norms")
            plain = ".".join(parts[:at] + parts[at + 2 :])
        if "experts" in parts:
            del parts[parts.index("experts") + 1]
            plain = ".".join(parts)
            # the names under which the converter joins Mixtral's experts
            if "block_sparse_moe" in parts:
                tail = f"feed_forward.experts.{parts[-2]}.{parts[-1]}"
                plain = f"layers.{parts[2]}.{tail}"
        tensor = names.get_name(plain, try_suffixes=(".weight", ".bias"))
        assert tensor is not None, f"{name} has no name"
        found.setdefault(tensor, []).append(name)
    return found


def checkpoint(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    """The weights under the names of a checkpoint, experts one by one.

    Each tensor is a view: writing to it changes the model.
    """
    mixtral = model.config.model_type == "mixtral"
    weights: list[tuple[str, Tensor]] = []
    for name, weight in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            block, _, kind = name.rpartition(".")
            if mixtral:
                block = block.replace("mlp.", "block_sparse_moe.")
            named = dict(zip(("gate", "down", "up"), ("w1", "w2", "w3"), strict=True))
            for expert, matrix in enumerate(weight):
                pieces = (
                    zip(("gate", "up"), matrix.chunk(2), strict=True)
                    if "gate_up" in kind
                    else [("down", matrix)]
                )
                for piece, view in pieces:
                    last = named[piece] if mixtral else f"{piece}_proj"
                    weights.append((f"{block}.{expert}.{last}.weight", view))
        elif mixtral and name.endswith("mlp.gate.weight"):
            weights.append((name.replace("mlp.", "block_sparse_moe."), weight))
        else:
            weights.append((name, weight))
    return weights


def encoding_of(recipe: Recipe, tensor: str, shape: tuple[int, ...]) -> Encoding:
    """As llama.cpp chooses: vectors, routers and positions stay F32."""
    if len(shape) < 2 or "ffn_gate_inp" in tensor or "position" in tensor:
        return Encoding.F32
    for part, encoding in recipe.encodings.items():
        if part in tensor:
            return encoding
    return recipe.otherwise


def encoded(numbers: Numbers, encoding: Encoding, seed: int) -> Numbers:
    """What a tensor holds; K-quants, which gguf-py only reads, at random."""
    if "_K" not in encoding.name:
        return np.asarray(quantize(np.ascontiguousarray(numbers), encoding))
    generator = np.random.default_rng(seed)
    wide = {Encoding.Q4_K: 1e-4, Encoding.Q5_K: 1e-4, Encoding.Q2_K: 3e-3}
    scale = wide.get(encoding, 1e-4)
    assert encoding in HALVES
    return random_blocks(encoding, numbers.shape[0], numbers.shape[1], scale, generator)


def write_metadata(writer: gguf.GGUFWriter, config: PreTrainedConfig) -> None:
    """What the converter writes for every architecture, and for some."""
    kind = config.model_type
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    rope = config.rope_parameters if hasattr(config, "rope_parameters") else {}
    rope = rope.get("full_attention", rope)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    if kind == "falcon":
        writer.add_tensor_data_layout("jploski")
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    inner = {"gpt2": "n_inner", "gpt_bigcode": "n_inner", "falcon": "ffn_hidden_size"}
    writer.add_feed_forward_length(
        getattr(config, inner.get(kind, "intermediate_size"))
    )
    writer.add_head_count(heads)
    if kind == "falcon":
        writer.add_head_count_kv(falcon_groups(config))
    elif kind == "gpt_bigcode":
        writer.add_head_count_kv(1)
    elif kind not in ("gpt2", "gpt_neox"):
        writer.add_head_count_kv(config.num_key_value_heads)
    if kind == "olmo":
        writer.add_layer_norm_eps(1e-5)
    for name in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
        if kind != "llama" and hasattr(config, name):
            writer.add_layer_norm_eps(getattr(config, name))
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if rope:
        writer.add_rope_freq_base(rope["rope_theta"])
        part = rope.get("partial_rotary_factor", 1.0)
        if kind not in ("gemma", "gemma2", "gemma3_text", "qwen2", "falcon", "olmo"):
            writer.add_rope_dimension_count(int(part * head_dim))
    if head_dim != config.hidden_size // heads or kind.startswith("gemma"):
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    if kind in ("llama", "mixtral", "granite"):
        writer.add_vocab_size(config.vocab_size)
    for name, add in (
        ("clip_qkv", writer.add_clamp_kqv),
        ("attn_logit_softcapping", writer.add_attn_logit_softcapping),
        ("final_logit_softcapping", writer.add_final_logit_softcapping),
        ("attention_multiplier", writer.add_attention_scale),
        ("embedding_multiplier", writer.add_embedding_scale),
        ("residual_multiplier", writer.add_residual_scale),
        ("logits_scaling", writer.add_logit_scale),
        ("num_local_experts", writer.add_expert_count),
        ("num_experts", writer.add_expert_count),
        ("num_experts_per_tok", writer.add_expert_used_count),
        ("moe_intermediate_size", writer.add_expert_feed_forward_length),
    ):
        if getattr(config, name, None) is not None:
            add(getattr(config, name))
    if kind in ("gemma2", "gemma3_text"):
        writer.add_sliding_window(config.sliding_window)
    if kind in ("gpt_neox", "stablelm"):
        writer.add_parallel_residual(config.use_parallel_residual)


def rope_factors(config: PreTrainedConfig) -> Numbers | None:
    """Llama 3's scaling as it is written: what each frequency is divided by."""
    rope = getattr(config, "rope_parameters", {})
    if rope.get("rope_type") != "llama3":
        return None
    dim = config.hidden_size // config.num_attention_heads
    frequencies = rope["rope_theta"] ** -(np.arange(0, dim, 2) / dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: Numbers = 1.0 / ((1.0 - smooth) / rope["factor"] + smooth)
    return factors.astype(np.float32)


@torch.no_grad()
def write(path: Path, recipe: Recipe, model: PreTrainedModel) -> None:
    """Writes the file, and gives the model the values that are in it."""
    config = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[recipe.architecture])
    write_metadata(writer, config)
    writer.add_bos_token_id(config.bos_token_id)
    writer.add_eos_token_id(config.eos_token_id)
    # no tokenizer, but how many tokens there are: transformers takes it from here
    writer.add_token_list([f"token {token}" for token in range(config.vocab_size)])
    weights = dict(checkpoint(model))
    for seed, (tensor, names) in enumerate(stored_names(recipe, model).items()):
        parts: list[Numbers] = []
        for name in names:
            weight = weights[name].numpy().copy()
            place = rearrange(recipe, config, name)
            added = shift(recipe, name)
            numbers = place(weight) + np.float32(added)
            encoding = encoding_of(recipe, tensor, numbers.shape)
            data = encoded(numbers, encoding, seed)
            parts.append(data)
            values = dequantize(np.ascontiguousarray(data), encoding) - np.float32(
                added
            )
            whence = place(np.arange(weight.size).reshape(weight.shape))
            flat = np.empty(weight.size, np.float32)
            flat[whence.reshape(-1)] = values.reshape(-1)
            weights[name].copy_(torch.from_numpy(flat).reshape(weight.shape))
        joined = np.stack(parts) if len(parts) > 1 or "_exps" in tensor else parts[0]
        writer.add_tensor(tensor, np.ascontiguousarray(joined), raw_dtype=encoding)
    if (factors := rope_factors(config)) is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --------------------------------------------------------------------------- computing


@torch.no_grad()
def some_sites(model: PreTrainedModel, tokens: Tensor) -> dict[str, Tensor]:
    """The residual stream before each layer, queries and keys, and the logits."""
    config = model.config
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept: dict[str, Tensor] = {}

    def keep(name: str, value: Tensor) -> None:
        if (
            value.shape[1] != LENGTH
        ):  # Gemma 3 normalises [batch, head, position, d_head]
            value = value.transpose(1, 2)
        if getattr(config, "clip_qkv", None) is not None:  # the sites are what is used
            value = value.clamp(-config.clip_qkv, config.clip_qkv)
        kept[name] = value.reshape(1, LENGTH, -1, head_dim).clone(
            memory_format=torch.contiguous_format
        )

    def watch(module: nn.Module, layer: str, kind: str) -> None:
        def hook(_module: nn.Module, _reads: Any, writes: Tensor) -> None:
            # a norm of heads sees [batch, position, head, d_head]
            keep(f"blocks.{layer}.attn.hook_{kind}", writes)

        module.register_forward_hook(hook)

    modules = dict(model.named_modules())
    for name, module in modules.items():
        stem, _, last = name.rpartition(".")
        layer = next((part for part in name.split(".") if part.isdigit()), "")
        if last in ("q_proj", "k_proj"):
            names = (f"{stem}.{last[0]}_{norm}" for norm in ("norm", "layernorm"))
            norms = [modules[norm] for norm in names if norm in modules]
            watch(norms[0] if norms else module, layer, last[0])
    outputs = model(tokens, output_hidden_states=True, use_cache=False)
    for layer in range(config.num_hidden_layers):
        kept[f"blocks.{layer}.hook_resid_pre"] = outputs.hidden_states[layer].clone()
    kept["hook_logits"] = outputs.logits.clone()
    assert outputs.logits.isfinite().all() and outputs.logits.std() > 0.1
    return {"tokens": tokens, **kept}


@torch.no_grad()
def check_with_transformers(
    path: Path, unread: dict[str, Any], tokens: Tensor, logits: Tensor
) -> None:
    """transformers reads the file with code of its own."""
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    for name, value in unread.items():
        setattr(config, name, value)
    model: Any = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, config=config, dtype=torch.float32
    )
    model.train(False)
    difference = (model(tokens).logits - logits).abs().max().item()
    print(f"  transformers reads it {difference:.1e} apart")
    assert difference < 1e-4, f"{path.name} is not what transformers reads"


def main() -> None:
    torch.set_num_threads(1)
    for seed, (name, recipe) in enumerate(RECIPES.items()):
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        config = AutoConfig.for_model(recipe.model_type, **recipe.settings)
        model: Any = AutoModelForCausalLM.from_config(
            config, attn_implementation="eager"
        )
        generator = torch.Generator().manual_seed(seed)
        fill(model, 1.3, generator)
        model.train(False)
        path = FOLDER / f"{name}.gguf"
        write(path, recipe, model)
        size = (1, LENGTH)
        tokens = torch.randint(config.vocab_size, size, generator=generator)
        golden = some_sites(model, tokens)
        save_file(golden, path.with_suffix(".safetensors"))
        print(f"{name}: {path.stat().st_size:,} bytes")
        if recipe.transformers_reads_it:
            check_with_transformers(path, recipe.unread, tokens, golden["hook_logits"])


if __name__ == "__main__":
    main()

"""Makes crates/endoscope-causal/tests/goldens/token_views/: two tiny random models of
one layer, and what each token says in them at hand and looked at, by numpy alone.

Usage: python tools/goldens/token_view_goldens.py
"""

import json
import shutil
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from places import CAUSAL
from safetensors.numpy import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

Numbers: TypeAlias = NDArray[np.float64]
HERE = CAUSAL / "token_views"
TOKENS = [3, 10, 0, 7]
WIDTH = 8


def save(name: str, model: Any) -> dict[str, Numbers]:
    """A model with every weight drawn anew, norms and biases too: its file read."""
    with torch.no_grad():
        for key, weight in model.named_parameters():
            norm = "ln_" in key or "norm" in key
            start = 1.0 if norm and key.endswith("weight") else 0.0
            weight.copy_(start + 0.4 * torch.randn_like(weight))
    shutil.rmtree(HERE / name, ignore_errors=True)
    model.save_pretrained(HERE / name)
    (HERE / name / "generation_config.json").unlink()
    (HERE / name / "model.safetensors").chmod(0o644)
    file = load_file(HERE / name / "model.safetensors")
    return {
        key.removeprefix("transformer.").removeprefix("model."): value.astype(
            np.float64
        )
        for key, value in file.items()
    }


def gpt2() -> dict[str, Any]:
    config = GPT2Config(
        n_layer=1,
        n_head=2,
        n_embd=WIDTH,
        vocab_size=11,
        n_positions=6,
        bos_token_id=None,
        eos_token_id=None,
    )
    weights = save("gpt2", GPT2LMHeadModel(config))

    def norm(x: Numbers, name: str) -> Numbers:
        centred = x - x.mean(-1, keepdims=True)
        x = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def linear(x: Numbers, name: str) -> Numbers:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def mlp(x: Numbers) -> Numbers:
        hidden = linear(norm(x, "h.0.ln_2"), "h.0.mlp.c_fc")
        inner = np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)
        return linear(0.5 * hidden * (1 + np.tanh(inner)), "h.0.mlp.c_proj")

    def logits(x: Numbers) -> Numbers:
        return norm(x, "ln_f") @ weights["wte.weight"].T

    embedded = weights["wte.weight"][TOKENS]
    values = linear(norm(embedded, "h.0.ln_1"), "h.0.attn.c_attn")[:, 2 * WIDTH :]
    written = linear(values, "h.0.attn.c_proj")
    return views(embedded, written, mlp, logits)


def llama() -> dict[str, Any]:
    config = LlamaConfig(
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        hidden_size=WIDTH,
        intermediate_size=12,
        vocab_size=11,
        max_position_embeddings=6,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    weights = save("llama", LlamaForCausalLM(config))

    def norm(x: Numbers, name: str) -> Numbers:
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
        return x * weights[f"{name}.weight"]

    def linear(x: Numbers, name: str) -> Numbers:
        return x @ weights[f"layers.0.{name}.weight"].T

    def mlp(x: Numbers) -> Numbers:
        x = norm(x, "layers.0.post_attention_layernorm")
        gate = linear(x, "mlp.gate_proj")
        return linear(
            gate / (1 + np.exp(-gate)) * linear(x, "mlp.up_proj"), "mlp.down_proj"
        )

    def logits(x: Numbers) -> Numbers:
        return norm(x, "norm") @ weights["lm_head.weight"].T

    embedded = weights["embed_tokens.weight"][TOKENS]
    values = linear(norm(embedded, "layers.0.input_layernorm"), "self_attn.v_proj")
    # Two heads share each of the two value heads of width 2.
    shared = np.repeat(values.reshape(-1, 2, 2), 2, axis=1).reshape(-1, WIDTH)
    return views(embedded, linear(shared, "self_attn.o_proj"), mlp, logits)


def views(embedded: Numbers, written: Numbers, mlp: Any, logits: Any) -> dict[str, Any]:
    def said(x: Numbers) -> list[list[float]]:
        return [
            [float(f"{value:.7g}") for value in row]
            for row in logits(x + mlp(x))[:, TOKENS]
        ]

    return {"at_hand": said(embedded), "looked_at": said(written)}


def main() -> None:
    torch.manual_seed(0)
    HERE.mkdir(parents=True, exist_ok=True)
    goldens = {"tokens": TOKENS, "gpt2": gpt2(), "llama": llama()}
    (HERE / "views.json").write_text(json.dumps(goldens) + "\n")


if __name__ == "__main__":
    main()

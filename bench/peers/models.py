"""The model that everybody runs: GPT-2 small's shape, random weights."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions.gpt2 import convert_gpt2_weights
from transformers import AutoModelForCausalLM, GPT2Config

AGREEMENT = 1e-3  # largest difference of logits between the two peers


def model_folder(cache: Path) -> Path:
    """The model's directory, saved by transformers once."""
    folder = cache / "gpt2-small-random"
    if not (folder / "model.safetensors").exists():
        torch.manual_seed(0)
        model: Any = AutoModelForCausalLM.from_config(GPT2Config())
        model.save_pretrained(folder)
    return folder


def open_transformers(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.train(False)
    return model


def hooked_gpt2(model: Any) -> HookedTransformer:
    """The model as a HookedTransformer with its weights as they are: no folding."""
    config = model.config
    hooked_config = HookedTransformerConfig(
        n_layers=config.n_layer,
        d_model=config.n_embd,
        n_heads=config.n_head,
        d_head=config.n_embd // config.n_head,
        d_mlp=4 * config.n_embd,
        d_vocab=config.vocab_size,
        n_ctx=config.n_positions,
        act_fn=config.activation_function,
        eps=config.layer_norm_epsilon,
        normalization_type="LN",
        device="cpu",
    )
    hooked = HookedTransformer(hooked_config)
    hooked.load_and_process_state_dict(
        convert_gpt2_weights(model, hooked_config),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    hooked.train(False)
    return hooked


class Models:
    """The peers' models, each opened when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.generator = torch.Generator().manual_seed(1)

    @cached_property
    def transformers(self) -> Any:
        return open_transformers(self.folder)

    @cached_property
    def transformers_16_bit(self) -> Any:
        return open_transformers(self.folder, torch.bfloat16)

    @cached_property
    def hooked(self) -> HookedTransformer:
        hooked = hooked_gpt2(self.transformers)
        tokens = self.tokens(1, 16)
        logits = self.transformers(tokens).logits
        difference = (logits - hooked(tokens)).abs().max().item()
        if difference > AGREEMENT:
            raise SystemExit(f"the peers' logits differ by {difference:.1e}")
        return hooked

    def tokens(self, batch: int, length: int) -> Tensor:
        """Random tokens."""
        vocabulary = self.transformers.config.vocab_size
        return torch.randint(vocabulary, (batch, length), generator=self.generator)

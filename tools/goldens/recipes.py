"""What describes a tiny random model, and the small sizes that most of them have."""

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Recipe:
    """One model: configuration, lengths of its goldens, how it is filled and saved."""

    config: Any  # a PreTrainedConfig, whose keys differ by family
    lengths: tuple[int, ...] = (1, 2, 37)
    attention_gain: float = 1.3
    dtype: torch.dtype = torch.float32
    shard_size: str = "1GB"
    switches: str = ""  # what this model turns, for the table of families
    # Keys of the configuration with values that must change the numbers.
    without: dict[str, Any] = field(default_factory=dict)


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

"""Configurations as transformers 4 wrote them, which most published models have."""

from typing import Any

# How older files name what newer ones keep in `rope_parameters`.
THETA = {"gpt_neox": "rotary_emb_base"}
PARTIAL = {"gpt_neox": "rotary_pct"}
RENAMED = {"dtype": "torch_dtype"}
RENAMED_IN = {"qwen3_moe": {"num_local_experts": "num_experts"}}


def older_config(config: dict[str, Any]) -> dict[str, Any]:
    """The same configuration, in the keys of transformers 4.

    Rope settings are keys of the file, with `rope_scaling` for its kinds, whose `type`
    is `rope_type` in the later ones; window layers come from a rule, not from a list.
    Published files also have a window that is not used, and a `gelu` that is another.
    """
    family = config["model_type"]
    renamed = RENAMED | RENAMED_IN.get(family, {})
    older = {renamed.get(key, key): value for key, value in config.items()}
    older["transformers_version"] = "4.44.0"
    ropes = older.pop("rope_parameters")
    if family == "gemma3_text":
        older["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
        ropes = ropes["full_attention"]
    older |= {THETA.get(family, "rope_theta"): ropes["rope_theta"]}
    if "partial_rotary_factor" in ropes:
        key = PARTIAL.get(family, "partial_rotary_factor")
        older[key] = ropes["partial_rotary_factor"]
    older["rope_scaling"] = scaling(family, ropes)
    if follows_rule(older):
        del older["layer_types"]
    if older.get("use_sliding_window") is False:
        older["sliding_window"] = 4
    if family == "gemma" and older["hidden_act"] == "gelu_pytorch_tanh":
        older |= {"hidden_act": "gelu", "hidden_activation": None}
    return dict(sorted(older.items()))


def scaling(family: str, rope: dict[str, Any]) -> dict[str, Any] | None:
    kind = rope["rope_type"]
    if kind == "default":
        return None
    elsewhere = {"rope_type", "rope_theta", "partial_rotary_factor"}
    if kind == "longrope":  # where it is a key of the file
        elsewhere |= {"original_max_position_embeddings"}
    settings = {key: value for key, value in rope.items() if key not in elsewhere}
    is_newer = kind == "llama3" or family == "gemma3_text"
    return {"rope_type" if is_newer else "type": kind} | settings


def follows_rule(config: dict[str, Any]) -> bool:
    """Whether the window layers are those that the family's older keys say."""
    layer_types = config.get("layer_types")
    if layer_types is None:
        return False
    count = len(layer_types)
    match config["model_type"]:
        case "gemma2":
            sliding = [layer % 2 == 0 for layer in range(count)]
        case "gemma3_text":
            pattern = config.pop("_sliding_window_pattern")
            if "full_attention" in layer_types:
                pattern = layer_types.index("full_attention") + 1
            config["sliding_window_pattern"] = pattern
            sliding = [(layer + 1) % pattern != 0 for layer in range(count)]
        case "qwen2" | "qwen3":
            first = (
                config["max_window_layers"] if config["use_sliding_window"] else count
            )
            sliding = [layer >= first for layer in range(count)]
        case _:
            return False
    names = ["sliding_attention" if each else "full_attention" for each in sliding]
    return bool(names == layer_types)

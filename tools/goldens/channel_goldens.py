"""Makes crates/endoscope-models/tests/goldens/channels.json: the rank-one channels of
what each head of a tiny GPT-2 writes, read by each later head, by numpy.

Usage: python tools/goldens/channel_goldens.py
"""

import json
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from places import MODELS
from safetensors.numpy import load_file

Numbers: TypeAlias = NDArray[np.float64]
MODEL = "gpt2-odd"


def heads_of(folder: Any) -> list[list[tuple[Numbers, Numbers]]]:
    """W_Q W_K^T and W_V W_O of each head, [d, d], to be read as x W."""
    config = json.loads((folder / "config.json").read_text())
    heads, width = config["n_head"], config["n_embd"] // config["n_head"]
    weights = {
        name.removeprefix("transformer."): value.astype(np.float64)
        for name, value in load_file(folder / "model.safetensors").items()
    }
    layers: list[list[tuple[Numbers, Numbers]]] = []
    for layer in range(config["n_layer"]):
        queries, keys, values = np.split(
            weights[f"h.{layer}.attn.c_attn.weight"], 3, axis=1
        )
        output = weights[f"h.{layer}.attn.c_proj.weight"]
        layers.append([])
        for head in range(heads):
            own = slice(head * width, (head + 1) * width)
            layers[-1].append(
                (queries[:, own] @ keys[:, own].T, values[:, own] @ output[own])
            )
    return layers


def channels(write: Numbers, read: Numbers, width: int) -> dict[str, Any]:
    """Every channel as a matrix of its own, by the formula of the whole."""

    def score(matrix: Numbers) -> float:
        norms = np.linalg.norm(matrix) * np.linalg.norm(read)
        return float(np.linalg.norm(matrix @ read) / norms)

    left, values, right = np.linalg.svd(write)
    parts = [
        value * np.outer(left[:, number], right[number])
        for number, value in enumerate(values[:width])
    ]
    assert np.allclose(sum(parts), write)
    whole = np.linalg.norm(write @ read)
    return {
        "score": rounded(score(write)),
        "singular_values": [rounded(float(value)) for value in values[:width]],
        "scores": [rounded(score(part)) for part in parts],
        "shares": [
            rounded(float((np.linalg.norm(part @ read) / whole) ** 2)) for part in parts
        ],
    }


def rounded(value: float) -> float:
    return float(f"{value:.7g}")


def main() -> None:
    layers = heads_of(MODELS / MODEL)
    width = layers[0][0][0].shape[0] // len(layers[0])
    goldens: dict[str, Any] = {}
    for kind in "QKV":
        goldens[kind] = [
            {"from": [earlier, from_head], "to": [later, to_head]}
            | channels(ov, {"Q": qk, "K": qk.T, "V": own_ov}[kind], width)
            for earlier in range(len(layers))
            for from_head, (_, ov) in enumerate(layers[earlier])
            for later in range(earlier + 1, len(layers))
            for to_head, (qk, own_ov) in enumerate(layers[later])
        ]
    path = MODELS / "channels.json"
    path.write_text(json.dumps({"model": MODEL} | goldens) + "\n")


if __name__ == "__main__":
    main()

"""Updates of small dictionaries by SAELens's own training classes and torch's Adam.

Usage: PYTHON tools/goldens/saelens_training.py, where PYTHON has sae-lens 6.54 (see
tools/goldens/README.md).
"""

import json
from pathlib import Path
from typing import Any

import torch
from sae_lens.saes.batchtopk_sae import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
)
from sae_lens.saes.gated_sae import GatedTrainingSAE, GatedTrainingSAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig
from sae_lens.saes.matryoshka_batchtopk_sae import (
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.saes.sae import TrainStepInput
from sae_lens.saes.standard_sae import StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig

WIDTH, LATENTS, ROWS, STEPS = 6, 10, 16, 4
RATE = 0.01
DEAD = [2, 5, 7]
OUT = (
    Path(__file__).parents[2]
    / "crates/endoscope-dictionary/tests/goldens/saelens_training.json"
)

CASES: list[tuple[str, type, type, dict[str, Any]]] = [
    ("standard", StandardTrainingSAE, StandardTrainingSAEConfig, {}),
    (
        "standard, layer norm",
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
        {"normalize_activations": "layer_norm"},
    ),
    (
        "standard, constant norm, bias not subtracted",
        StandardTrainingSAE,
        StandardTrainingSAEConfig,
        {
            "normalize_activations": "constant_norm_rescale",
            "apply_b_dec_to_input": False,
        },
    ),
    ("gated", GatedTrainingSAE, GatedTrainingSAEConfig, {}),
    ("topk", TopKTrainingSAE, TopKTrainingSAEConfig, {"k": 3}),
    (
        "topk, lengths not compared",
        TopKTrainingSAE,
        TopKTrainingSAEConfig,
        {"k": 3, "rescale_acts_by_decoder_norm": False},
    ),
    ("batchtopk", BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, {"k": 2.5}),
    (
        "matryoshka",
        MatryoshkaBatchTopKTrainingSAE,
        MatryoshkaBatchTopKTrainingSAEConfig,
        {"k": 2.5, "matryoshka_widths": [3, 6, LATENTS]},
    ),
    ("jumprelu", JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, {}),
    (
        "jumprelu, through input",
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
        {"jumprelu_ste_to_input": True},
    ),
    (
        "jumprelu, quadratic",
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
        {"jumprelu_sparsity_loss_mode": "quadratic", "target_l0": 2.0},
    ),
    (
        "jumprelu, tanh",
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
        {"jumprelu_sparsity_loss_mode": "tanh", "jumprelu_ste_to_input": True},
    ),
    (
        "jumprelu, pre-activations of the dead",
        JumpReLUTrainingSAE,
        JumpReLUTrainingSAEConfig,
        {"pre_act_loss_coefficient": 0.2},
    ),
]


def arrays(sae: torch.nn.Module) -> dict[str, list[float]]:
    """Every array, flat, by its name."""
    found = dict(sae.named_parameters())
    return {name: value.detach().flatten().tolist() for name, value in found.items()}


def case(
    name: str, kind: type, config: type, options: dict[str, Any], number: int
) -> dict[str, Any]:
    """Some updates of one dictionary."""
    torch.manual_seed(number)
    options = dict(options)
    if name.startswith("jumprelu"):
        options |= {"jumprelu_bandwidth": 0.4, "l0_coefficient": 0.3}
    sparse = {"l1": 0.3, "l0": options.get("l0_coefficient", 0.0)}
    sae = kind(config(d_in=WIDTH, d_sae=LATENTS, **options))
    with torch.no_grad():
        for weight in sae.parameters():
            weight.copy_(0.4 * torch.randn(weight.shape))
        sae.W_enc.copy_(torch.randn(WIDTH, LATENTS) * 0.5)
        if name.startswith("jumprelu"):
            sae.threshold.copy_(0.05 + 0.3 * torch.rand(LATENTS))
        revived = any(part in name for part in ("topk", "matryoshka", "of the dead"))
        if revived:
            sae.b_enc[DEAD] = -9.0
    dead = torch.zeros(LATENTS, dtype=torch.bool)
    dead[DEAD] = revived
    batches = torch.randn(STEPS, ROWS, WIDTH) + 0.3
    optimizer = torch.optim.Adam(sae.parameters(), lr=RATE, betas=(0.9, 0.999))
    start = arrays(sae)
    losses = []
    for step, batch in enumerate(batches):
        output = sae.training_forward_pass(
            TrainStepInput(
                sae_in=batch,
                coefficients=sparse,
                dead_neuron_mask=dead if revived else None,
                n_training_steps=step,
                is_logging_step=False,
            )
        )
        optimizer.zero_grad()
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(sae.parameters(), 1.0)
        optimizer.step()
        losses.append(output.loss.item())
    threshold = getattr(sae, "topk_threshold", None)
    return {
        "name": name,
        "batches": batches.flatten().tolist(),
        "start": start,
        "end": arrays(sae),
        "losses": losses,
        "running_threshold": None if threshold is None else threshold.item(),
    }


def main() -> None:
    """Writes the goldens."""
    found = [case(*each, number) for number, each in enumerate(CASES)]

    def rounded(value: Any) -> Any:
        if isinstance(value, float):
            return float(f"{value:.8g}")
        if isinstance(value, list):
            return [rounded(each) for each in value]
        if isinstance(value, dict):
            return {name: rounded(each) for name, each in value.items()}
        return value

    OUT.write_text(json.dumps(rounded(found), indent=None) + "\n")


if __name__ == "__main__":
    main()

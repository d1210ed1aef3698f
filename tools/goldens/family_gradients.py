"""Gradients of the loss by every tensor, for the tiny models of every family.

    bench/.venv/bin/python tools/goldens/family_gradients.py

The loss is the mean cross entropy of the next tokens of two rows. Of each tensor's
gradient, by the tensor's name in the file, the length is kept and the product with the
direction sin(1), sin(2), … over its entries in row-major order.
"""

import json
import tempfile
from pathlib import Path
from zlib import crc32

import torch
from places import MODELS, ROOT
from safetensors.torch import load_file
from sites import load
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

OUT = ROOT / "crates/endoscope-train/tests/goldens/family_gradients.json"
ROWS, LENGTH = 2, 11
DIGITS = 8
SMALLEST_LEAD = 1e-3  # of a chosen expert: far above rounding


def random_tokens(name: str, vocabulary: int) -> Tensor:
    random = torch.Generator().manual_seed(crc32(name.encode()))
    return torch.randint(vocabulary, (ROWS, LENGTH), generator=random)


def check_choices(name: str, model: PreTrainedModel, tokens: Tensor) -> None:
    """That rounding cannot change which experts are chosen."""
    if not hasattr(model.config, "num_experts_per_tok"):
        return
    active = model.config.num_experts_per_tok
    for logits in model(tokens, output_router_logits=True).router_logits:
        best = logits.sort(-1, descending=True).values
        if best.shape[-1] > active:
            lead = (best[..., active - 1] - best[..., active]).min().item()
            assert lead > SMALLEST_LEAD, f"{name}: experts are too close: {lead:.1e}"


def by_names_of_the_file(model: PreTrainedModel) -> dict[str, Tensor]:
    """The gradients as the model's tensors would be saved: one, untied, not fused."""
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.data = parameter.grad
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        found: dict[str, Tensor] = load_file(Path(folder) / "model.safetensors")
    return found


def measured(name: str) -> dict[str, object]:
    # The attention that users run by default; see the README on Falcon with ALiBi.
    model = load(MODELS / name, attn_implementation=None)
    tokens = random_tokens(name, model.config.vocab_size)
    check_choices(name, model, tokens)
    logits = model(tokens, use_cache=False).logits
    loss = cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    gradients = {}
    for tensor, gradient in sorted(by_names_of_the_file(model).items()):
        flat = gradient.flatten().double()
        direction = torch.arange(1, len(flat) + 1).double().sin()
        gradients[tensor] = [shown(flat.norm()), shown(flat @ direction)]
    return {
        "tokens": tokens.tolist(),
        "loss": shown(loss),
        "gradients": gradients,
    }


def shown(value: Tensor) -> float:
    return float(f"{value.item():.{DIGITS}g}")


def main() -> None:
    disable_progress_bar()
    names = json.loads((MODELS / "notes.json").read_text())
    # One line a model.
    lines = [f"{json.dumps(name)}: {json.dumps(measured(name))}" for name in names]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()

"""One update of a small model of GPT-2's kind; the shape is that of `--work train`."""

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from peers.forward import size
from peers.measuring import Contestant, Work, timed
from peers.models import Models

BATCH, LENGTH = 16, 128
VOCABULARY = 1024
CONFIG = {
    "vocab_size": VOCABULARY,
    "n_positions": LENGTH,
    "n_embd": 256,
    "n_layer": 4,
    "n_head": 4,
    "n_inner": 1024,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def contestant(fused: bool) -> Contestant:
    """Forward and backward pass and torch's AdamW, on the same batch each time."""
    torch.manual_seed(0)
    model: Any = GPT2LMHeadModel(GPT2Config(**CONFIG))
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=1e-3,
        betas=(0.9, 0.99),
        eps=1e-8,
        weight_decay=0.01,
        fused=fused,
    )
    tokens = torch.randint(VOCABULARY, (BATCH, LENGTH))

    def update() -> None:
        with torch.enable_grad():
            loss = model(tokens, labels=tokens, use_cache=False).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return timed(update)


def training(_: Models) -> list[Work]:
    return [
        Work(
            f"training step, 4 layers of 256, {BATCH} x {LENGTH}",
            {"Endoscope": size("train", BATCH, LENGTH)},
            {
                "PyTorch, AdamW": contestant(False),
                "PyTorch, fused AdamW": contestant(True),
            },
        )
    ]

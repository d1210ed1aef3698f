"""Greedy decoding with a cache, token by token; times are of one token."""

import time
from typing import Any

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from peers.forward import size
from peers.measuring import Contestant, Work
from peers.models import Models

PROMPT = 32
DECODED = 64


def by_loop(model: Any, prompt: Tensor) -> Contestant:
    """A loop over forward passes of one token; the prompt's own pass is not counted."""

    def contestant() -> float:
        run = model(prompt, use_cache=True)
        token = run.logits[:, -1:].argmax(-1)
        start = time.perf_counter()
        for _ in range(DECODED):
            run = model(token, past_key_values=run.past_key_values, use_cache=True)
            token = run.logits[:, -1:].argmax(-1)
        return (time.perf_counter() - start) / DECODED

    return contestant


class Clock(BaseStreamer):  # type: ignore[misc, unused-ignore]
    """When the prompt and each token came."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


def by_generate(model: Any, prompt: Tensor) -> Contestant:
    """transformers' own loop; its time before the first token is not counted."""
    model.generation_config.eos_token_id = None  # random weights may write it
    model.generation_config.pad_token_id = 0  # without padding, only keeps it quiet

    def contestant() -> float:
        clock = Clock()
        model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=DECODED + 1,
            do_sample=False,
            streamer=clock,
        )
        assert len(clock.times) == DECODED + 2, "the prompt, a token, and those timed"
        return (clock.times[-1] - clock.times[1]) / DECODED

    return contestant


def decode(models: Models) -> list[Work]:
    prompt = models.tokens(1, PROMPT)
    ours = size("decode", 1, PROMPT)

    def peers(model: Any) -> dict[str, Contestant]:
        return {
            "transformers, a loop": by_loop(model, prompt),
            "transformers generate": by_generate(model, prompt),
        }

    title = f"decoding a token, {PROMPT} + {DECODED}"
    return [
        Work(f"{title}, f32", {"Endoscope": ours}, peers(models.transformers)),
        Work(
            f"{title}, 16 bits",
            {
                "Endoscope": (*ours, "--weights", "bf16"),
                "Endoscope int8": (*ours, "--weights", "int8"),
            },
            peers(models.transformers_16_bit),
        ),
    ]


def with_plan(models: Models) -> list[Work]:
    plain, planned = (size(work, 1, PROMPT) for work in ("decode", "decode-plan"))
    return [
        Work(
            "decoding a token with a plan: one vector added, one site kept",
            {"Endoscope without a plan": plain, "Endoscope": planned},
        )
    ]

"""The metrics by their definitions, in float64, on small random logits."""

from typing import TypedDict

import torch
from torch import Tensor

VOCABULARY = 20


class Case(TypedDict):
    clean: list[float]
    corrupt: list[float]
    answers: list[int]
    wrong_answers: list[int]
    of_clean: dict[str, float]
    of_corrupt: dict[str, float]


def cases() -> list[Case]:
    generator = torch.Generator().manual_seed(20)
    answer_lists = (
        ([4], [11]),
        ([0, 19], [7]),
        ([3, 5, 8], [1, 2, 13, 17]),
        ([12], [6, 9]),
    )
    made = []
    for scale, (answers, wrong_answers) in zip(
        (1.0, 3.0, 0.1, 30.0), answer_lists, strict=True
    ):
        clean = scale * torch.randn(
            VOCABULARY, generator=generator, dtype=torch.float64
        )
        corrupt = scale * torch.randn(
            VOCABULARY, generator=generator, dtype=torch.float64
        )
        corrupt[10] = corrupt[answers[0]]  # a tie, which does not worsen the rank
        made.append(
            Case(
                clean=clean.tolist(),
                corrupt=corrupt.tolist(),
                answers=answers,
                wrong_answers=wrong_answers,
                of_clean=metrics(clean, clean, answers, wrong_answers),
                of_corrupt=metrics(corrupt, clean, answers, wrong_answers),
            )
        )
    return made


def metrics(
    logits: Tensor, reference: Tensor, answers: list[int], wrong_answers: list[int]
) -> dict[str, float]:
    """Every metric of one vector of logits [vocab]; `kl` is KL(reference || these)."""
    log_probabilities, reference_log = logits.log_softmax(0), reference.log_softmax(0)
    probability = log_probabilities.exp()[answers].sum()
    return {
        "logit_diff": (logits[answers].mean() - logits[wrong_answers].mean()).item(),
        "probability": probability.item(),
        "loss": -probability.log().item(),
        "rank": min(int((logits > logits[answer]).sum()) for answer in answers),
        "kl": (reference_log.exp() * (reference_log - log_probabilities)).sum().item(),
    }

"""Makes crates/endoscope-causal/tests/goldens/length.json: how well the organism
`induction` repeats sequences of several lengths, as it is and with its attention
scores multiplied by 1 + c log n, by transformers. And
crates/endoscope-studies/tests/goldens/sorting.json: what the streams of the organism
`sorting-hinted` say at the numbers of an answer, and where its heads look there.

Usage: python tools/goldens/length_goldens.py
"""

import copy
import json
import math
import random
from typing import Any

import torch
from places import CAUSAL, ROOT
from transformers import AutoModelForCausalLM

STUDIES = ROOT / "crates" / "endoscope-studies" / "tests" / "goldens"
# The first of each is no change.
COEFFICIENTS = [[0.0, 0.0], [0.4, 0.0], [-0.3, -0.25]]
LENGTHS = [3, 12, 24]
ROWS = 6


def scaled(model: Any, coefficients: list[float], length: int) -> Any:
    """A copy whose queries, and so whose attention scores, are multiplied."""
    changed = copy.deepcopy(model)
    for layer, coefficient in zip(changed.model.layers, coefficients, strict=True):
        with torch.no_grad():
            layer.self_attn.q_proj.weight *= 1 + coefficient * math.log(length)
    return changed


def measured(model: Any, rows: list[list[int]], asked: list[int]) -> dict[str, Any]:
    ids = torch.tensor(rows)
    with torch.no_grad():
        run = model(ids, output_attentions=True)
    queries = [at - 1 for at in asked]
    logits = run.logits[:, queries].double()
    answers = ids[:, asked]
    right = logits.argmax(-1) == answers
    losses = -logits.log_softmax(-1).gather(-1, answers[..., None])
    entropies = [
        torch.special.entr(pattern[:, :, queries].double()).sum(-1).mean().item()
        for pattern in run.attentions
    ]
    return {
        "exact": right.all(1).double().mean().item(),
        "token": right.double().mean().item(),
        "loss": losses.mean().item(),
        "entropy": entropies,
    }


def opened(organism: str) -> Any:
    folder = ROOT / "organisms" / organism
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    return model.float().eval()


def sorting() -> dict[str, Any]:
    """At every number of the answer but the last two."""
    model, length = opened("sorting-hinted"), 9
    vocabulary = json.loads(
        (ROOT / "organisms" / "sorting-hinted" / "tokenizer.json").read_text()
    )["model"]["vocab"]
    generator = random.Random(8)
    rows = []
    for _ in range(5):
        numbers = [generator.randint(1, 30) for _ in range(length)]
        words = ["<bos>", *map(str, numbers), "sort", *map(str, sorted(numbers))]
        rows.append([vocabulary[word] for word in words])
    with torch.no_grad():
        run = model(
            torch.tensor(rows), output_hidden_states=True, output_attentions=True
        )
        # transformers has the last stream after the norm already.
        normed = [model.model.norm(stream) for stream in run.hidden_states[:-1]]
        streams = [model.lm_head(stream) for stream in [*normed, run.hidden_states[-1]]]
    said = [[0.0, 0.0, 0.0] for _ in streams]
    queries = range(length + 2, 2 * length)
    looks = torch.zeros(len(run.attentions), model.config.num_attention_heads, 2)
    counted = 0
    for row, tokens in enumerate(rows):
        for query in queries:
            window = tokens[query : query + 3]
            for stream, logits in enumerate(streams):
                order = logits[row, query].argsort(descending=True).tolist()
                for which, token in enumerate(window):
                    said[stream][which] += 1 / (order.index(token) + 1)
            if window[1] == window[2]:
                continue
            counted += 1
            for key in range(1, length + 1):
                for which in (0, 1):
                    if tokens[key] == window[which + 1]:
                        for layer, pattern in enumerate(run.attentions):
                            looks[layer, :, which] += pattern[row, :, query, key]
    count = len(rows) * len(queries)
    best = [layer[layer[:, 0].argmax()] / counted for layer in looks]
    return {
        "length": length,
        "rows": rows,
        "said": [[value / count for value in of_stream] for of_stream in said],
        "looks": [layer.tolist() for layer in best],
    }


def main() -> None:
    STUDIES.mkdir(parents=True, exist_ok=True)
    (STUDIES / "sorting.json").write_text(json.dumps(sorting()) + "\n")
    model = opened("induction")
    generator = random.Random(7)
    exams = []
    for length in LENGTHS:
        words = [generator.sample(range(2, 60), length) for _ in range(ROWS)]
        rows = [[0, *row, *row] for row in words]
        # The first word of the second copy cannot be known.
        asked = list(range(length + 2, 2 * length + 1))
        found = [
            measured(scaled(model, coefficients, length), rows, asked)
            for coefficients in COEFFICIENTS
        ]
        exams.append({"length": length, "rows": rows, "asked": asked, "found": found})
    made = {"coefficients": COEFFICIENTS, "exams": exams}
    (CAUSAL / "length.json").write_text(json.dumps(made) + "\n")


if __name__ == "__main__":
    main()

"""Makes the goldens of the constructed organisms: transformers' logits of some prompts.

Usage: bench/.venv/bin/python tools/goldens/constructed.py

The models are computed by `endoscope organisms`, which cargo builds first. Fails
where transformers does not answer every prompt of `pairs.json` rightly.
"""

import json
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

import torch
from places import ROOT
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

GOLDENS = ROOT / "crates" / "endoscope-organisms" / "tests" / "goldens"
ROWS = 3


def endoscope(*arguments: str) -> str:
    """What the command says."""
    command = [str(ROOT / "target" / "debug" / "endoscope"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def make(name: str, directory: Path) -> None:
    """The golden of one organism, written to `directory`."""
    endoscope("organisms", name, "--out", str(directory))
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    by_length: dict[int, list[list[int]]] = defaultdict(list)
    for pair in json.loads((directory / "pairs.json").read_text())["prompts"]:
        for side, answers in (("clean", "answers"), ("corrupt", "wrong_answers")):
            tokens = tokenizer.encode(pair[side]).ids
            with torch.no_grad():
                said = model(torch.tensor([tokens])).logits[0, -1].argmax().item()
            assert tokenizer.id_to_token(said) == pair[answers][0], (name, pair)
            by_length[len(tokens)].append(tokens)
    rows = max(by_length.values(), key=len)[:ROWS]
    tokens = torch.tensor(rows)
    with torch.no_grad():
        logits = model(tokens).logits
    GOLDENS.mkdir(exist_ok=True)
    golden = {"tokens": tokens.to(torch.uint32), "logits": logits.contiguous()}
    save_file(golden, GOLDENS / f"{name}.safetensors")
    print(f"{name}: {tuple(logits.shape)}")


def main() -> None:
    """Makes all."""
    subprocess.run(["cargo", "build", "--workspace", "--quiet"], cwd=ROOT, check=True)
    organisms = json.loads(endoscope("organisms", "--json"))
    with tempfile.TemporaryDirectory() as folder:
        for organism in organisms:
            if organism["constructed"]:
                make(organism["name"], Path(folder) / organism["name"])


if __name__ == "__main__":
    main()

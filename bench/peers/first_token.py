"""A peer in a fresh process: opens the model and writes its first token.

first_token.py transformers|transformer_lens FOLDER THREADS ID…; writes one line of JSON
with the token and the seconds since everything was imported.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

LIBRARY, FOLDER, THREADS = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
if LIBRARY == "transformers":
    # The class itself: the automatic one would import more.
    from transformers import GPT2LMHeadModel
else:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from peers.models import hooked_gpt2, open_transformers


def main() -> None:
    start = time.perf_counter()
    torch.set_num_threads(THREADS)
    torch.set_grad_enabled(False)
    tokens = torch.tensor([[int(token) for token in sys.argv[4:]]])
    model: Any
    if LIBRARY == "transformers":
        model = GPT2LMHeadModel.from_pretrained(FOLDER, dtype=torch.float32)
        model.train(False)
        logits = model(tokens, use_cache=True).logits
    else:
        logits = hooked_gpt2(open_transformers(FOLDER))(tokens)
    token = int(logits[0, -1].argmax())
    seconds = time.perf_counter() - start
    print(json.dumps({"token": token, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()

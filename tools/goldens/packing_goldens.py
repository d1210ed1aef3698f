"""Documents packed into blocks by SAELens.

Usage: bench/.venv/bin/python tools/goldens/packing_goldens.py

Needs sae-lens besides: pip install --no-deps sae-lens==6.54.12. Only its function
`concat_and_batch_sequences` is loaded, so none of what the package imports is needed
but torch and transformers.
"""

import importlib.util
import json
import random
from pathlib import Path
from types import ModuleType

import torch

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "crates/endoscope-harvest/tests/goldens/packing.json"


def packing_of_sae_lens() -> ModuleType:
    package = importlib.util.find_spec("sae_lens")
    assert package and package.origin, "pip install --no-deps sae-lens"
    path = Path(package.origin).with_name("tokenization_and_batching.py")
    spec = importlib.util.spec_from_file_location("packing", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    pack = packing_of_sae_lens().concat_and_batch_sequences
    generator = random.Random(0)
    cases, count = [], 0
    for begin in (None, 0, 3):
        for separator in (None, 0, 3):
            for context in (2, 5, 16):
                documents = [
                    [generator.randrange(6) for _ in range(generator.randrange(1, 24))]
                    for _ in range(12)
                ]
                # Short ones, some of which begin with what is put before them.
                documents += [[0], [3], [3, 0], [1], [0, 0, 0], [5, 4]]
                generator.shuffle(documents)
                packed = pack(
                    iter([torch.tensor(document) for document in documents]),
                    context_size=context,
                    begin_batch_token_id=begin,
                    sequence_separator_token_id=separator,
                )
                blocks = [block.tolist() for block in packed]
                count += len(blocks)
                cases.append(
                    {
                        "context": context,
                        "begin": begin,
                        "separator": separator,
                        "documents": documents,
                        "blocks": blocks,
                    }
                )
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(cases, separators=(",", ":")) + "\n")
    print(f"{OUT}: {count} blocks")


if __name__ == "__main__":
    main()

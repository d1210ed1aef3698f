"""From the start of a process to its first token, and the memory that this takes."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from peers.measuring import in_turns
from peers.worker import Endoscope

PROMPT = tuple(range(1, 9))
HERE = Path(__file__).resolve().parent


@dataclass
class Opening:
    """A command that is run in a fresh process each time."""

    command: list[str]
    environment: Mapping[str, str]
    after_imports: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)
    token: int | None = None

    def __call__(self) -> float:
        fresh = [sys.executable, str(HERE / "fresh.py"), *self.command]
        run = subprocess.run(
            fresh,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self.environment,
        )
        found = json.loads(run.stdout)
        output = json.loads(found["output"])
        # Endoscope writes the bare token.
        said = output if isinstance(output, dict) else {"token": output}
        self.token = said["token"]
        self.after_imports.append(said.get("seconds", found["seconds"]))
        self.peak_bytes.append(found["peak_bytes"])
        return float(found["seconds"])


def measure(
    endoscope: Endoscope, folder: Path, threads: int, repeats: int
) -> dict[str, dict[str, Any]]:
    """What each of them needs, by name."""
    ids = [str(token) for token in PROMPT]

    def peer(library: str) -> Opening:
        script = [sys.executable, str(HERE / "first_token.py")]
        command = [*script, library, str(folder), str(threads), *ids]
        return Opening(command, endoscope.environment)

    generate = ["generate", str(folder), "--tokens", ",".join(ids), "--max-tokens", "1"]
    ours = [str(endoscope.binary), *generate, "--ignore-end-token"]
    openings = {
        "Endoscope": Opening(ours, endoscope.environment),
        "transformers": peer("transformers"),
        "TransformerLens": peer("transformer_lens"),
    }
    seconds = in_turns(openings, repeats)
    tokens = {name: opening.token for name, opening in openings.items()}
    if len(set(tokens.values())) != 1:
        raise SystemExit(f"they do not agree on the first token: {tokens}")
    return {
        name: {
            "seconds": seconds[name],
            "after_imports": opening.after_imports[1:],
            "peak_bytes": opening.peak_bytes[1:],
        }
        for name, opening in openings.items()
    }


HEADER = """\
| opening, and a token after 8 | median ms | least | most | times Endoscope | \
after imports, ms | times Endoscope | peak memory, MiB | of the weights' file |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""


def table(found: dict[str, dict[str, Any]], folder: Path) -> str:
    file_bytes = (folder / "model.safetensors").stat().st_size
    ours = median(found["Endoscope"]["seconds"])
    rows = [HEADER]
    for name, one in found.items():
        seconds = one["seconds"]
        middle, after = median(seconds), median(one["after_imports"])
        peak = median(one["peak_bytes"])
        cells = [
            name,
            *(f"{1e3 * value:.0f}" for value in (middle, min(seconds), max(seconds))),
            f"{middle / ours:.2f}",
            f"{1e3 * after:.0f}",
            f"{after / ours:.2f}",
            f"{peak / (1 << 20):.0f}",
            f"{peak / file_bytes:.2f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)

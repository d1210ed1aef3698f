"""Golden of the study mcq-circuit: singular values, projection onto the first three.

    python tools/goldens/mcq_subspace.py

numpy alone; writes crates/endoscope-studies/tests/goldens/mcq_subspace.json.
"""

import json
from pathlib import Path

import numpy as np

ROWS, WIDTH, RANK = 40, 8, 3


def main() -> None:
    random = np.random.default_rng(6)
    # Three strong directions, the rest weak; not centred.
    strong = random.normal(size=(ROWS, RANK)) @ random.normal(size=(RANK, WIDTH))
    vectors = (
        strong + 0.1 * random.normal(size=(ROWS, WIDTH)) + random.normal(size=WIDTH)
    )
    vectors = vectors.astype(np.float32).astype(np.float64)
    mean = vectors.mean(axis=0)
    _, values, right = np.linalg.svd(vectors - mean, full_matrices=False)
    projected = mean + (vectors - mean) @ right[:RANK].T @ right[:RANK]
    golden = {
        "vectors": vectors.round(6).tolist(),
        "mean": mean.round(6).tolist(),
        "singular_values": values.round(6).tolist(),
        "projected": projected.round(6).tolist(),
    }
    root = Path(__file__).resolve().parents[2]
    path = root / "crates/endoscope-studies/tests/goldens/mcq_subspace.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()

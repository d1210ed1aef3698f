"""A control vector as repeng writes it, by gguf-py.

Usage: PYTHON tools/goldens/control_vector.py, where PYTHON has gguf==0.19.0
"""

from pathlib import Path

import numpy as np
from gguf import GGUFWriter

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "crates/endoscope-models/tests/goldens/gguf/control_vector.gguf"


def main() -> None:
    """Writes the file."""
    writer = GGUFWriter(OUT, "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", 6)
    for layer in (1, 2, 5):
        direction = layer + 0.5 * np.arange(7, dtype=np.float32)
        writer.add_tensor(f"direction.{layer}", direction)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()

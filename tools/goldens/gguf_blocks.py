"""Makes tests/goldens/gguf/blocks.safetensors: random blocks of every encoding that is
read, and their values by gguf-py.

Usage: python tools/goldens/gguf_blocks.py
Needs, besides bench/requirements.txt: gguf==0.19.0
"""

from typing import TypeAlias

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray
from places import MODELS
from safetensors.numpy import save_file

Encoding = GGMLQuantizationType
Bytes: TypeAlias = NDArray[np.uint8]

BLOCKS = 5
HALVES = {  # where a block of each encoding holds its f16 scales
    Encoding.F16: (0,),
    Encoding.Q4_0: (0,),
    Encoding.Q4_1: (0, 2),
    Encoding.Q5_0: (0,),
    Encoding.Q5_1: (0, 2),
    Encoding.Q8_0: (0,),
    Encoding.Q2_K: (80, 82),
    Encoding.Q3_K: (108,),
    Encoding.Q4_K: (0, 2),
    Encoding.Q5_K: (0, 2),
    Encoding.Q6_K: (208,),
}


def random_blocks(
    encoding: GGMLQuantizationType,
    rows: int,
    row: int,
    scale: float,
    generator: np.random.Generator,
) -> Bytes:
    """Bytes [rows, row bytes] of random blocks; scales lie around `scale`."""
    block, size = GGML_QUANT_SIZES[encoding]
    blocks = generator.integers(0, 256, (rows * row // block, size), dtype=np.uint8)
    for at in HALVES[encoding]:
        scales = scale * generator.standard_normal((len(blocks), 1))
        blocks[:, at : at + 2] = scales.astype("<f2").view(np.uint8)
    return blocks.reshape(rows, -1)


def main() -> None:
    generator = np.random.default_rng(1)
    golden: dict[str, NDArray[np.generic]] = {}
    floats = generator.standard_normal((1, 64)).astype(np.float32)
    floats[0, :4] = [0.0, -0.0, 1e-40, 3e38]
    wholes = {
        Encoding.F32: floats.view(np.uint8),
        Encoding.BF16: np.ascontiguousarray(floats.view(np.uint16)[:, 1::2]).view(
            np.uint8
        ),
    }
    for encoding in (*wholes, *HALVES):
        block, _ = GGML_QUANT_SIZES[encoding]
        blocks = wholes.get(encoding)
        if blocks is None:
            blocks = random_blocks(encoding, BLOCKS, block, 0.01, generator)
        golden[f"{encoding.name}.blocks"] = blocks
        golden[f"{encoding.name}.values"] = dequantize(blocks, encoding)
    path = MODELS / "gguf" / "blocks.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(golden, path)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

"""TwoNN of many points: scikit-dimension against Endoscope.

Usage: bench/.venv/bin/python bench/two_nn.py [--points 10000] [--dim 768]

Before it: cargo build --release -p endoscope-causal --example two_nn

Random points of a few dimensions, turned into many, with noise in all of them. Both
read f32 points, find the two nearest neighbours of each exactly and fit the same line,
on the same number of threads, one after the other, several times. Reading points and
starting processes is not counted on either side. The dimensions must agree.

With --neighbours L it is the dimension around each point instead.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import skdim
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

AGREEMENT = 1e-6


def points(count: int, dim: int, intrinsic: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    inner = generator.normal(size=(count, intrinsic))
    turned = inner @ generator.normal(size=(intrinsic, dim)) / np.sqrt(intrinsic)
    noise = 0.05 * generator.normal(size=(count, dim))
    return (turned + noise).astype(np.float32)


def theirs(
    cloud: np.ndarray, neighbours: int | None, threads: int
) -> tuple[float, float]:
    with threadpool_limits(threads):
        start = time.perf_counter()
        if neighbours is None:
            # In f64: in f32 its distances would be rounded.
            found = skdim.id.TwoNN().fit(cloud.astype(np.float64)).dimension_
        else:
            local = skdim.id.TwoNN().fit_pw(
                cloud.astype(np.float64), n_neighbors=neighbours, n_jobs=1
            )
            found = local.dimension_pw_.mean()
        return time.perf_counter() - start, float(found)


def ours(
    binary: Path, file: Path, neighbours: int | None, threads: int
) -> tuple[float, float]:
    command = [str(binary), str(file)]
    command += [] if neighbours is None else [str(neighbours)]
    environment = os.environ | {"RAYON_NUM_THREADS": str(threads)}
    run = subprocess.run(command, check=True, capture_output=True, env=environment)
    found = json.loads(run.stdout)
    return found["seconds"], found["dimension"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", type=Path, default="target/release/examples/two_nn")
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--intrinsic", type=int, default=20)
    parser.add_argument("--neighbours", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    cloud = points(arguments.points, arguments.dim, arguments.intrinsic)
    neighbours, threads = arguments.neighbours, arguments.threads
    # What is compiled at its first use is compiled now.
    theirs(cloud[: (neighbours or 0) + 200], neighbours, threads)
    ratios = []
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "points.safetensors"
        save_file({"points": cloud}, file)
        for _ in range(arguments.repeats):
            their_time, their_dimension = theirs(cloud, neighbours, threads)
            our_time, our_dimension = ours(arguments.binary, file, neighbours, threads)
            difference = abs(their_dimension - our_dimension)
            assert difference < AGREEMENT, f"dimensions differ by {difference:.1e}"
            ratios.append(their_time / our_time)
            times = f"{their_time:.2f} s / {our_time:.2f} s = {ratios[-1]:.1f}"
            agreement = f"dimension {our_dimension:.4f}, apart by {difference:.1e}"
            print(f"{len(cloud)} x {cloud.shape[1]}: {times}; {agreement}")
    print(f"their time / ours: {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()

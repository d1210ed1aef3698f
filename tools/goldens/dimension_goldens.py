"""Makes tests/goldens/dimension.json: scikit-dimension's TwoNN on small sets of points,
and around each point.

Usage: python tools/goldens/dimension_goldens.py
"""

import json
from typing import Any, TypeAlias

import numpy as np
import skdim
from numpy.typing import NDArray
from places import CAUSAL

Numbers: TypeAlias = NDArray[np.float64]
FITS = [
    ("linear", 0.1),
    ("linear", 0.37),
    ("likelihood", 0.0),
    ("likelihood", 0.1),
]
NEIGHBOURS = [8, 20]


def clouds(generator: np.random.Generator) -> dict[str, Numbers]:
    """Points that are f32 numbers, as [point, dim]."""
    sphere = generator.normal(size=(60, 3))
    sphere /= np.linalg.norm(sphere, axis=1, keepdims=True)
    turn, width = 1.5 * np.pi * (1 + 2 * generator.random(80)), generator.random(80)
    roll = np.stack([turn * np.cos(turn), 21 * width, turn * np.sin(turn)], axis=1)
    plane = generator.normal(size=(70, 5)) @ generator.normal(size=(5, 12))
    # More than 25 dimensions: there scikit-dimension searches in another way.
    wide = generator.normal(size=(50, 40)) * np.geomspace(100, 0.01, 40)
    # As activations are: far from the origin, with one very large direction.
    far = generator.normal(size=(60, 30)) + 300 * np.eye(30)[3] + 50
    copies = np.concatenate([sphere, sphere[[3, 3, 17]], -sphere[:2], sphere[:1]])
    found = {
        "sphere": sphere,
        "roll": roll,
        "plane": plane,
        "wide": wide,
        "far": far,
        "copies": copies,
    }
    return {
        name: points.astype(np.float32).astype(np.float64)
        for name, points in found.items()
    }


def estimator(fit: str, discarded: float) -> Any:
    method = {"linear": "linear", "likelihood": "mle"}[fit]
    return skdim.id.TwoNN(discard_fraction=discarded, method=method)


def case(name: str, points: Numbers) -> dict[str, Any]:
    # Ours keeps one of equal points; scikit-dimension leaves out all of them.
    _, kept = np.unique(points, axis=0, return_index=True)
    different = points[np.sort(kept)]
    fits = [
        {
            "fit": fit,
            "discarded": discarded,
            "all": float(estimator(fit, discarded).fit(different).dimension_),
            "local": {
                str(neighbours): estimator(fit, discarded)
                .fit_pw(different, n_neighbors=neighbours)
                .dimension_pw_.tolist()
                for neighbours in NEIGHBOURS
            },
        }
        for fit, discarded in FITS
    ]
    return {
        "name": name,
        "points": points.tolist(),
        "kept": np.sort(kept).tolist(),
        "fits": fits,
    }


def main() -> None:
    generator = np.random.default_rng(27)
    cases = [case(name, points) for name, points in clouds(generator).items()]
    path = CAUSAL / "dimension.json"
    path.write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()

"""Makes tests/goldens/probes.json: scikit-learn's logistic and ridge regression on
random features of very different scales.

Usage: python tools/goldens/probe_goldens.py
"""

import json
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from places import CAUSAL
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

Numbers: TypeAlias = NDArray[np.float64]
ROWS = 40
FEATURES = 5


def in_activations(
    coefficients: Numbers, intercepts: Numbers, scaler: StandardScaler | None
) -> dict[str, Any]:
    """Weights of scaled features as weights of the features themselves."""
    coefficients = np.atleast_2d(coefficients)
    intercepts = np.broadcast_to(np.atleast_1d(intercepts), len(coefficients)).copy()
    if scaler is not None:
        coefficients = coefficients / scaler.scale_
        intercepts -= coefficients @ scaler.mean_
    return {"directions": coefficients.tolist(), "biases": intercepts.tolist()}


def case(
    features: Numbers, labels: Numbers, classes: int, l2: float, scale: bool, bias: bool
) -> dict[str, Any]:
    scaler = StandardScaler().fit(features) if scale else None
    scaled = features if scaler is None else scaler.transform(features)
    made: dict[str, Any] = {
        "kind": "logistic" if classes else "ridge",
        "l2": l2,
        "standardised": scale,
        "intercept": bias,
        "labels": labels.tolist(),
    }
    if classes:
        model = LogisticRegression(
            C=1 / l2, fit_intercept=bias, tol=1e-12, max_iter=100_000
        ).fit(scaled, labels)
        made["probabilities"] = model.predict_proba(scaled).tolist()
        if classes > 2:
            made["auc"] = roc_auc_score(
                labels, model.predict_proba(scaled), multi_class="ovr"
            )
        return made | in_activations(model.coef_, model.intercept_, scaler)
    regression = Ridge(alpha=l2, fit_intercept=bias, solver="cholesky").fit(
        scaled, labels
    )
    made["predictions"] = regression.predict(scaled).tolist()
    return made | in_activations(regression.coef_, regression.intercept_, scaler)


def main() -> None:
    generator = np.random.default_rng(26)
    scales = np.array([1.0, 20.0, 0.1, 3.0, 1.0])
    features = generator.normal(size=(ROWS, FEATURES)) * scales + [0, 5, 1, -2, 0]
    noise = generator.normal(size=ROWS)
    number = features @ (1 / scales) + noise
    two = (number > np.median(number)).astype(int)
    three = np.digitize(number, np.quantile(number, [0.3, 0.7]))
    cases = [
        case(features, labels, classes, l2, scale, bias)
        for labels, classes in ((two, 2), (three, 3), (number, 0))
        for l2 in (0.1, 1.0, 30.0)
        for scale in (False, True)
        for bias in (False, True)
    ]
    goldens = {"features": features.tolist(), "cases": cases}
    path = CAUSAL / "probes.json"
    path.write_text(json.dumps(goldens) + "\n")


if __name__ == "__main__":
    main()

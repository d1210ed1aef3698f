"""Makes tests/goldens/statistics.json: intervals, tests, corrections, rankings and
correlations by scipy, statsmodels and scikit-learn.

Usage: python tools/goldens/statistics_goldens.py
"""

import json
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from places import CAUSAL
from scipy import stats
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
)
from statsmodels.stats.multitest import multipletests

Numbers: TypeAlias = NDArray[np.float64]
RESAMPLES = 199


def bootstraps(generator: np.random.Generator) -> list[dict[str, Any]]:
    """Intervals of the mean and of a correlation, with the resamples that gave them."""
    made = []
    for size, skew in ((2, 0.0), (7, 0.0), (12, 1.0), (30, 2.0)):
        values = generator.normal(size=size)
        values = np.exp(skew * values) if skew else values
        rows = generator.integers(0, size, size=(RESAMPLES, size))
        for confidence in (0.95, 0.8):
            case: dict[str, Any] = {
                "values": values.tolist(),
                "rows": rows.tolist(),
                "confidence": confidence,
            }
            for method in ("percentile", "BCa"):
                found = stats.bootstrap(
                    (values,),
                    np.mean,
                    n_resamples=0,
                    bootstrap_result=Resamples(values[rows].mean(axis=1)),
                    confidence_level=confidence,
                    method=method,
                ).confidence_interval
                case[method.lower()] = [found.low, found.high]
            made.append(case)
    return made


class Resamples:
    """These resampled means, as scipy takes the result of an earlier bootstrap."""

    def __init__(self, means: Numbers) -> None:
        self.bootstrap_distribution = means


def seeds(generator: np.random.Generator) -> list[dict[str, Any]]:
    made = []
    for size in (2, 3, 5, 20):
        values = generator.normal(loc=3, size=size)
        for confidence in (0.95, 0.5, 0.999):
            low, high = stats.t.interval(
                confidence, size - 1, loc=values.mean(), scale=stats.sem(values)
            )
            made.append(
                {
                    "values": values.tolist(),
                    "confidence": confidence,
                    "mean": values.mean(),
                    "deviation": values.std(ddof=1),
                    "interval": [low, high],
                }
            )
    return made


def difference(a: Numbers, b: Numbers, axis: int) -> Numbers:
    return np.asarray(a.mean(axis=axis) - b.mean(axis=axis))


def permutations(generator: np.random.Generator) -> list[dict[str, Any]]:
    """Exact tests: every flip of signs, every division into two samples."""
    made: list[dict[str, Any]] = []
    for a_size, b_size, shift, rounded in (
        (6, 6, 0.8, False),
        (9, 4, 0.0, False),
        (7, 7, 0.5, True),
        (3, 5, 2.0, True),
    ):
        a = generator.normal(loc=shift, size=a_size)
        b = generator.normal(size=b_size)
        if rounded:  # many ties
            a, b = a.round(), b.round()
        case: dict[str, Any] = {"a": a.tolist(), "b": b.tolist(), "p": {}}
        for kind, alternative in (
            (kind, alternative)
            for kind in ("sign_flip", "two_sample")
            for alternative in ("two-sided", "less", "greater")
        ):
            if kind == "sign_flip":
                found = stats.permutation_test(
                    (a,),
                    lambda x, axis: x.mean(axis=axis),
                    permutation_type="samples",
                    vectorized=True,
                    n_resamples=np.inf,
                    alternative=alternative,
                )
            else:
                found = stats.permutation_test(
                    (a, b),
                    difference,
                    permutation_type="independent",
                    vectorized=True,
                    n_resamples=np.inf,
                    alternative=alternative,
                )
            case["p"][f"{kind} {alternative}"] = float(found.pvalue)
        made.append(case)
    return made


def corrections(generator: np.random.Generator) -> list[dict[str, Any]]:
    made = []
    for size in (1, 5, 40):
        p = generator.uniform(size=size) ** 3
        if size > 2:
            p[1] = p[0]
        made.append(
            {
                "p": p.tolist(),
                "holm": multipletests(p, method="holm")[1].tolist(),
                "benjamini_hochberg": multipletests(p, method="fdr_bh")[1].tolist(),
            }
        )
    return made


def rankings(generator: np.random.Generator) -> list[dict[str, Any]]:
    made = []
    for size, rounded in ((4, False), (25, False), (60, True)):
        truth = generator.uniform(size=size) < 0.4
        truth[:2] = [True, False]
        scores = generator.normal(size=size) + truth
        scores = scores.round(1) if rounded else scores
        precision, recall, thresholds = precision_recall_curve(truth, scores)
        made.append(
            {
                "scores": scores.tolist(),
                "truth": truth.tolist(),
                "auc": roc_auc_score(truth, scores),
                "average_precision": average_precision_score(truth, scores),
                # From the strictest threshold on, without scikit-learn's end point.
                "thresholds": thresholds[::-1].tolist(),
                "precision": precision[:-1][::-1].tolist(),
                "recall": recall[:-1][::-1].tolist(),
            }
        )
    return made


def correlations(generator: np.random.Generator) -> list[dict[str, Any]]:
    made = []
    for size, rounded in ((3, False), (20, False), (50, True)):
        a = generator.normal(size=size)
        b = a + generator.normal(size=size)
        if rounded:
            a, b = a.round(), b.round()
        made.append(
            {
                "a": a.tolist(),
                "b": b.tolist(),
                "pearson": stats.pearsonr(a, b).statistic,
                "spearman": stats.spearmanr(a, b).statistic,
            }
        )
    return made


def main() -> None:
    generator = np.random.default_rng(25)
    goldens = {
        "bootstraps": bootstraps(generator),
        "seeds": seeds(generator),
        "permutations": permutations(generator),
        "corrections": corrections(generator),
        "rankings": rankings(generator),
        "correlations": correlations(generator),
    }
    path = CAUSAL / "statistics.json"
    path.write_text(json.dumps(goldens) + "\n")


if __name__ == "__main__":
    main()

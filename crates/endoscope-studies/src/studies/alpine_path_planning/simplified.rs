//! The paper's simplified model (section 4.1): attention rests on the target, embeddings are the identity, so that the
//! logits after node `i` on the way to `j` are `W_M[i] + W_V[j]`. With `N_ijk` how often `k` comes next there, the
//! gradient of the loss is `dl/dW_M[i,k] = sum_j (N_ij softmax(W_M[i] + W_V[j])_k - N_ijk)`, and that of `W_V[j,k]` the
//! same with the sum over `i`. So (Theorem 3) it is always zero where `i` was never seen, always positive where it was
//! but never with `k` next, and negative as the weight goes to minus infinity where it was: the weights of what was not
//! seen only fall, whatever is true.

use candle_core::{D, DType, Device, Tensor, Var};
use endoscope_organisms::tasks::path_finding::PathFinding;
use endoscope_train::generator;
use rand::RngExt;
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::error::Result;

/// A weight that stands for minus infinity: its exponential vanishes beside the others'.
const VERY_LOW: f64 = -60.;

/// How well formula and theorem describe the model, on one graph.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Exactness {
    /// The largest difference of the formula from the gradient by automatic differentiation, over the largest entry of
    /// that.
    pub difference: f64,
    /// The same for the counts of a graph drawn anew.
    pub difference_elsewhere: f64,
    /// The share of weights whose gradient has the sign that the theorem says.
    pub obeyed: f64,
    /// The same by the cases of a graph drawn anew.
    pub obeyed_elsewhere: f64,
}

/// Both checks on the graph of a seed.
pub(super) fn exactness(nodes: usize, seed: u64) -> Result<Exactness> {
    let (paths, elsewhere) = (paths(nodes, seed)?, paths(nodes, seed.wrapping_add(1 << 32))?);
    let (counts, other) = (Counts::of(nodes, &paths), Counts::of(nodes, &elsewhere));
    let weights = Weights::drawn(nodes, seed);
    let exact = weights.differentiated(&paths)?;
    let gradient = weights.gradient(&counts);
    Ok(Exactness {
        difference: difference(&gradient, &exact),
        difference_elsewhere: difference(&weights.gradient(&other), &exact),
        obeyed: weights.obeyed(&counts, &counts),
        obeyed_elsewhere: weights.obeyed(&counts, &other),
    })
}

/// The training paths of a small graph, each with its target.
fn paths(nodes: usize, seed: u64) -> Result<Vec<(usize, Vec<usize>)>> {
    let mut keys = Table::new();
    keys.insert("nodes".into(), (nodes as i64).into());
    keys.insert("edge_probability".into(), 0.2.into());
    keys.insert("walks".into(), 3.into());
    keys.insert("seed".into(), ((seed & i64::MAX as u64) as i64).into());
    let task = PathFinding::from_parameters(&keys)?;
    Ok((0..task.training_rows()).filter_map(|number| task.training_row(number)).collect())
}

/// `N_ijk`: how often `k` (or, as the last, the end) comes after `i` on the way to `j`.
struct Counts {
    nodes: usize,
    of: Vec<f64>,
}

impl Counts {
    fn of(nodes: usize, paths: &[(usize, Vec<usize>)]) -> Self {
        let mut of = vec![0.; nodes * nodes * (nodes + 1)];
        steps(nodes, paths).for_each(|[node, target, next]| of[(node * nodes + target) * (nodes + 1) + next] += 1.);
        Self { nodes, of }
    }

    /// The counts of what comes next, after a node on the way to a target.
    fn next(&self, node: usize, target: usize) -> &[f64] {
        &self.of[(node * self.nodes + target) * (self.nodes + 1)..][..self.nodes + 1]
    }

    /// The sums over the other index: of `W_M`'s row `row` over targets, of `W_V`'s over nodes.
    fn of_row(&self, which: usize, row: usize) -> Vec<f64> {
        let add = |mut sums: Vec<f64>, other: usize| {
            let next = if which == 0 { self.next(row, other) } else { self.next(other, row) };
            sums.iter_mut().zip(next).for_each(|(sum, count)| *sum += count);
            sums
        };
        (0..self.nodes).fold(vec![0.; self.nodes + 1], add)
    }
}

/// Node, target and what comes next, of every step of every path; `nodes` stands for the end.
fn steps(nodes: usize, paths: &[(usize, Vec<usize>)]) -> impl Iterator<Item = [usize; 3]> + '_ {
    paths.iter().flat_map(move |(target, path)| {
        (0..path.len()).map(move |at| [path[at], *target, path.get(at + 1).copied().unwrap_or(nodes)])
    })
}

/// `W_M` and `W_V`, each `[nodes, nodes + 1]`.
struct Weights {
    nodes: usize,
    of: [Vec<f64>; 2],
}

impl Weights {
    fn drawn(nodes: usize, seed: u64) -> Self {
        let of = [0, 1].map(|which| {
            let mut random = generator(seed, (1 << 42) + which);
            (0..nodes * (nodes + 1)).map(|_| random.random_range(-3f64..3.)).collect()
        });
        Self { nodes, of }
    }

    fn row(&self, which: usize, row: usize) -> &[f64] {
        &self.of[which][row * (self.nodes + 1)..][..self.nodes + 1]
    }

    fn probabilities(&self, node: usize, target: usize) -> Vec<f64> {
        let logits: Vec<f64> = self.row(0, node).iter().zip(self.row(1, target)).map(|(m, v)| m + v).collect();
        let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / total).collect()
    }

    /// The gradient by the paper's formula, of `W_M` and of `W_V`.
    fn gradient(&self, counts: &Counts) -> [Vec<f64>; 2] {
        let mut gradient = self.of.each_ref().map(|weights| vec![0.; weights.len()]);
        for (node, target) in (0..self.nodes).flat_map(|node| (0..self.nodes).map(move |target| (node, target))) {
            let next = counts.next(node, target);
            let all: f64 = next.iter().sum();
            if all == 0. {
                continue;
            }
            for (at, (probability, count)) in self.probabilities(node, target).iter().zip(next).enumerate() {
                let slope = all * probability - count;
                gradient[0][node * (self.nodes + 1) + at] += slope;
                gradient[1][target * (self.nodes + 1) + at] += slope;
            }
        }
        gradient
    }

    /// The gradient of the sum of the cross entropies of all steps, by automatic differentiation.
    fn differentiated(&self, paths: &[(usize, Vec<usize>)]) -> Result<[Vec<f64>; 2]> {
        let shape = (self.nodes, self.nodes + 1);
        let [m, v] = [0, 1].map(|which| Var::from_slice(&self.of[which], shape, &Device::Cpu));
        let (m, v) = (m?, v?);
        let column = |which: usize| {
            let indices: Vec<u32> = steps(self.nodes, paths).map(|step| step[which] as u32).collect();
            Tensor::new(indices, &Device::Cpu)
        };
        let logits = (m.index_select(&column(0)?, 0)? + v.index_select(&column(1)?, 0)?)?;
        let chosen = logits.gather(&column(2)?.unsqueeze(1)?, 1)?.squeeze(1)?;
        let gradients = (logits.log_sum_exp(D::Minus1)? - chosen)?.sum_all()?.backward()?;
        let of = |variable: &Var| -> Result<Vec<f64>> {
            match gradients.get(variable.as_tensor()) {
                Some(gradient) => Ok(gradient.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?),
                None => Ok(vec![0.; self.nodes * (self.nodes + 1)]),
            }
        };
        Ok([of(&m)?, of(&v)?])
    }

    /// The share of all weights whose gradient, under `counts`, has the sign that the theorem says where `cases` decide
    /// which of the three cases it is.
    fn obeyed(&self, counts: &Counts, cases: &Counts) -> f64 {
        let gradient = self.gradient(counts);
        let (mut obeyed, mut all) = (0, 0);
        for (which, row) in [0, 1].into_iter().flat_map(|which| (0..self.nodes).map(move |row| (which, row))) {
            let seen = cases.of_row(which, row);
            let any = seen.iter().any(|&count| count > 0.);
            for (at, &count) in seen.iter().enumerate() {
                let cell = row * (self.nodes + 1) + at;
                let slope = gradient[which][cell];
                all += 1;
                obeyed += usize::from(match (any, count > 0.) {
                    (false, _) => slope == 0.,
                    (true, false) => slope > 0.,
                    (true, true) => self.slope_when_very_low(counts, which, row, at) < 0.,
                });
            }
        }
        f64::from(obeyed as u32) / f64::from(all)
    }

    /// One entry of the gradient, that weight put very low.
    fn slope_when_very_low(&self, counts: &Counts, which: usize, row: usize, at: usize) -> f64 {
        let slope = |other: usize| {
            let (node, target) = if which == 0 { (row, other) } else { (other, row) };
            let next = counts.next(node, target);
            let all: f64 = next.iter().sum();
            if all == 0. {
                return 0.;
            }
            let factor = (VERY_LOW - self.row(which, row)[at]).exp();
            let before = self.probabilities(node, target)[at];
            all * before * factor / (1. - before + before * factor) - next[at]
        };
        (0..self.nodes).map(slope).sum()
    }
}

fn difference(found: &[Vec<f64>; 2], exact: &[Vec<f64>; 2]) -> f64 {
    let largest = exact.iter().flatten().fold(0f64, |largest, value| largest.max(value.abs()));
    let pairs = found.iter().flatten().zip(exact.iter().flatten());
    pairs.fold(0f64, |most, (found, exact)| most.max((found - exact).abs())) / largest
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The loss as the paper writes it, step by step.
    fn loss(weights: &Weights, paths: &[(usize, Vec<usize>)]) -> f64 {
        steps(weights.nodes, paths).map(|[node, target, next]| -weights.probabilities(node, target)[next].ln()).sum()
    }

    #[test]
    fn the_formula_is_that_of_finite_steps() {
        let paths = paths(12, 3).unwrap();
        let mut weights = Weights::drawn(12, 3);
        let gradient = weights.gradient(&Counts::of(12, &paths));
        for (which, cell) in [0, 1].into_iter().flat_map(|which| (0..156).map(move |cell| (which, cell))) {
            let mut moved = |by: f64| {
                weights.of[which][cell] += by;
                let loss = loss(&weights, &paths);
                weights.of[which][cell] -= by;
                loss
            };
            let slope = (moved(1e-4) - moved(-1e-4)) / 2e-4;
            assert!(
                (slope - gradient[which][cell]).abs() < 1e-5,
                "{which} {cell}: {slope}, not {}",
                gradient[which][cell]
            );
        }
    }

    #[test]
    fn formula_and_theorem_hold_and_not_elsewhere() {
        for seed in 1..4 {
            let found = exactness(12, seed).unwrap();
            assert!(found.difference < 1e-12 && found.difference_elsewhere > 0.01, "{found:?}");
            assert!(found.obeyed == 1. && found.obeyed_elsewhere < 0.95, "{found:?}");
        }
    }

    #[test]
    fn a_wrong_sign_is_seen() {
        let paths = paths(12, 3).unwrap();
        let counts = Counts::of(12, &paths);
        let weights = Weights::drawn(12, 3);
        // Counts of one more step: the gradient of a weight that was never seen next is no longer positive.
        let mut more = Counts::of(12, &paths);
        more.of.iter_mut().for_each(|count| *count += 1.);
        assert_eq!(weights.obeyed(&counts, &counts), 1.);
        assert!(weights.obeyed(&more, &counts) < 0.9);
    }
}

//! Edges: targets traced back through the linear network to what each source writes.

use candle_core::Tensor;
use endoscope_net::{Network, Run};

use super::frozen::{Frozen, last_logits};
use super::graph::Feature;
use super::transcoders::Transcoders;
use crate::error::Result;
use crate::matrix::Matrix;

/// What edges lead to.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target {
    /// The activation of a feature that stays active, without its bias.
    Encoded { transcoder: usize, position: usize, feature: usize },
    /// A token's logit at the last position, less the mean logit.
    Logit(u32),
}

impl From<Feature> for Target {
    fn from(Feature { transcoder, position, feature, .. }: Feature) -> Self {
        Self::Encoded { transcoder, position, feature }
    }
}

impl Target {
    /// Its value in one row of a run.
    pub fn value(self, transcoders: &Transcoders, run: &Run, row: usize) -> Result<Tensor> {
        match self {
            Self::Encoded { transcoder, position, feature } => {
                let layer = &transcoders.layers[transcoder];
                let x = run.captured.get(&layer.input)?.get(row)?.get(position)?.flatten_all()?;
                let gain = f64::from(layer.transcoder.gain(feature)?);
                let direction = layer.transcoder.weights().encoder.row(feature);
                let direction = Tensor::from_slice(direction, direction.len(), x.device())?;
                Ok(((x * direction)?.sum_all()? * gain)?)
            }
            Self::Logit(token) => {
                let logits = last_logits(run, row)?;
                Ok((logits.get(token as usize)? - logits.mean_all()?)?)
            }
        }
    }
}

/// Finds edges, of as many targets at once as its run has rows.
pub(super) struct Tracer<'a> {
    transcoders: &'a Transcoders,
    frozen: &'a Frozen,
    features: &'a [Feature],
    run: Run,
    rows: usize,
}

/// The gradients of targets, one a row, at the sites that sources write to.
struct Gradients {
    /// For each transcoder's layer `[rows · positions, width]`; none where no target depends on it.
    outputs: Vec<Option<Matrix>>,
    /// `[rows · positions, d_model]`.
    embedding: Matrix,
}

impl<'a> Tracer<'a> {
    /// Runs `rows` copies of the prompt, from which all targets are traced.
    pub fn new(
        network: &dyn Network,
        transcoders: &'a Transcoders,
        frozen: &'a Frozen,
        features: &'a [Feature],
        rows: usize,
    ) -> Result<Self> {
        let run = frozen.pieces(network, transcoders, rows)?;
        Ok(Self { transcoders, frozen, features, run, rows })
    }

    /// How many targets are traced at once.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// For each target what each source adds: features, errors (layer by layer), tokens.
    pub fn edges(&self, targets: &[Target]) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::with_capacity(targets.len());
        for targets in targets.chunks(self.rows) {
            let gradients = self.gradients(targets)?;
            all.extend(self.products(&gradients, targets.len())?);
        }
        Ok(all)
    }

    /// Goes back piece by piece of the network. The rows do not know of each other: the gradient of their sum is each one's.
    ///
    /// A skip is no part of the network that was run: what it reads has the gradient of what it writes, through its weights.
    fn gradients(&self, targets: &[Target]) -> Result<Gradients> {
        let captured = |site: &str| self.run.captured.get(site);
        let layers = &self.transcoders.layers;
        let last = layers.len() - 1;
        let mut outputs = vec![None; layers.len()];
        let mut entering: Option<Tensor> = None;
        for (number, layer) in layers.iter().enumerate().rev() {
            let mut values = Vec::new();
            for (row, target) in targets.iter().enumerate() {
                let piece = if let Target::Encoded { transcoder, .. } = *target { transcoder } else { last };
                if piece == number {
                    values.push(target.value(self.transcoders, &self.run, row)?);
                }
            }
            if let (Some(gradient), Some(exit)) = (&entering, self.frozen.exits.get(number)) {
                values.push((captured(exit)? * gradient)?.sum_all()?);
            }
            if values.is_empty() {
                continue;
            }
            let gradients = self.run.gradients(&Tensor::stack(&values, 0)?.sum_all()?)?;
            let (written, entry) = (gradients.get(&layer.output)?, &self.frozen.entries[number]);
            let mut below = gradients.get(entry)?.clone();
            if let Some(skip) = &layer.skip {
                let read = captured(&layer.input)?;
                let through = written.contiguous()?.reshape(((), layer.width))?.matmul(skip)?.reshape(read.shape())?;
                let gradients = self.run.gradients(&(read * through)?.sum_all()?)?;
                below = (below + gradients.get(entry)?)?;
            }
            outputs[number] = Some(Matrix::from_tensor(written)?);
            entering = Some(below);
        }
        let embedding = match &entering {
            Some(gradient) => Matrix::from_tensor(gradient)?,
            None => Matrix::zeros(self.rows * self.frozen.embedded.rows(), self.frozen.embedded.columns()),
        };
        Ok(Gradients { outputs, embedding })
    }

    /// The gradients of the first `rows` rows along what each source writes.
    fn products(&self, Gradients { outputs, embedding }: &Gradients, rows: usize) -> Result<Vec<Vec<f32>>> {
        let positions = self.frozen.tokens.len();
        let product = |gradient: &Matrix, row: usize, position: usize, vector: &[f32]| -> f32 {
            gradient.row(row * positions + position).iter().zip(vector).map(|(a, b)| a * b).sum()
        };
        let sources = self.features.len() + (outputs.len() + 1) * positions;
        let mut edges = vec![Vec::with_capacity(sources); rows];
        for &Feature { transcoder, position, feature, activation, .. } in self.features {
            let layer = &self.transcoders.layers[transcoder];
            let direction = layer.transcoder.direction(feature)?;
            for (row, edges) in edges.iter_mut().enumerate() {
                let written = outputs[transcoder..].iter().zip(direction.chunks_exact(layer.width));
                let parts = written.filter_map(|(gradient, vector)| Some((gradient.as_ref()?, vector)));
                edges.push(activation * parts.map(|(to, vector)| product(to, row, position, vector)).sum::<f32>());
            }
        }
        for (row, edges) in edges.iter_mut().enumerate() {
            for (errors, gradient) in self.frozen.errors.iter().zip(outputs) {
                edges.extend(errors.iter().enumerate().map(|(position, error)| match gradient {
                    Some(gradient) => product(gradient, row, position, error),
                    None => 0.,
                }));
            }
            let embedded = self.frozen.embedded.iter().enumerate();
            edges.extend(embedded.map(|(position, vector)| product(embedding, row, position, vector)));
        }
        Ok(edges)
    }
}

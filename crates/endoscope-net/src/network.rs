//! Networks: what runs a plan, and what a run gives back.

use candle_core::{Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::plan::Plan;
use crate::site::Sites;

/// What a network reads.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Inputs {
    /// Rows of token ids.
    Tokens(TokenRows),
}

impl Inputs {
    /// Rows of token ids of equal length, at least one of at least one token.
    pub fn tokens(rows: Vec<Vec<u32>>) -> Result<Self> {
        TokenRows::new(rows).map(Self::Tokens)
    }
}

/// Rows of token ids, all of one length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRows {
    ids: Vec<Vec<u32>>,
}

impl TokenRows {
    /// Checks that the rows are of equal length, at least one of at least one token.
    pub fn new(ids: Vec<Vec<u32>>) -> Result<Self> {
        let Some(first) = ids.first() else { return Err(Error::Inputs("there is no prompt".into())) };
        if first.is_empty() {
            return Err(Error::Inputs("a prompt has no tokens at all".into()));
        }
        if let Some((row, other)) = ids.iter().enumerate().find(|(_, row)| row.len() != first.len()) {
            let message = format!(
                "prompts of one batch must have equal length: row 0 has {} tokens, row {row} has {}",
                first.len(),
                other.len()
            );
            return Err(Error::Inputs(message));
        }
        Ok(Self { ids })
    }

    /// The ids of each row.
    pub fn ids(&self) -> &[Vec<u32>] {
        &self.ids
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// How many tokens each row has.
    pub fn length(&self) -> usize {
        self.ids[0].len()
    }

    /// `[rows, length]` of u32.
    pub fn tensor(&self, device: &Device) -> Result<Tensor> {
        Ok(Tensor::from_vec(self.ids.concat(), (self.rows(), self.length()), device)?)
    }
}

/// A network that can be looked into.
pub trait Network {
    /// All its sites, known before any run.
    fn sites(&self) -> &Sites;
    /// Runs `inputs` under `plan`.
    fn run(&self, inputs: &Inputs, plan: &Plan) -> Result<Run>;
}

/// A network that can run many plans on one prompt with no more work than their edits reach: what sweeps need.
pub trait Resume: Network {
    /// Runs one row of `inputs` under `plan` and keeps what branches start from.
    ///
    /// A site that branches will edit is best captured whole by `plan`: then edits that change nothing are found, and
    /// branches may start after them. What is not captured costs more work, and changes no result.
    fn base(&self, inputs: &Inputs, plan: &Plan) -> Result<Base>;

    /// What each plan of [`Resume::branches`] would cost, without running it.
    fn costs(&self, base: &Base, plans: &[Plan]) -> Result<Vec<Cost>>;

    /// Runs each plan on the base's prompt: entry `i` is what `run(base.inputs, plans[i])` gives.
    fn branches(&self, base: &Base, plans: &[Plan]) -> Result<Vec<Run>>;
}

/// A run of one row that branches can start from.
pub struct Base {
    /// What was run.
    pub inputs: Inputs,
    /// The outputs and captures of that run.
    pub run: Run,
    /// What the network itself keeps; only it knows the type.
    pub state: Box<dyn std::any::Any + Send + Sync>,
}

impl std::fmt::Debug for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Base").field("inputs", &self.inputs).field("run", &self.run).finish_non_exhaustive()
    }
}

/// How much a run computed, in rows: one position of one prompt passed through one part of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Work {
    /// Rows passed through attention, summed over layers.
    pub attention: u64,
    /// Rows passed through an MLP, summed over layers.
    pub mlp: u64,
    /// Rows passed through the unembedding.
    pub unembedding: u64,
}

impl Work {
    /// All rows.
    pub fn rows(&self) -> u64 {
        self.attention + self.mlp + self.unembedding
    }
}

impl std::ops::AddAssign for Work {
    fn add_assign(&mut self, other: Self) {
        self.attention += other.attention;
        self.mlp += other.mlp;
        self.unembedding += other.unembedding;
    }
}

/// What a branch will cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cost {
    /// The rows that it computes; none at all if its edits change nothing.
    pub work: Work,
    /// Bytes of activations that are alive at once on its behalf; those of branches that run together add up.
    pub bytes: u64,
}

/// What a run gives back.
#[derive(Debug)]
pub struct Run {
    /// The outputs (logits `[batch, position, vocabulary]`) at the positions and columns that the plan reads.
    pub outputs: Tensor,
    /// What the plan captured.
    pub captured: Captured,
    /// How much was computed.
    pub work: Work,
    pub(crate) probes: Vec<(String, Probe)>,
}

/// A zero added at a site: the gradient with respect to it is the gradient with respect to the site.
#[derive(Debug)]
pub(crate) struct Probe {
    pub zero: Var,
    pub grid: crate::selection::Grid,
}

impl Run {
    /// The gradients of `metric` (one number computed from this run) with respect to every capture that asked for it.
    ///
    /// A site that the metric does not depend on has gradient zero.
    pub fn gradients(&self, metric: &Tensor) -> Result<Captured> {
        let gradients = metric.backward()?;
        let mut captured = Captured::default();
        for (site, probe) in &self.probes {
            let gradient = match gradients.get(probe.zero.as_tensor()) {
                Some(gradient) => gradient.clone(),
                None => probe.zero.zeros_like()?,
            };
            captured.insert(site.clone(), crate::canvas::gather(&gradient.detach(), &probe.grid)?);
        }
        Ok(captured)
    }
}

/// Captured activations by full site name, in the order of the mathematics.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    entries: Vec<(String, Tensor)>,
}

impl Captured {
    /// Adds the activation of a site.
    pub fn insert(&mut self, site: String, activation: Tensor) {
        self.entries.push((site, activation));
    }

    /// The activation of a site by its full name.
    pub fn get(&self, site: &str) -> Result<&Tensor> {
        let entry = self.entries.iter().find(|(name, _)| name == site);
        entry.map(|(_, tensor)| tensor).ok_or_else(|| Error::NotCaptured(site.to_string()))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.entries.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

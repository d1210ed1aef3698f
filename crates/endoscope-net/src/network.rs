//! Networks: what runs a plan, and what a run gives back.

use candle_core::{Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::frame::Frame;
use crate::joining::Joining;
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

    /// Rows of token ids that may differ in length; see [`TokenRows::padded`].
    pub fn padded(rows: Vec<Vec<u32>>, padding: Padding) -> Result<Self> {
        TokenRows::padded(rows, padding).map(Self::Tokens)
    }
}

/// Where the shorter rows of a batch are filled up, in what a run gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Padding {
    /// Before their first position: last positions lie beside each other.
    Left,
    /// After their last position: first positions lie beside each other.
    #[default]
    Right,
}

/// Rows of token ids.
///
/// Rows may differ in length. No padding is ever computed: each row gives what it gives alone, and a plan counts
/// positions in each row by itself (`0` is its own first token, `-1` its own last). Captures and outputs of whole rows are
/// filled with zeros to the length of the longest, at the side that [`Padding`] says; sources of patches are read the same
/// way. [`TokenRows::mask`] says which cells are real.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRows {
    ids: Vec<Vec<u32>>,
    padding: Padding,
}

impl TokenRows {
    /// Checks that the rows are of equal length, at least one of at least one token.
    pub fn new(ids: Vec<Vec<u32>>) -> Result<Self> {
        let rows = Self::padded(ids, Padding::default())?;
        match rows.ids.iter().enumerate().find(|(_, ids)| ids.len() != rows.ids[0].len()) {
            None => Ok(rows),
            Some((row, other)) => Err(Error::Inputs(format!(
                "rows of equal length are needed here: row 0 has {} tokens, row {row} has {}",
                rows.ids[0].len(),
                other.len()
            ))),
        }
    }

    /// Checks that there is at least one row, and that each has at least one token.
    pub fn padded(ids: Vec<Vec<u32>>, padding: Padding) -> Result<Self> {
        if ids.is_empty() {
            return Err(Error::Inputs("there is no prompt".into()));
        }
        match ids.iter().position(Vec::is_empty) {
            Some(_) if ids.len() == 1 => Err(Error::Inputs("a prompt has no tokens at all".into())),
            Some(row) => Err(Error::Inputs(format!("row {row} has no tokens at all"))),
            None => Ok(Self { ids, padding }),
        }
    }

    /// Rows as a tokenizer of Hugging Face pads them: ids of equal length, and an attention mask that is 1 where a token
    /// is real. What is masked must lie on one side, the same for all rows.
    pub fn masked(ids: Vec<Vec<u32>>, mask: &[Vec<u8>]) -> Result<Self> {
        let shape = |rows: &[usize]| format!("{} rows of {rows:?}", rows.len());
        let (widths, masks): (Vec<usize>, Vec<usize>) =
            (ids.iter().map(Vec::len).collect(), mask.iter().map(Vec::len).collect());
        if widths != masks || widths.iter().any(|&width| width != widths[0]) {
            let (ids, mask) = (shape(&widths), shape(&masks));
            return Err(Error::Inputs(format!("ids ({ids} entries) and attention mask ({mask}) do not fit")));
        }
        let mut side: Option<(usize, Padding)> = None;
        let mut rows = Vec::with_capacity(ids.len());
        for (row, (ids, mask)) in ids.into_iter().zip(mask).enumerate() {
            if let Some(&other) = mask.iter().find(|&&entry| entry > 1) {
                return Err(Error::Inputs(format!("the attention mask of row {row} has the entry {other}; 0 or 1")));
            }
            let Some(first) = mask.iter().position(|&entry| entry == 1) else {
                return Err(Error::Inputs(format!("the attention mask leaves row {row} no token at all")));
            };
            let end = mask.iter().rposition(|&entry| entry == 1).map_or(first, |last| last + 1);
            if mask[first..end].contains(&0) {
                return Err(Error::Inputs(format!(
                    "the attention mask of row {row} has a hole; padding lies on one side"
                )));
            }
            let padding = match (first, mask.len() - end) {
                (0, 0) => None,
                (_, 0) => Some(Padding::Left),
                (0, _) => Some(Padding::Right),
                _ => return Err(Error::Inputs(format!("row {row} is padded on both sides"))),
            };
            if let Some(padding) = padding {
                let (known, before) = *side.get_or_insert((row, padding));
                if before != padding {
                    let reason = format!("rows {known} and {row} are padded on different sides");
                    return Err(Error::Inputs(reason));
                }
            }
            rows.push(ids[first..end].to_vec());
        }
        Self::padded(rows, side.map_or(Padding::default(), |(_, padding)| padding))
    }

    /// The ids of each row.
    pub fn ids(&self) -> &[Vec<u32>] {
        &self.ids
    }

    /// How many rows.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// How many tokens the longest row has.
    pub fn length(&self) -> usize {
        self.ids.iter().map(Vec::len).max().unwrap_or(0)
    }

    /// Whether rows differ in length. A network that cannot run such a batch must refuse it.
    pub fn is_ragged(&self) -> bool {
        self.ids.iter().any(|row| row.len() != self.ids[0].len())
    }

    /// Where shorter rows are filled up.
    pub fn padding(&self) -> Padding {
        self.padding
    }

    /// What a run of this batch computes: all rows at once where they are of one length, else each by itself.
    pub fn frames(&self) -> Vec<Frame> {
        match self.is_ragged() {
            false => vec![Frame::whole(self.rows(), self.length())],
            true => (0..self.rows()).map(|row| Frame::of_row(self, row)).collect(),
        }
    }

    /// `[rows, length]` of u32; cells that are no token hold `fill`.
    pub fn tensor(&self, fill: u32, device: &Device) -> Result<Tensor> {
        self.filled(self.ids.iter().cloned(), fill, device)
    }

    /// `[rows, length]` of u8: 1 where a token is, 0 where there is only padding.
    pub fn mask(&self, device: &Device) -> Result<Tensor> {
        self.filled(self.ids.iter().map(|row| vec![1u8; row.len()]), 0, device)
    }

    fn filled<T: candle_core::WithDType>(
        &self,
        rows: impl Iterator<Item = Vec<T>>,
        fill: T,
        device: &Device,
    ) -> Result<Tensor> {
        let length = self.length();
        let mut all = Vec::with_capacity(self.rows() * length);
        for row in rows {
            let missing = std::iter::repeat_n(fill, length - row.len());
            match self.padding {
                Padding::Left => all.extend(missing.chain(row)),
                Padding::Right => all.extend(row.into_iter().chain(missing)),
            }
        }
        Ok(Tensor::from_vec(all, (self.rows(), length), device)?)
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
    pub(crate) probes: Vec<Probes>,
}

/// The probes of a site: one, or one for each row of a batch whose rows differ in length.
#[derive(Debug)]
pub(crate) struct Probes {
    pub site: String,
    pub pieces: Vec<Probe>,
    pub joining: Joining,
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
        for Probes { site, pieces, joining } in &self.probes {
            let piece = |probe: &Probe| -> Result<Tensor> {
                let gradient = match gradients.get(probe.zero.as_tensor()) {
                    Some(gradient) => gradient.clone(),
                    None => probe.zero.zeros_like()?,
                };
                crate::canvas::gather(&gradient.detach(), &probe.grid)
            };
            captured.insert(site.clone(), joining.join(pieces.iter().map(piece).collect::<Result<_>>()?)?);
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

//! What a network loses when a dictionary's reconstructions are put in the place of its activations.

use candle_core::Tensor;
use endoscope_causal::log_softmax;
use endoscope_net::{Capture, Change, Edit, Inputs, Network, Plan, Run};
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::matrix::Matrix;
use crate::steering::site_width;

/// Mean losses of predicting the next token, in nats.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossRecovered {
    /// Of the network as it is.
    pub clean: f64,
    /// With reconstructions in the place of activations.
    pub spliced: f64,
    /// With zeros there.
    pub zero: f64,
    /// `(zero - spliced) / (zero - clean)`.
    pub recovered: f64,
    /// How many tokens were predicted.
    pub tokens: u64,
}

/// How many rows of tokens run together.
const ROWS: usize = 8;

impl Dictionary {
    /// The sites it writes.
    pub fn output_sites(&self) -> Vec<&str> {
        match &self.config().output_site {
            Some(site) => vec![site],
            None => self.config().sites.iter().map(String::as_str).collect(),
        }
    }
}

/// The activations that a dictionary reads, and those that it should write where they are others, of a run that captured its
/// sites: `[rows · positions, width]`, the sites of a crosscoder one beside the other.
pub fn activations(network: &dyn Network, dictionary: &Dictionary, run: &Run) -> Result<(Matrix, Option<Matrix>)> {
    read_sites(network, dictionary.config(), run)
}

/// The same of a dictionary that is still to be.
pub(crate) fn read_sites(network: &dyn Network, config: &Config, run: &Run) -> Result<(Matrix, Option<Matrix>)> {
    let read = |sites: &[&str]| {
        let parts = sites.iter().map(|site| vectors_at(network, run, site)).collect::<Result<Vec<_>>>()?;
        Matrix::from_tensor(&Tensor::cat(&parts, 1)?)
    };
    let sites: Vec<&str> = config.sites.iter().map(String::as_str).collect();
    if sites.is_empty() {
        return Err(Error::Config("it does not say which site it reads: name it".into()));
    }
    let target = config.output_site.as_deref().map(|site| read(&[site])).transpose()?;
    Ok((read(&sites)?, target))
}

/// The vectors at a captured site: `[rows · positions, width]`.
pub(crate) fn vectors_at(network: &dyn Network, run: &Run, site: &str) -> Result<Tensor> {
    let site = network.sites().get(network.sites().resolve_one(site)?);
    let captured = run.captured.get(&site.name)?;
    let width = site_width(site);
    Ok(captured.contiguous()?.reshape((captured.elem_count() / width.max(1), width))?)
}

/// A plan that captures what a dictionary reads and should write.
pub(crate) fn capturing(dictionary: &Dictionary) -> Plan {
    capturing_sites(dictionary.config())
}

/// The same of a dictionary that is still to be.
pub(crate) fn capturing_sites(config: &Config) -> Plan {
    config.sites.iter().chain(&config.output_site).fold(Plan::default(), |plan, site| plan.capture(Capture::new(site)))
}

/// Rows of equal length that run together.
pub(crate) fn batches(rows: &[Vec<u32>]) -> Vec<&[Vec<u32>]> {
    rows.chunk_by(|a, b| a.len() == b.len()).flat_map(|same| same.chunks(ROWS)).collect()
}

/// Runs `rows` of tokens as they are, with reconstructions, and with zeros at the sites that the dictionary writes.
pub fn loss_recovered(network: &dyn Network, dictionary: &Dictionary, rows: &[Vec<u32>]) -> Result<LossRecovered> {
    let (mut clean, mut spliced, mut zero, mut tokens) = (0., 0., 0., 0u64);
    let outputs = dictionary.output_sites();
    let zeros = outputs.iter().fold(Plan::default(), |plan, site| plan.edit(Edit::new(*site, Change::Zero)));
    for rows in batches(rows) {
        let inputs = Inputs::tokens(rows.to_vec())?;
        let run = network.run(&inputs, &capturing(dictionary))?;
        let (input, _) = activations(network, dictionary, &run)?;
        let output = dictionary.reconstruct(&input)?.tensor()?;
        let width = dictionary.d_out() / outputs.len().max(1);
        let mut plan = Plan::default();
        for (number, site) in outputs.iter().enumerate() {
            let name = &network.sites().get(network.sites().resolve_one(site)?).name;
            let shape = run.captured.get(name)?.dims().to_vec();
            let value = output.narrow(1, number * width, width)?.contiguous()?.reshape(shape)?;
            plan = plan.edit(Edit::new(*site, Change::Set { value: value.into() }));
        }
        clean += losses(&run.outputs, rows)?;
        spliced += losses(&network.run(&inputs, &plan)?.outputs, rows)?;
        zero += losses(&network.run(&inputs, &zeros)?.outputs, rows)?;
        tokens += rows.iter().map(|row| row.len() as u64 - 1).sum::<u64>();
    }
    if tokens == 0 {
        return Err(Error::Measure("no row has a next token to predict".into()));
    }
    let [clean, spliced, zero] = [clean, spliced, zero].map(|sum| sum / tokens as f64);
    Ok(LossRecovered { clean, spliced, zero, recovered: (zero - spliced) / (zero - clean), tokens })
}

/// The summed losses of each row's next tokens, from logits `[rows, positions, vocabulary]`.
fn losses(logits: &Tensor, rows: &[Vec<u32>]) -> Result<f64> {
    let mut sum = 0.;
    for (number, row) in rows.iter().enumerate() {
        let logits = logits.get(number)?.to_dtype(candle_core::DType::F32)?.to_vec2::<f32>()?;
        sum -= row.iter().skip(1).zip(&logits).map(|(&next, logits)| log_softmax(logits)[next as usize]).sum::<f64>();
    }
    Ok(sum)
}

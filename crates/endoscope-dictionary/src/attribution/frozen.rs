//! A prompt's run with everything held that is not linear.

use candle_core::Tensor;
use endoscope_net::{AxisName, Capture, Change, Edit, Index, Inputs, Network, Plan, Run};

use super::transcoders::Transcoders;
use crate::error::{Error, Result};
use crate::evaluate::splice::vectors_at;
use crate::matrix::Matrix;

/// One prompt, and what is held of its run.
#[derive(Debug)]
pub struct Frozen {
    pub(super) tokens: Vec<u32>,
    /// Edits that hold patterns, divisors and what MLPs write, for a batch of any number of rows.
    held: Vec<Edit>,
    /// Edits that hold the residual stream before each transcoder's layer but the first's: they cut the network in pieces.
    cuts: Vec<Edit>,
    /// For each transcoder the site where its piece of the network begins: first the embeddings, then the stream before its layer.
    pub(super) entries: Vec<String>,
    /// For each transcoder but the last the site where its piece ends: the same stream as the next entry, before the cut.
    pub(super) exits: Vec<String>,
    /// `[positions, d_model]`: the embeddings.
    pub(super) embedded: Matrix,
    /// For each transcoder what was read, `[positions, d_in]`.
    pub(super) read: Vec<Matrix>,
    /// For each transcoder's layer what no transcoder explains of its MLP's output, `[positions, width]`.
    pub(super) errors: Vec<Matrix>,
    /// The last position's logits.
    pub(super) logits: Vec<f32>,
}

impl Frozen {
    /// Runs the prompt, and holds what is not linear.
    pub fn new(network: &dyn Network, transcoders: &Transcoders, tokens: &[u32]) -> Result<Self> {
        let sites = network.sites();
        let layers = &transcoders.layers;
        let stream = |layer: usize, hook: &str| {
            let here = sites.iter().find(|site| site.layer == Some(layer) && site.name.ends_with(hook));
            let reason = || Error::Config(format!("layer {layer} of the network has no {hook}"));
            here.map(|site| site.name.clone()).ok_or_else(reason)
        };
        let later = || layers.iter().skip(1).map(|layer| layer.layer);
        let entries = std::iter::once(0).chain(later());
        let entries = entries.map(|layer| stream(layer, "hook_resid_pre")).collect::<Result<Vec<_>>>()?;
        let exits = later().map(|layer| stream(layer - 1, "hook_resid_post")).collect::<Result<Vec<_>>>()?;
        if let Some(site) =
            sites.iter().find(|site| site.name.ends_with(".hook_mlp_out") && !transcoders.write_to(&site.name))
        {
            return Err(Error::Config(format!(
                "{} is not written by a transcoder: a graph needs one for each layer's MLP",
                site.name
            )));
        }
        let is_held = |name: &str| name.ends_with("hook_scale") || name.ends_with("hook_pattern");
        let held: Vec<&String> = sites.iter().map(|site| &site.name).filter(|name| is_held(name)).collect();
        let held: Vec<&String> = held.into_iter().chain(layers.iter().map(|layer| &layer.output)).collect();
        let read = held.iter().copied().chain(&entries).chain(layers.iter().map(|layer| &layer.input));
        let plan = read.fold(Plan::default(), |plan, site| plan.capture(Capture::new(site)));
        let run = network.run(&Inputs::tokens(vec![tokens.to_vec()])?, &plan)?;
        let hold = |site: &String| -> Result<Edit> {
            Ok(Edit::new(site, Change::Set { value: run.captured.get(site)?.detach().into() }))
        };
        let held = held.into_iter().map(hold).collect::<Result<_>>()?;
        let cuts = entries.iter().skip(1).map(hold).collect::<Result<_>>()?;

        let vectors = |site: &str| Matrix::from_tensor(&vectors_at(network, &run, site)?);
        let read = layers.iter().map(|layer| vectors(&layer.input)).collect::<Result<Vec<_>>>()?;
        let mut errors = layers.iter().map(|layer| vectors(&layer.output)).collect::<Result<Vec<_>>>()?;
        for (number, (layer, x)) in layers.iter().zip(&read).enumerate() {
            let explained = layer.transcoder.reconstruct(x)?;
            for (position, row) in explained.iter().enumerate() {
                for (errors, explained) in errors[number..].iter_mut().zip(row.chunks_exact(layer.width)) {
                    let error = errors.row_mut(position).iter_mut();
                    error.zip(explained).for_each(|(error, explained)| *error -= explained);
                }
            }
        }
        let embedded = vectors(&entries[0])?;
        let logits = last_logits(&run, 0)?.to_vec1()?;
        Ok(Self { tokens: tokens.to_vec(), held, cuts, entries, exits, embedded, read, errors, logits })
    }

    /// The linear network with `edits` of the sites that sources write to.
    pub(super) fn run(&self, network: &dyn Network, transcoders: &Transcoders, mut edits: Vec<Edit>) -> Result<Run> {
        let pass = |edits: &[Edit]| -> Result<Run> {
            let read = transcoders.layers.iter().map(|layer| Capture::new(&layer.input)).collect();
            let plan = Plan { edits: [&self.held, edits].concat(), captures: read, ..Plan::default() };
            let inputs = Inputs::tokens(vec![self.tokens.clone()])?;
            Ok(network.run(&inputs, &plan.outputs_at(Index::At(-1)))?)
        };
        let mut run = pass(&edits)?;
        // A skip hands on what has changed of what it reads, and so changes what the layers after it read: one by one.
        for (layer, read) in transcoders.layers.iter().zip(&self.read) {
            let Some(skip) = &layer.skip else { continue };
            let now = Matrix::from_tensor(&vectors_at(network, &run, &layer.input)?)?;
            let changed = (now.tensor()? - read.tensor()?)?;
            let value = changed.matmul(&skip.t()?)?.unsqueeze(0)?.into();
            edits.push(Edit::new(&layer.output, Change::Add { value, scale: 1. }));
            run = pass(&edits)?;
        }
        Ok(run)
    }

    /// The linear network on `rows` copies of the prompt, cut before each transcoder's layer. It has gradients at all sites that
    /// sources write to and at all cuts, within one piece.
    pub(super) fn pieces(&self, network: &dyn Network, transcoders: &Transcoders, rows: usize) -> Result<Run> {
        let read = transcoders.layers.iter().map(|layer| &layer.input).chain(&self.exits).map(Capture::new);
        let written = transcoders.layers.iter().map(|layer| &layer.output).chain(&self.entries);
        let captures = read.chain(written.map(|site| Capture::new(site).with_gradient())).collect();
        let plan = Plan { edits: [self.held.as_slice(), &self.cuts].concat(), captures, ..Plan::default() };
        let inputs = Inputs::tokens(vec![self.tokens.clone(); rows])?;
        Ok(network.run(&inputs, &plan.outputs_at(Index::At(-1)))?)
    }

    /// An edit that takes `vector` away at one position of a site.
    pub(super) fn without(site: &str, position: usize, vector: &[f32]) -> Result<Edit> {
        let value = Tensor::from_slice(vector, (1, 1, vector.len()), &candle_core::Device::Cpu)?;
        let change = Change::Add { value: value.into(), scale: -1. };
        Ok(Edit::new(site, change).at(AxisName::Position, Index::At(position as i64)))
    }
}

/// The logits of the last position that was read, of one row.
pub(super) fn last_logits(run: &Run, row: usize) -> Result<Tensor> {
    let logits = run.outputs.get(row)?;
    let positions = logits.dim(0)?;
    Ok(logits.get(positions - 1)?.to_dtype(candle_core::DType::F32)?)
}

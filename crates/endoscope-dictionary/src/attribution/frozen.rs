//! A prompt's run with everything held that is not linear.

use std::sync::Arc;

use candle_core::Tensor;
use endoscope_net::{AxisName, Capture, Change, Edit, Index, Inputs, Network, Plan, Run};

use crate::config::Normalization;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::evaluate::splice::vectors_at;
use crate::matrix::Matrix;

/// A transcoder for each of some layers.
#[derive(Debug, Clone)]
pub struct Transcoders {
    /// In the order of layers; of each the layer, the site it reads and the site it writes.
    pub(super) layers: Vec<Layer>,
}

#[derive(Debug, Clone)]
pub(super) struct Layer {
    pub layer: usize,
    pub input: String,
    pub output: String,
    pub transcoder: Arc<Dictionary>,
}

impl Transcoders {
    /// Checks that each is a transcoder of sites of one layer of `network`, one a layer, and linear but for its latents.
    pub fn new(network: &dyn Network, transcoders: Vec<Dictionary>) -> Result<Self> {
        let mut layers = Vec::new();
        for transcoder in transcoders {
            let fail = |reason: String| Err(Error::Config(reason));
            let (Some(output), [input]) = (&transcoder.config().output_site, transcoder.config().sites.as_slice())
            else {
                return fail("attribution graphs need transcoders, which read one site and write another".into());
            };
            if transcoder.weights().skip.is_some() {
                return fail(
                    "a skip transcoder's skip has no node; graphs of skip transcoders are not made yet".into(),
                );
            }
            if transcoder.config().normalization != Normalization::None {
                return fail("a transcoder that rescales its input is not linear in it".into());
            }
            let sites = network.sites();
            let (input, output) = (sites.get(sites.resolve_one(input)?), sites.get(sites.resolve_one(output)?));
            let (Some(layer), true) = (output.layer, input.layer == output.layer) else {
                return fail(format!("{} and {} are not sites of one layer", input.name, output.name));
            };
            transcoder.check_site(input)?;
            if crate::site_width(output) != transcoder.d_out() {
                return fail(format!(
                    "the transcoder writes {} dimensions, {} has others",
                    transcoder.d_out(),
                    output.name
                ));
            }
            let (input, output) = (input.name.clone(), output.name.clone());
            layers.push(Layer { layer, input, output, transcoder: Arc::new(transcoder) });
        }
        layers.sort_by_key(|layer| layer.layer);
        match layers.windows(2).find(|two| two[0].layer == two[1].layer) {
            _ if layers.is_empty() => Err(Error::Config("there is no transcoder".into())),
            Some(two) => Err(Error::Config(format!("layer {} has two transcoders", two[0].layer))),
            None => Ok(Self { layers }),
        }
    }

    /// The layers that have one.
    pub fn layers(&self) -> impl Iterator<Item = usize> {
        self.layers.iter().map(|layer| layer.layer)
    }

    /// That of the `number`-th of these layers.
    pub fn get(&self, number: usize) -> &Dictionary {
        &self.layers[number].transcoder
    }
}

/// One prompt, and what is held of its run.
#[derive(Debug)]
pub struct Frozen {
    pub(super) tokens: Vec<u32>,
    /// Edits that hold patterns, divisors and outputs, for a batch of any number of rows.
    held: Vec<Edit>,
    /// The site of the embeddings that the residual stream starts from.
    pub(super) embedding: String,
    /// `[positions, d_model]`: what it held.
    pub(super) embedded: Matrix,
    /// For each transcoder what was read, and the error that it makes, `[positions, …]`.
    pub(super) read: Vec<Matrix>,
    pub(super) errors: Vec<Matrix>,
    /// The last position's logits.
    pub(super) logits: Vec<f32>,
}

impl Frozen {
    /// Runs the prompt, and holds what is not linear.
    pub fn new(network: &dyn Network, transcoders: &Transcoders, tokens: &[u32]) -> Result<Self> {
        let sites = network.sites();
        let embedding = match sites.iter().find(|site| site.layer == Some(0) && site.name.ends_with("hook_resid_pre")) {
            Some(site) => site.name.clone(),
            None => return Err(Error::Config("the network has no residual stream before its first layer".into())),
        };
        let is_held = |name: &str| name.ends_with("hook_scale") || name.ends_with("hook_pattern");
        let held: Vec<String> = sites.iter().filter(|site| is_held(&site.name)).map(|site| site.name.clone()).collect();
        if let Some(site) =
            sites.iter().find(|site| site.name.ends_with(".hook_mlp_out") && !transcoders.writes(&site.name))
        {
            return Err(Error::Config(format!(
                "{} is not written by a transcoder: a graph needs one for each layer's MLP",
                site.name
            )));
        }
        let mut plan =
            [&embedding].into_iter().chain(&held).fold(Plan::default(), |plan, site| plan.capture(Capture::new(site)));
        for layer in &transcoders.layers {
            plan = plan.capture(Capture::new(&layer.input)).capture(Capture::new(&layer.output));
        }
        let run = network.run(&Inputs::tokens(vec![tokens.to_vec()])?, &plan)?;
        let mut edits = Vec::new();
        for site in held.iter().chain(transcoders.layers.iter().map(|layer| &layer.output)) {
            let value = run.captured.get(site)?.detach();
            edits.push(Edit::new(site, Change::Set { value: value.into() }));
        }
        let (mut read, mut errors) = (Vec::new(), Vec::new());
        for layer in &transcoders.layers {
            let x = Matrix::from_tensor(&vectors_at(network, &run, &layer.input)?)?;
            let mut error = Matrix::from_tensor(&vectors_at(network, &run, &layer.output)?)?;
            let explained = layer.transcoder.reconstruct(&x)?;
            error.values_mut().iter_mut().zip(explained.values()).for_each(|(error, explained)| *error -= explained);
            read.push(x);
            errors.push(error);
        }
        let embedded = Matrix::from_tensor(&vectors_at(network, &run, &embedding)?)?;
        let logits = last_logits(&run, 0)?.to_vec1()?;
        Ok(Self { tokens: tokens.to_vec(), held: edits, embedding, embedded, read, errors, logits })
    }

    /// The linear network on `rows` copies of the prompt. With `gradients`, sites that sources write to have them.
    pub(super) fn run(
        &self,
        network: &dyn Network,
        transcoders: &Transcoders,
        rows: usize,
        gradients: bool,
        more: Vec<Edit>,
    ) -> Result<Run> {
        let mut plan = Plan { edits: self.held.clone(), ..Plan::default() };
        plan.edits.extend(more);
        plan.captures.push(Capture { gradient: gradients, ..Capture::new(&self.embedding) });
        for layer in &transcoders.layers {
            plan.captures.push(Capture { gradient: gradients, ..Capture::new(&layer.input) });
            plan.captures.push(Capture { gradient: gradients, ..Capture::new(&layer.output) });
        }
        plan = plan.outputs_at(Index::At(-1));
        Ok(network.run(&Inputs::tokens(vec![self.tokens.clone(); rows])?, &plan)?)
    }

    /// An edit that adds `vector` at one position of a site.
    pub(super) fn adding(site: &str, position: usize, vector: Vec<f32>) -> Result<Edit> {
        let value = Tensor::from_vec(vector, (1, 1, ()), &candle_core::Device::Cpu)?;
        let change = Change::Add { value: value.into(), scale: 1. };
        Ok(Edit::new(site, change).at(AxisName::Position, Index::At(position as i64)))
    }
}

impl Transcoders {
    fn writes(&self, site: &str) -> bool {
        self.layers.iter().any(|layer| layer.output == site)
    }
}

/// The logits of the last position that was read, of one row.
pub(super) fn last_logits(run: &Run, row: usize) -> Result<Tensor> {
    let logits = run.outputs.get(row)?;
    let positions = logits.dim(0)?;
    Ok(logits.get(positions - 1)?.to_dtype(candle_core::DType::F32)?)
}

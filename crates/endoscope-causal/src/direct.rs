//! Direct attribution: what each part writes of the logit difference by itself, past all later layers (Elhage et al. 2021; the
//! "direct logit attribution" of TransformerLens).
//!
//! The final norm is held at the scale that it has, so that it is linear, and everything between a part and the final stream is left
//! out. Then contributions add up to the metric. Where a norm or a factor lies between a part and the stream (Gemma 2, OLMo 2,
//! Granite), it is held likewise.

use std::ops::ControlFlow;

use candle_core::Tensor;
use endoscope_net::{AxisName, Capture, Captured, Change, Edit, Index, Inputs, Network, Plan, Run};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::metric::{Metric, Target};
use crate::pairs::Progress;
use crate::prompts::Pair;

/// A part that writes to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// The token's embedding.
    Embedding,
    /// The position's embedding, where positions are learned.
    PositionEmbedding,
    /// One attention head.
    Head {
        /// Its layer.
        layer: usize,
        /// Its number in the layer.
        head: usize,
    },
    /// What attention writes besides its heads: its bias.
    AttentionBias {
        /// Its layer.
        layer: usize,
    },
    /// One MLP, with its bias.
    Mlp {
        /// Its layer.
        layer: usize,
    },
    /// What no part writes: the biases of the final norm and the unembedding. Where logits are soft-capped (Gemma 2), also how far
    /// the cap is from its tangent.
    Rest,
}

/// Contributions to the logit difference at the last position of clean prompts, averaged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DirectScores {
    /// The parts, in the order of the network; the rest last.
    pub components: Vec<Component>,
    /// What each contributes, averaged over prompts; they sum to `metric`.
    pub contributions: Vec<f64>,
    /// The same of each prompt: `[prompt][component]`.
    pub prompts: Vec<Vec<f64>>,
    /// What the stream before each layer, and after the last, contributes: all parts before it together.
    pub accumulated: Vec<f64>,
    /// `[layer][neuron]`, where MLPs have neurons of their own (not experts).
    pub neurons: Vec<Vec<f64>>,
    /// The logit difference, averaged.
    pub metric: f64,
}

/// Attributes the logit difference between the answers and the wrong answers of each clean prompt.
pub fn direct(
    network: &dyn Network,
    pairs: &[Pair],
    watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<DirectScores> {
    let all = of_prompts(network, pairs, false, watch)?;
    let Some(first) = all.first() else { return Err(Error::Prompts("there are no prompts".into())) };
    let mean = |of: &dyn Fn(&OfPrompt) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
    let means = |count: usize, of: &dyn Fn(&OfPrompt, usize) -> f64| -> Vec<f64> {
        (0..count).map(|at| mean(&|prompt| of(prompt, at))).collect()
    };
    Ok(DirectScores {
        components: first.components.clone(),
        contributions: means(first.components.len(), &|prompt, at| prompt.contributions[at]),
        accumulated: means(first.accumulated.len(), &|prompt, at| prompt.accumulated[at]),
        neurons: (0..first.neurons.len())
            .map(|layer| means(first.neurons[layer].len(), &|prompt, at| prompt.neurons[layer][at]))
            .collect(),
        metric: mean(&|prompt| prompt.metric),
        prompts: all.iter().map(|prompt| prompt.contributions.clone()).collect(),
    })
}

/// What each part contributes directly, and what the same part of another prompt's run would in its place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DirectExchange {
    /// The parts, in the order of the network; without the rest.
    pub components: Vec<Component>,
    /// `[prompt][component]`: as in [`DirectScores::prompts`].
    pub clean: Vec<Vec<f64>>,
    /// `[prompt][component]`: of what the part writes in the corrupt prompt, read as the clean run reads it.
    pub corrupt: Vec<Vec<f64>>,
}

impl DirectExchange {
    /// The net direct effect of each part in each of `prompts`, averaged: what is lost of the logit difference when the part alone
    /// is exchanged for the corrupt prompt's, past all later layers and with the norms held (resample ablation of the direct path).
    pub fn net(&self, prompts: std::ops::Range<usize>) -> Vec<f64> {
        let both = self.clean.iter().zip(&self.corrupt).take(prompts.end).skip(prompts.start);
        let mut net = vec![0.; self.components.len()];
        for (clean, corrupt) in both {
            for (net, (clean, corrupt)) in net.iter_mut().zip(clean.iter().zip(corrupt)) {
                *net += (clean - corrupt) / prompts.len() as f64;
            }
        }
        net
    }
}

/// Attributes the logit difference of each clean prompt to its parts, as [`direct`] does, and to those of the corrupt prompt in their
/// place.
pub fn direct_exchange(
    network: &dyn Network,
    pairs: &[Pair],
    watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<DirectExchange> {
    let all = of_prompts(network, pairs, true, watch)?;
    let Some(first) = all.first() else { return Err(Error::Prompts("there are no prompts".into())) };
    let count = first.corrupt.len();
    Ok(DirectExchange {
        components: first.components[..count].to_vec(),
        clean: all.iter().map(|prompt| prompt.contributions[..count].to_vec()).collect(),
        corrupt: all.into_iter().map(|prompt| prompt.corrupt).collect(),
    })
}

fn of_prompts(
    network: &dyn Network,
    pairs: &[Pair],
    exchange: bool,
    mut watch: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Vec<OfPrompt>> {
    let mut all: Vec<OfPrompt> = Vec::with_capacity(pairs.len());
    for (number, pair) in pairs.iter().enumerate() {
        all.push(of_prompt(network, pair, exchange).map_err(|error| match error {
            Error::Metric { metric, reason } => Error::Pair { pair: number, reason: format!("{metric}: {reason}") },
            other => other,
        })?);
        if watch(Progress { done: number + 1, total: pairs.len() }).is_break() {
            return Err(Error::Interrupted);
        }
    }
    Ok(all)
}

/// The contributions of one prompt.
struct OfPrompt {
    components: Vec<Component>,
    contributions: Vec<f64>,
    /// Of the corrupt prompt's parts in their place, without the rest; empty unless that was asked for.
    corrupt: Vec<f64>,
    accumulated: Vec<f64>,
    neurons: Vec<Vec<f64>>,
    metric: f64,
}

fn of_prompt(network: &dyn Network, pair: &Pair, exchange: bool) -> Result<OfPrompt> {
    let sites = network.sites();
    let layers = sites.layers();
    let there = |name: &str| sites.resolve_one(name).is_ok();
    let inputs = Inputs::tokens(vec![pair.clean.clone()])?;
    let last_stream = format!("blocks.{}.hook_resid_post", layers - 1);

    // The scales of norms on the way out, and the streams, as they are.
    let mut held: Vec<String> = vec!["ln_final.hook_scale".into()];
    for layer in 0..layers {
        let norms = ["ln1_post", "ln2_post"].map(|norm| format!("blocks.{layer}.{norm}.hook_scale"));
        let streams = ["resid_pre", "resid_mid"].map(|stream| format!("blocks.{layer}.hook_{stream}"));
        held.extend(norms.into_iter().chain(streams).filter(|name| there(name)));
    }
    let plan = held.iter().fold(Plan::default(), |plan, name| plan.capture(Capture::new(name)));
    let known = network.run(&inputs, &plan.outputs_at(Index::At(-1)))?.captured;

    // The same run with these put in as constants: no gradient then flows from one layer to another.
    let mut plan = Plan::default().outputs_at(Index::At(-1));
    for name in &held {
        plan = plan.edit(Edit::new(name, Change::Patch { source: known.get(name)?.clone().into() }));
    }
    let mut read: Vec<String> =
        ["hook_embed", "hook_pos_embed"].into_iter().filter(|name| there(name)).map(String::from).collect();
    for layer in 0..layers {
        let names = ["attn.hook_result", "hook_attn_out", "mlp.hook_post", "hook_mlp_out"];
        read.extend(names.map(|name| format!("blocks.{layer}.{name}")).into_iter().filter(|name| there(name)));
    }
    read.push(last_stream.clone());
    let last = |name: &String| Capture::new(name).at(AxisName::Position, Index::At(-1));
    for name in &read {
        plan = plan.capture(last(name).with_gradient());
    }
    let run = network.run(&inputs, &plan)?;
    let logits = run.outputs.get(0)?.get(0)?;
    let target =
        Target { answers: pair.answers.clone(), wrong_answers: pair.wrong_answers.clone(), ..Target::default() };
    let metric = Metric::LogitDiff.differentiable(&logits, &target)?;
    // The direction of the final stream that the metric reads: `[1, 1, d]`.
    let direction = run.gradients(&metric)?.get(&last_stream)?.clone();
    let inside = inside(&run, &direction, layers)?;
    let (mut components, mut contributions) = written(&run.captured, &direction, &inside, layers)?;
    let corrupt = match exchange {
        true => {
            let plan = read.iter().fold(Plan::default(), |plan, name| plan.capture(last(name)));
            let run = network.run(&Inputs::tokens(vec![pair.corrupt.clone()])?, &plan.outputs_at(Index::At(-1)))?;
            written(&run.captured, &direction, &inside, layers)?.1
        }
        false => Vec::new(),
    };
    let mut neurons = Vec::new();
    for layer in 0..layers {
        let post = format!("blocks.{layer}.mlp.hook_post");
        if let Ok(activation) = run.captured.get(&post) {
            let products = (activation.detach() * inside.get(&post)?)?.flatten_all()?.to_vec1::<f32>()?;
            neurons.push(products.into_iter().map(f64::from).collect());
        }
    }
    let mut accumulated = Vec::with_capacity(layers + 1);
    for layer in 0..layers {
        let stream = known.get(&format!("blocks.{layer}.hook_resid_pre"))?;
        accumulated.push(along(&stream.narrow(1, stream.dim(1)? - 1, 1)?, &direction)?);
    }
    accumulated.push(along(run.captured.get(&last_stream)?, &direction)?);
    let metric = f64::from(metric.to_scalar::<f32>()?);
    let rest = metric - contributions.iter().sum::<f64>();
    components.push(Component::Rest);
    contributions.push(rest);
    Ok(OfPrompt { components, contributions, corrupt, accumulated, neurons, metric })
}

fn along(x: &Tensor, direction: &Tensor) -> Result<f64> {
    Ok(f64::from((x.detach() * direction)?.sum_all()?.to_scalar::<f32>()?))
}

/// What each part of a run writes along `direction`, in the order of the network, without the rest. `inside` is how much of it each
/// number of a head's result gives.
fn written(
    captured: &Captured,
    direction: &Tensor,
    inside: &Captured,
    layers: usize,
) -> Result<(Vec<Component>, Vec<f64>)> {
    let (mut components, mut contributions) = (Vec::new(), Vec::new());
    let mut push = |component: Component, value: f64| {
        components.push(component);
        contributions.push(value);
    };
    push(Component::Embedding, along(captured.get("hook_embed")?, direction)?);
    if let Ok(positions) = captured.get("hook_pos_embed") {
        push(Component::PositionEmbedding, along(positions, direction)?);
    }
    for layer in 0..layers {
        let attention = along(captured.get(&format!("blocks.{layer}.hook_attn_out"))?, direction)?;
        let result = format!("blocks.{layer}.attn.hook_result");
        let heads =
            (captured.get(&result)?.detach() * inside.get(&result)?)?.sum(3)?.flatten_all()?.to_vec1::<f32>()?;
        let heads: Vec<f64> = heads.into_iter().map(f64::from).collect();
        let together: f64 = heads.iter().sum();
        heads.into_iter().enumerate().for_each(|(head, value)| push(Component::Head { layer, head }, value));
        push(Component::AttentionBias { layer }, attention - together);
        push(Component::Mlp { layer }, along(captured.get(&format!("blocks.{layer}.hook_mlp_out"))?, direction)?);
    }
    Ok((components, contributions))
}

/// How much of what is added to the stream along `direction` each number within attention and MLP gives: the gradients of
/// `sum of attn_out + mlp_out . direction`.
fn inside(run: &Run, direction: &Tensor, layers: usize) -> Result<Captured> {
    let mut written: Option<Tensor> = None;
    for layer in 0..layers {
        for name in ["hook_attn_out", "hook_mlp_out"] {
            let along = (run.captured.get(&format!("blocks.{layer}.{name}"))? * direction)?.sum_all()?;
            written = Some(match written {
                Some(sum) => (sum + along)?,
                None => along,
            });
        }
    }
    match written {
        Some(written) => Ok(run.gradients(&written)?),
        None => Err(Error::Sweep("a network without layers has nothing to attribute".into())),
    }
}

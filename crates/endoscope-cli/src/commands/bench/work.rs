//! The works: what each does once, how large it is, and how much of the machine it needs.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use candle_core::{Device, Tensor};
use clap::ValueEnum;
use endoscope_causal::{Pair, PathSweep, Planner, Receiver, Sweep, SweepAxis, path_sweep, sweep};
use endoscope_models::decoder::capture_everything;
use endoscope_models::{Caching, Depth, Model, Sampling, Settings, generate};
use endoscope_net::{Capture, Change, Edit, Inputs, Network, Plan};

use super::{cost, machine, training};
use crate::input;

/// Tokens decoded one at a time after the prompt.
const DECODED: usize = 64;

/// What can be timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Work {
    /// A large f32 matrix product: the machine's limit for arithmetic.
    Gemm,
    /// Reading memory with all threads: the machine's limit for decoding.
    Read,
    /// Copying memory with all threads.
    Copy,
    /// One forward pass, logits at every position.
    Forward,
    /// One forward pass that captures every site.
    Capture,
    /// A denoising sweep of resid_pre over layer x position, with its clean and corrupt runs.
    Sweep,
    /// The same of z over layer x head, all positions at once.
    Heads,
    /// Path patching from every head and MLP to the final residual stream, the norm recomputed.
    Paths,
    /// Greedy decoding with the cache, for each token after the first.
    Decode,
    /// The same with a steering vector and one captured site.
    DecodePlan,
    /// One update of a small model: forward and backward pass, AdamW.
    Train,
    /// Opening the model's directory and generating one token.
    Open,
}

/// Rows and tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub batch: usize,
    pub length: usize,
}

/// What bounds a work from below.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// Matrix products.
    Gemm { flop: f64 },
    /// Reading weights.
    Read { bytes: f64 },
    /// Several things, or nothing simple.
    Unknown,
}

/// How much one repetition is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Amount {
    pub count: f64,
    pub unit: &'static str,
    pub limit: Limit,
}

/// A work that is ready to be repeated.
pub struct Prepared<'a> {
    pub work: Work,
    /// What tables call it.
    pub name: String,
    pub amount: Amount,
    /// Does it once and gives the seconds that it took.
    pub once: Box<dyn FnMut() -> Result<f64> + 'a>,
}

impl<'a> Prepared<'a> {
    pub fn new(work: Work, name: String, amount: Amount, once: impl FnMut() -> Result<f64> + 'a) -> Self {
        Self { work, name, amount, once: Box::new(once) }
    }
}

impl Amount {
    pub fn counting(count: f64, unit: &'static str) -> Self {
        Self { count, unit, limit: Limit::Unknown }
    }
}

impl Work {
    /// The limits that shares are counted from.
    pub const MACHINE: [Self; 3] = [Self::Gemm, Self::Read, Self::Copy];

    /// Its name on the command line and in JSON.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_string())
    }

    /// Whether it runs the model (and not only its files, or a model of its own).
    pub fn runs_model(self) -> bool {
        match self {
            Self::Gemm | Self::Read | Self::Copy | Self::Train | Self::Open => false,
            Self::Forward
            | Self::Capture
            | Self::Sweep
            | Self::Heads
            | Self::Paths
            | Self::Decode
            | Self::DecodePlan => true,
        }
    }

    /// The size of a worker's work unless it is told another.
    pub fn usual_size(self) -> Size {
        match self {
            Self::Gemm | Self::Read | Self::Copy => Size { batch: 1, length: 1 },
            Self::Forward | Self::Capture => Size { batch: 1, length: 128 },
            Self::Sweep | Self::Heads | Self::Paths => Size { batch: 1, length: 16 },
            Self::Decode | Self::DecodePlan => Size { batch: 1, length: 32 },
            Self::Train => Size { batch: 16, length: 128 },
            Self::Open => Size { batch: 1, length: 8 },
        }
    }

    /// The sizes of the suite for a model of this context: the usual ones, cut where they are too long.
    pub fn sizes(self, context: usize) -> Vec<Size> {
        let wanted = match self {
            Self::Forward => [(1, 128), (8, 64), (1, 1024)].map(|(batch, length)| Size { batch, length }).to_vec(),
            other => vec![other.usual_size()],
        };
        let most = match self {
            // The tokens that follow need room too.
            Self::Decode | Self::DecodePlan => context / 2,
            Self::Train => usize::MAX,
            _ => context,
        };
        let mut sizes: Vec<Size> = Vec::new();
        for Size { batch, length } in wanted {
            let size = Size { batch, length: length.min(most) };
            if !sizes.contains(&size) {
                sizes.push(size);
            }
        }
        sizes
    }

    /// Makes it ready where no opened model is needed.
    pub fn prepare(self, directory: Option<&Path>, size: Size, depth: Depth) -> Result<Prepared<'static>> {
        match self {
            Self::Gemm => machine::gemm(),
            Self::Read => Ok(machine::read()),
            Self::Copy => Ok(machine::copy()),
            Self::Train => training::step(size),
            Self::Open => {
                let directory = directory.context("only a model in a directory can be opened: name one")?;
                open(directory, size.length, depth)
            }
            other => bail!("the work {} needs a model", other.name()),
        }
    }

    /// Makes it ready on `model`.
    pub fn prepare_on(self, model: &Model, size: Size) -> Result<Prepared<'_>> {
        match self {
            Self::Forward => run(model, self, &Plan::default(), size),
            Self::Capture => run(model, self, &capture_everything(), size),
            Self::Sweep => patching(model, self, "resid_pre", [SweepAxis::Layer, SweepAxis::Position], size.length),
            Self::Heads => patching(model, self, "z", [SweepAxis::Layer, SweepAxis::Head], size.length),
            Self::Paths => paths(model, size.length),
            Self::Decode => decode(model, self, Plan::default(), size.length),
            Self::DecodePlan => decode(model, self, steering(model)?, size.length),
            other => bail!("the work {} runs no model", other.name()),
        }
    }
}

/// Rows of random tokens, the same each time: a multiplicative generator spreads them over the vocabulary.
pub fn random_rows(vocabulary: usize, size: Size) -> Vec<Vec<u32>> {
    let token = |at: u64| (((at + 1).wrapping_mul(6_364_136_223_846_793_005) >> 33) % vocabulary as u64) as u32;
    let row = |row: u64| (0..size.length as u64).map(|at| token(row * 1_000_003 + at)).collect();
    (0..size.batch as u64).map(row).collect()
}

fn tokens(model: &Model, size: Size) -> Vec<Vec<u32>> {
    random_rows(model.spec().vocabulary, size)
}

fn run<'a>(model: &'a Model, work: Work, plan: &Plan, size: Size) -> Result<Prepared<'a>> {
    let Size { batch, length } = size;
    let (inputs, plan) = (Inputs::tokens(tokens(model, size))?, plan.clone());
    let once = move || {
        let start = Instant::now();
        // What came out is freed within the time, as any caller must.
        drop(model.decoder.run(&inputs, &plan)?);
        Ok(start.elapsed().as_secs_f64())
    };
    let limit = Limit::Gemm { flop: cost::forward_flop(model.spec(), batch, length) };
    let amount = Amount { limit, ..Amount::counting((batch * length) as f64, "tokens") };
    Ok(Prepared::new(work, format!("{}, {batch}x{length}", work.name()), amount, once))
}

fn patching<'a>(model: &'a Model, work: Work, site: &str, over: [SweepAxis; 2], length: usize) -> Result<Prepared<'a>> {
    let pair = pair(model, length);
    let patching = Sweep::new(site, over.to_vec());
    let axis = |axis: SweepAxis| match axis {
        SweepAxis::Position => length,
        SweepAxis::Head => model.spec().heads,
        _ => model.spec().layers,
    };
    let sides = over.map(axis);
    let name = format!(
        "sweep of {site}, {} {}s x {} {}s, {length} tokens",
        sides[0],
        over[0].name(),
        sides[1],
        over[1].name()
    );
    let once = move || {
        let start = Instant::now();
        let pairs = std::slice::from_ref(&pair);
        drop(sweep(&model.decoder, &patching, pairs, Planner::default(), |_| ControlFlow::Continue(()))?);
        Ok(start.elapsed().as_secs_f64())
    };
    let amount = Amount::counting((sides[0] * sides[1]) as f64, "points");
    Ok(Prepared::new(work, name, amount, once))
}

fn pair(model: &Model, length: usize) -> Pair {
    let mut rows = tokens(model, Size { batch: 2, length });
    let (corrupt, clean) = (rows.pop().unwrap_or_default(), rows.pop().unwrap_or_default());
    Pair { clean, corrupt, answers: vec![0], wrong_answers: vec![1] }
}

fn paths(model: &Model, length: usize) -> Result<Prepared<'_>> {
    let pair = pair(model, length);
    let to: Receiver = "final".parse()?;
    let patching = PathSweep { from: vec!["heads".into(), "mlps".into()], ..PathSweep::new([to]) };
    let senders = model.spec().layers * (model.spec().heads + 1);
    let once = move || {
        let start = Instant::now();
        let pairs = std::slice::from_ref(&pair);
        drop(path_sweep(&model.decoder, &patching, pairs, Planner::default(), |_| ControlFlow::Continue(()))?);
        Ok(start.elapsed().as_secs_f64())
    };
    let name = format!("path patching, {senders} senders to the final residual stream, {length} tokens");
    Ok(Prepared::new(Work::Paths, name, Amount::counting(senders as f64, "points"), once))
}

/// A vector added in the middle of the model, everywhere, and a site of the last layer read at each step.
fn steering(model: &Model) -> Result<Plan> {
    let (width, layers) = (model.spec().d_model, model.spec().layers);
    let vector = Tensor::full(0.1f32, width, &Device::Cpu)?;
    let add = Change::Add { value: vector.into(), scale: 1. };
    Ok(Plan::default()
        .edit(Edit::new(format!("resid_post.{}", layers / 2), add))
        .capture(Capture::new(format!("resid_post.{}", layers - 1))))
}

/// Time of one token: the prompt, and the token that comes with it, are left out.
fn decode(model: &Model, work: Work, plan: Plan, length: usize) -> Result<Prepared<'_>> {
    let prompt = tokens(model, Size { batch: 1, length }).concat();
    let decoded = DECODED.min(model.spec().context.saturating_sub(length + 1));
    if decoded == 0 {
        bail!("a prompt of {length} tokens leaves no room to decode: the context is {}", model.spec().context);
    }
    let settings = greedy(decoded + 1);
    let once = move || {
        let mut times = Vec::with_capacity(decoded + 1);
        generate(model, &prompt, &plan, &settings, |_| {
            times.push(Instant::now());
            ControlFlow::Continue(())
        })?;
        let (Some(first), Some(last)) = (times.first(), times.last()) else { bail!("no token was generated") };
        Ok((*last - *first).as_secs_f64() / decoded as f64)
    };
    let limit = Limit::Read { bytes: cost::decode_bytes(&model.decoder) };
    let amount = Amount { limit, ..Amount::counting(1., "tokens") };
    let with = if work == Work::DecodePlan { " with a plan" } else { "" };
    Ok(Prepared::new(work, format!("decoding one token{with}, {length} + {decoded} tokens"), amount, once))
}

fn greedy(max_tokens: usize) -> Settings {
    Settings {
        max_tokens,
        sampling: Sampling::default(),
        stop: Vec::new(),
        stop_at_end_token: false,
        caching: Caching::On,
    }
}

fn open(directory: &Path, length: usize, depth: Depth) -> Result<Prepared<'static>> {
    let directory = directory.to_path_buf();
    let once = move || {
        let start = Instant::now();
        let model = input::open(&directory, depth)?;
        let prompt = tokens(&model, Size { batch: 1, length }).concat();
        generate(&model, &prompt, &Plan::default(), &greedy(1), |_| ControlFlow::Continue(()))?;
        Ok(start.elapsed().as_secs_f64())
    };
    let amount = Amount::counting(1., "models");
    Ok(Prepared::new(Work::Open, format!("opening, and a token after {length}"), amount, once))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_cut_to_the_context_and_none_comes_twice() {
        let sizes =
            |work: Work, context| work.sizes(context).iter().map(|size| (size.batch, size.length)).collect::<Vec<_>>();
        assert_eq!(sizes(Work::Forward, 1024), [(1, 128), (8, 64), (1, 1024)]);
        assert_eq!(sizes(Work::Forward, 256), [(1, 128), (8, 64), (1, 256)]);
        assert_eq!(sizes(Work::Forward, 64), [(1, 64), (8, 64)]);
        assert_eq!(sizes(Work::Decode, 64), [(1, 32)]);
        assert_eq!(sizes(Work::Decode, 20), [(1, 10)]);
        assert_eq!(sizes(Work::Train, 20), [(16, 128)]);
    }

    #[test]
    fn tokens_are_of_the_vocabulary_and_differ() {
        let rows = random_rows(50, Size { batch: 3, length: 40 });
        assert!(rows.iter().flatten().all(|&id| id < 50));
        assert_ne!(rows[0], rows[1]);
        assert!(rows[0].iter().collect::<std::collections::BTreeSet<_>>().len() > 15);
    }
}

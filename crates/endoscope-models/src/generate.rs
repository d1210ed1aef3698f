//! Generation: one token after another, with a plan applied to prompt and generated positions.
//!
//! What a position in a plan means is said at [`endoscope_net::Index`]: the same position whether the sequence is
//! computed token by token with the cache or anew at every step. Keys and values enter the cache as edited.

use std::ops::ControlFlow;

use candle_core::Tensor;
use endoscope_net::{AxisName, Captured, Frame, Plan, Prepared, Run, Sites, TokenRows};

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::sampling::{Sampler, Sampling};
use crate::text_stream::TextStream;

/// How to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// How many tokens at most.
    pub max_tokens: usize,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// Texts that end the generation; they are not part of what is returned.
    pub stop: Vec<String>,
    /// Whether to end at the model's end-of-sequence tokens.
    pub stop_at_end_token: bool,
    /// Whether keys and values of earlier positions are kept.
    pub caching: Caching,
}

/// Whether keys and values of earlier positions are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caching {
    /// Each step computes one position.
    On,
    /// Each step computes the whole sequence: the reference.
    Off,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// `max_tokens` were generated.
    Length,
    /// A stop text appeared.
    Stop,
    /// The model ended the sequence.
    EndToken,
    /// The context is full.
    Context,
    /// Whoever listens asked to stop.
    Interrupted,
}

/// What was generated after one prompt.
#[derive(Debug)]
pub struct Generation {
    /// The generated ids (an end token included).
    pub tokens: Vec<u32>,
    /// The generated text, if the model has a tokenizer.
    pub text: Option<String>,
    /// Why it ended.
    pub finish: Finish,
    /// What the plan captured: positions of prompt and generation joined; keys that did not exist yet are zero.
    pub captured: Captured,
}

/// One generated token, as it comes.
#[derive(Debug)]
pub struct Step<'a> {
    /// The prompt that it continues.
    pub row: usize,
    /// Its id.
    pub token: u32,
    /// The text that is certain by now and was not before (empty while a character or a stop text is incomplete).
    pub text: &'a str,
}

/// Generates after `prompt`; `listen` hears of each token and may end the generation.
pub fn generate(
    model: &Model,
    prompt: &[u32],
    plan: &Plan,
    settings: &Settings,
    listen: impl FnMut(Step) -> ControlFlow<()>,
) -> Result<Generation> {
    let prompts = TokenRows::new(vec![prompt.to_vec()])?;
    let mut rows = generate_batch(model, &prompts, plan, settings, listen)?;
    rows.pop().ok_or_else(|| Error::Generation("nothing was generated".into()))
}

/// Generates after each of `prompts`, all together: each step computes one position of every prompt that goes on.
///
/// Each row gives what it gives alone, whatever the lengths; row `i` draws with the seed `settings.sampling.seed + i`. A
/// plan counts positions in each row by itself. `listen` hears of each token of each row, and ends all.
pub fn generate_batch(
    model: &Model,
    prompts: &TokenRows,
    plan: &Plan,
    settings: &Settings,
    mut listen: impl FnMut(Step) -> ControlFlow<()>,
) -> Result<Vec<Generation>> {
    settings.sampling.check()?;
    if settings.stop.iter().any(String::is_empty) {
        return Err(Error::Generation("an empty stop text would end every generation".into()));
    }
    if !settings.stop.is_empty() {
        model.tokenizer()?;
    }
    // The last position computed is the one read, at every step; captures of logits still see all of them.
    let prepared = Prepared::new(model.sites(), plan)?.reading_last();
    if prepared.needs_graph() {
        return Err(Error::Generation(
            "a plan that asks for gradients runs on whole sequences, not in generation".into(),
        ));
    }
    let mut rows = (0..prompts.rows())
        .map(|row| Row::new(model, &prompts.ids()[row], Frame::of_row(prompts, row), settings))
        .collect::<Result<Vec<_>>>()?;
    loop {
        rows.iter_mut().for_each(|row| row.finish_if_full(model, settings));
        let mut going: Vec<&mut Row> = rows.iter_mut().filter(|row| row.finish.is_none()).collect();
        if going.is_empty() {
            break;
        }
        let (tokens, frames): (Vec<Vec<u32>>, Vec<Frame>) = going.iter().map(|row| row.next()).unzip();
        let caches = going.iter_mut().filter_map(|row| row.cache.as_mut()).collect::<Vec<_>>();
        let caches = (settings.caching == Caching::On).then_some(caches);
        let runs = model.decoder.forward(&tokens, &prepared, &frames, caches)?;
        for (row, run) in going.into_iter().zip(runs) {
            row.step(model, run, settings, &mut listen)?;
        }
        if rows.iter().any(|row| row.finish == Some(Finish::Interrupted)) {
            rows.iter_mut().for_each(|row| row.finish = row.finish.or(Some(Finish::Interrupted)));
        }
    }
    for row in &mut rows {
        let (number, token) = (row.frame.batch.first, *row.sequence.last().unwrap_or(&0));
        if let Some(rest) = row.text.flush() {
            let _ = listen(Step { row: number, token, text: rest });
        }
    }
    rows.into_iter().map(|row| row.generation(model.sites())).collect()
}

/// One prompt and how far it is.
struct Row<'a> {
    /// Prompt and generated tokens.
    sequence: Vec<u32>,
    /// The frame of the prompt.
    frame: Frame,
    /// How many positions are in the cache.
    done: usize,
    cache: Option<Cache>,
    sampler: Sampler,
    text: TextStream<'a>,
    captured: Vec<Captured>,
    finish: Option<Finish>,
}

impl<'a> Row<'a> {
    fn new(model: &'a Model, prompt: &[u32], frame: Frame, settings: &'a Settings) -> Result<Self> {
        let spec = &model.decoder.spec;
        let capacity = spec.context.min(prompt.len().saturating_add(settings.max_tokens));
        let seed = settings.sampling.seed.wrapping_add(frame.batch.first as u64);
        Ok(Self {
            sequence: prompt.to_vec(),
            frame,
            done: 0,
            cache: (settings.caching == Caching::On).then(|| Cache::new(spec, capacity)),
            sampler: Sampler::new(&Sampling { seed, ..settings.sampling.clone() }),
            text: TextStream::new(model, prompt, &settings.stop)?,
            captured: Vec::new(),
            finish: None,
        })
    }

    fn finish_if_full(&mut self, model: &Model, settings: &Settings) {
        let generated = self.sequence.len() - self.frame.prompt;
        if self.finish.is_none() && generated == settings.max_tokens {
            self.finish = Some(Finish::Length);
        }
        if self.finish.is_none() && generated > 0 && self.sequence.len() >= model.decoder.spec.context {
            self.finish = Some(Finish::Context);
        }
    }

    /// The tokens to be computed next, and where they are.
    fn next(&self) -> (Vec<u32>, Frame) {
        let tokens = self.sequence[self.done..].to_vec();
        let frame = Frame { offset: self.done, length: tokens.len(), grows: true, ..self.frame };
        (tokens, frame)
    }

    /// Takes the token that a run gives.
    fn step(
        &mut self,
        model: &Model,
        run: Run,
        settings: &Settings,
        listen: &mut impl FnMut(Step) -> ControlFlow<()>,
    ) -> Result<()> {
        match settings.caching {
            Caching::On => {
                self.done = self.sequence.len();
                self.captured.push(run.captured);
            }
            Caching::Off => self.captured = vec![run.captured],
        }
        let token = self.sampler.choose(&last_row(&run.outputs)?)?;
        self.sequence.push(token);
        let ends = settings.stop_at_end_token && model.end_tokens.contains(&token);
        let stopped = self.text.push(&self.sequence)?;
        let heard = listen(Step { row: self.frame.batch.first, token, text: self.text.fresh() });
        self.finish = match (ends, stopped, heard) {
            (true, ..) => Some(Finish::EndToken),
            (_, true, _) => Some(Finish::Stop),
            (.., ControlFlow::Break(())) => Some(Finish::Interrupted),
            _ => None,
        };
        Ok(())
    }

    fn generation(self, sites: &Sites) -> Result<Generation> {
        Ok(Generation {
            tokens: self.sequence[self.frame.prompt..].to_vec(),
            text: self.text.finish(),
            finish: self.finish.unwrap_or(Finish::Length),
            captured: join(sites, self.captured)?,
        })
    }
}

fn last_row(logits: &Tensor) -> Result<Vec<f32>> {
    let (_, positions, _) = logits.dims3()?;
    Ok(logits.narrow(1, positions - 1, 1)?.flatten_all()?.to_vec1()?)
}

/// Joins the captures of successive steps along their position axis; shorter key axes are filled with zeros.
fn join(sites: &Sites, steps: Vec<Captured>) -> Result<Captured> {
    let mut joined = Captured::default();
    let Some(first) = steps.first() else { return Ok(joined) };
    for (name, _) in first.iter() {
        let site = sites.get(sites.resolve_one(name)?);
        let parts = steps.iter().map(|step| step.get(name).cloned()).collect::<endoscope_net::Result<Vec<_>>>()?;
        let along = site.position_axis().and_then(|axis| site.axis(axis)).unwrap_or(1);
        let mut parts: Vec<Tensor> = parts.into_iter().filter(|part| part.elem_count() > 0).collect();
        if let Some(keys) = site.axis(AxisName::Key) {
            let most = parts.iter().map(|part| part.dims()[keys]).max().unwrap_or(0);
            for part in &mut parts {
                let missing = most - part.dims()[keys];
                if missing > 0 {
                    *part = part.pad_with_zeros(keys, 0, missing)?;
                }
            }
        }
        let activation = match parts.as_slice() {
            [] => first.get(name)?.clone(),
            parts => Tensor::cat(parts, along)?,
        };
        joined.insert(name.to_string(), activation);
    }
    Ok(joined)
}

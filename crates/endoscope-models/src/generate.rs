//! Generation: one token after another, with a plan applied to prompt and generated positions.
//!
//! What a position in a plan means is said at [`endoscope_net::Index`]: the same position whether the sequence is
//! computed token by token with the cache or anew at every step. Keys and values enter the cache as edited.

use std::ops::ControlFlow;

use candle_core::Tensor;
use endoscope_net::{AxisName, Captured, Frame, Plan, Prepared, Sites, TokenRows};

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::sampling::{Sampler, Sampling};

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

/// What was generated.
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
    mut listen: impl FnMut(Step) -> ControlFlow<()>,
) -> Result<Generation> {
    settings.sampling.check()?;
    if settings.stop.iter().any(String::is_empty) {
        return Err(Error::Generation("an empty stop text would end every generation".into()));
    }
    if !settings.stop.is_empty() {
        model.tokenizer()?;
    }
    let decoder = &model.decoder;
    let sites = model.sites();
    // The last position computed is the one read, at every step; captures of logits still see all of them.
    let prepared = Prepared::new(sites, plan)?.reading_last();
    let context = decoder.spec.context;
    let capacity = context.min(prompt.len().saturating_add(settings.max_tokens));
    let mut cache = Cache::new(&decoder.spec, capacity);
    let mut sampler = Sampler::new(&settings.sampling);
    let mut text = TextStream::new(model, prompt, &settings.stop)?;
    let (mut sequence, mut done) = (prompt.to_vec(), 0);
    let mut captured: Vec<Captured> = Vec::new();
    let finish = loop {
        let generated = sequence.len() - prompt.len();
        if generated == settings.max_tokens {
            break Finish::Length;
        }
        if sequence.len() > context.saturating_sub(1) && generated > 0 {
            break Finish::Context;
        }
        let rows = TokenRows::new(vec![sequence[done..].to_vec()])?;
        let frame = Frame { rows: 1, prompt: prompt.len(), offset: done, length: rows.length(), grows: true };
        let cache = (settings.caching == Caching::On).then_some(&mut cache);
        let run = decoder.forward(&rows, &prepared, frame, cache)?;
        match settings.caching {
            Caching::On => {
                done = sequence.len();
                captured.push(run.captured);
            }
            Caching::Off => captured = vec![run.captured],
        }
        let token = sampler.choose(&last_row(&run.outputs)?)?;
        sequence.push(token);
        let ends = settings.stop_at_end_token && model.end_tokens.contains(&token);
        let stopped = text.push(&sequence)?;
        let heard = listen(Step { token, text: text.fresh() });
        if ends {
            break Finish::EndToken;
        }
        if stopped {
            break Finish::Stop;
        }
        if heard.is_break() {
            break Finish::Interrupted;
        }
    };
    if let Some(rest) = text.flush() {
        let _ = listen(Step { token: *sequence.last().unwrap_or(&0), text: rest });
    }
    let captured = join(sites, captured)?;
    Ok(Generation { tokens: sequence[prompt.len()..].to_vec(), text: text.finish(), finish, captured })
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

/// Text as it becomes certain: no half characters, nothing that may still turn into a stop text.
struct TextStream<'a> {
    model: &'a Model,
    prompt_text: String,
    stop: &'a [String],
    text: String,
    emitted: usize,
    fresh: (usize, usize),
}

impl<'a> TextStream<'a> {
    fn new(model: &'a Model, prompt: &[u32], stop: &'a [String]) -> Result<Self> {
        let prompt_text = match &model.tokenizer {
            Some(tokenizer) => tokenizer.decode(prompt)?,
            None => String::new(),
        };
        Ok(Self { model, prompt_text, stop, text: String::new(), emitted: 0, fresh: (0, 0) })
    }

    /// Reads the whole sequence again (a token's text may depend on its neighbours); true if a stop text appeared.
    fn push(&mut self, sequence: &[u32]) -> Result<bool> {
        let Some(tokenizer) = &self.model.tokenizer else { return Ok(false) };
        let whole = tokenizer.decode(sequence)?;
        self.text = match whole.strip_prefix(&self.prompt_text) {
            Some(text) => text.to_string(),
            // The prompt ended in half a character: what follows the common part is new.
            None => {
                let common = whole.char_indices().zip(self.prompt_text.chars()).find(|((_, a), b)| a != b);
                common.map_or(String::new(), |((at, _), _)| whole[at..].to_string())
            }
        };
        let stop = self.stop.iter().filter_map(|stop| self.text.find(stop.as_str())).min();
        let certain = match stop {
            Some(at) => {
                self.text.truncate(at);
                at
            }
            None => self.certain(),
        };
        self.fresh = (self.emitted.min(certain), certain);
        self.emitted = self.emitted.max(certain);
        Ok(stop.is_some())
    }

    fn certain(&self) -> usize {
        let whole_characters = self.text.trim_end_matches('\u{FFFD}').len();
        let text = &self.text[..whole_characters];
        let held = |stop: &String| {
            let lengths = stop.char_indices().map(|(at, _)| at).skip(1);
            lengths.filter(|&length| text.ends_with(&stop[..length])).max().unwrap_or(0)
        };
        whole_characters - self.stop.iter().map(held).max().unwrap_or(0)
    }

    fn fresh(&self) -> &str {
        self.text.get(self.fresh.0..self.fresh.1).unwrap_or("")
    }

    fn flush(&mut self) -> Option<&str> {
        let rest = self.text.get(self.emitted..).filter(|rest| !rest.is_empty())?;
        self.emitted = self.text.len();
        Some(rest)
    }

    fn finish(self) -> Option<String> {
        self.model.tokenizer.as_ref().map(|_| self.text)
    }
}

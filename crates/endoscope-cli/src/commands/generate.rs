//! `endoscope generate`: text, streamed as it comes, with a plan applied to prompt and generated positions.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;
use endoscope_models::{Caching, Generation, Model, Sampling, Settings, generate, generate_batch};
use endoscope_net::{Padding, Plan, TokenRows};
use endoscope_report::check_destination;
use serde_json::json;

use super::capture::write_tensors;
use crate::chat::ChatArguments;
use crate::input::{Asked, BosArguments, ModelArgument, Prompt, Words};
use crate::output::Output;
use crate::progress;

#[derive(Debug, Args)]
pub struct Generate {
    #[command(flatten)]
    model: ModelArgument,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    chat: ChatArguments,
    #[command(flatten)]
    bos: BosArguments,
    /// How many tokens at most.
    #[arg(long, default_value_t = 100)]
    max_tokens: usize,
    /// 0 always takes the likeliest token.
    #[arg(long, default_value_t = 0.)]
    temperature: f64,
    /// Choose among the k likeliest.
    #[arg(long)]
    top_k: Option<usize>,
    /// Choose among the likeliest whose probability reaches p.
    #[arg(long)]
    top_p: Option<f64>,
    /// Seed of the random choices.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End before this text appears; may be given several times.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Go on after the model's end-of-sequence token.
    #[arg(long)]
    ignore_end_token: bool,
    /// Compute the whole sequence at every step: slow, the reference for the cache.
    #[arg(long)]
    no_cache: bool,
    /// A plan to apply.
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// Where to write what the plan captures.
    #[arg(long, value_name = "FILE.safetensors")]
    out: Option<PathBuf>,
}

/// What is continued; exactly one.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// A text.
    #[arg(long, allow_hyphen_values = true)]
    prompt: Option<String>,
    /// Token ids, separated by commas.
    #[arg(long, value_name = "1,2,3")]
    tokens: Option<String>,
    /// A prompt file; its clean prompts are continued together, each as it would be alone with the seed plus its number.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// A chat: a JSON file with a list of messages, or with `messages`, `tools` and more; - is standard input.
    #[arg(long, value_name = "FILE.json")]
    chat: Option<PathBuf>,
    /// A chat of one message: what the user says.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    user: Option<String>,
}

impl Generate {
    pub fn run(self, output: &mut Output) -> Result<()> {
        // Before any text is shown.
        self.out.as_ref().map(check_destination).transpose()?;
        let model = self.model.open()?;
        let Source { prompt, tokens, prompts, chat, user } = &self.source;
        let words = Words {
            text: prompt.as_deref(),
            tokens: tokens.as_deref(),
            prompts: prompts.as_deref(),
            chat: chat.as_deref(),
            user: user.as_deref(),
        };
        let asked = Asked::read(&model, words, self.bos, &self.chat, output)?;
        let plan = asked.plan(self.plan.as_deref())?;
        if !plan.captures.is_empty() && self.out.is_none() {
            bail!("the plan captures activations; say with --out FILE.safetensors where to write them");
        }
        let settings = Settings {
            max_tokens: self.max_tokens,
            sampling: Sampling { temperature: self.temperature, top_k: self.top_k, top_p: self.top_p, seed: self.seed },
            stop: self.stop.clone(),
            stop_at_end_token: !self.ignore_end_token,
            caching: if self.no_cache { Caching::Off } else { Caching::On },
        };
        match asked {
            Asked::One(prompt) => self.one(&model, &prompt, &plan, &settings, output),
            Asked::Several(rows) => self.several(&model, rows, &plan, &settings, output),
        }
    }

    fn one(&self, model: &Model, prompt: &Prompt, plan: &Plan, settings: &Settings, output: &mut Output) -> Result<()> {
        let mut failure = None;
        let has_text = model.tokenizer.is_some();
        let generation = generate(model, &prompt.ids, plan, settings, |step| {
            let piece = if has_text { step.text.to_string() } else { format!("{} ", step.token) };
            match output.text(&piece) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failure = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        output.line("")?;
        if let Some(path) = &self.out {
            let captured = generation.captured.iter().map(|(site, activation)| (site.to_string(), activation.clone()));
            write_tensors(path, &captured.collect::<Vec<_>>())?;
        }
        output.document(&json!({
            "prompt_tokens": prompt.ids,
            "prompt_text": prompt.chat.as_ref().map(|chat| &chat.text),
            "messages": prompt.messages(),
            "prepended": prompt.prepended,
            "tokens": generation.tokens,
            "text": generation.text,
            "finish": generation.finish,
            "seed": self.seed,
        }))
    }

    /// Continues every prompt of a file; what is shown waits for the last, since rows grow together.
    fn several(
        &self,
        model: &Model,
        rows: Vec<Vec<u32>>,
        plan: &Plan,
        settings: &Settings,
        output: &mut Output,
    ) -> Result<()> {
        let prompts = TokenRows::padded(rows, Padding::default())?;
        let bar = progress::bar((settings.max_tokens * prompts.rows()) as u64, "generating");
        let generations = generate_batch(model, &prompts, plan, settings, |_| {
            bar.inc(1);
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        let generations = generations?;
        for (row, generation) in generations.iter().enumerate() {
            let ids = || generation.tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" ");
            let text = generation.text.clone().unwrap_or_else(ids);
            output.line(&format!("{row}: {}", text.replace('\n', "\\n")))?;
        }
        if let Some(path) = &self.out {
            let named = |(row, generation): (usize, &Generation)| {
                let captured = generation.captured.iter();
                captured.map(|(site, activation)| (format!("{row}/{site}"), activation.clone())).collect::<Vec<_>>()
            };
            write_tensors(path, &generations.iter().enumerate().flat_map(named).collect::<Vec<_>>())?;
        }
        let row = |(row, generation): (usize, &Generation)| {
            json!({
                "prompt_tokens": prompts.ids()[row],
                "tokens": generation.tokens,
                "text": generation.text,
                "finish": generation.finish,
                "seed": settings.sampling.seed.wrapping_add(row as u64),
            })
        };
        output.document(&json!({ "rows": generations.iter().enumerate().map(row).collect::<Vec<_>>() }))
    }
}

//! `endoscope capture`: activations of chosen sites, as a safetensors file whose tensors have the sites' full names.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use candle_core::{DType, Device, Tensor};
use clap::Args;
use endoscope_models::Model;
use endoscope_net::{Index, Inputs, Network, TokenRows};
use endoscope_report::{check_destination, write_atomically};
use serde_json::json;

use crate::chat::{self, ChatArguments};
use crate::input::{Asked, BosArguments, ModelArgument, PaddingArgument, Words};
use crate::output::Output;

#[derive(Debug, Args)]
pub struct Capture {
    #[command(flatten)]
    model: ModelArgument,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    chat: ChatArguments,
    #[command(flatten)]
    bos: BosArguments,
    /// Names, shorthands or globs, separated by commas: `resid_post.*,pattern.0,hook_logits`.
    #[arg(long, value_name = "GLOB[,GLOB]", required = true)]
    sites: String,
    /// The positions (of attention matrices, the query positions) that are kept: `last`, `2..5`, `last_user`,
    /// `assistant[0]`, `token:" Paris"`, or several joined by `+`.
    #[arg(long, value_name = "POSITIONS", allow_hyphen_values = true)]
    positions: Option<String>,
    /// Where rows shorter than the longest are filled with zeros, in what is written.
    #[arg(long, value_enum, default_value = "right")]
    padding: PaddingArgument,
    /// A plan whose edits are made (and whose captures are added).
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// The file to write.
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
}

/// What is run; exactly one.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// A text.
    #[arg(long, allow_hyphen_values = true)]
    text: Option<String>,
    /// Token ids, separated by commas.
    #[arg(long, value_name = "1,2,3")]
    tokens: Option<String>,
    /// A prompt file; its clean prompts, which may differ in length.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// A chat: a JSON file with a list of messages, or with `messages`, `tools` and more; - is standard input.
    #[arg(long, value_name = "FILE.json")]
    chat: Option<PathBuf>,
    /// A chat of one message: what the user says.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    user: Option<String>,
}

impl Capture {
    pub fn run(self, output: &mut Output) -> Result<()> {
        check_destination(&self.out)?;
        let model = self.model.open()?;
        let Source { text, tokens, prompts, chat, user } = &self.source;
        let words = Words {
            text: text.as_deref(),
            tokens: tokens.as_deref(),
            prompts: prompts.as_deref(),
            chat: chat.as_deref(),
            user: user.as_deref(),
        };
        let asked = Asked::read(&model, words, self.bos, &self.chat, output)?;
        let mut plan = asked.plan(self.plan.as_deref())?;
        let tokens = asked.tokens();
        let positions = self.positions.as_deref().map(|written| chat::index(written, tokens.as_ref())).transpose()?;
        for capture in self.captures(&model, positions.as_ref())? {
            plan = plan.capture(capture);
        }
        if plan.captures.is_empty() {
            bail!("--sites {:?} names no site; `inspect` lists them", self.sites);
        }
        let (rows, messages) = match &asked {
            Asked::One(prompt) => (vec![prompt.ids.clone()], prompt.messages()),
            Asked::Several(rows) => (rows.clone(), &[][..]),
        };
        let rows = TokenRows::padded(rows, self.padding.into())?;
        let run = model.decoder.run(&Inputs::Tokens(rows.clone()), &plan)?;
        let tokens = rows.tensor(0, &Device::Cpu)?.to_dtype(DType::I64)?;
        let mut tensors = vec![("tokens".to_string(), tokens)];
        if rows.is_ragged() {
            tensors.push(("attention_mask".into(), rows.mask(&Device::Cpu)?.to_dtype(DType::I64)?));
        }
        tensors.extend(run.captured.iter().map(|(site, activation)| (site.to_string(), activation.clone())));
        write_tensors(&self.out, &tensors)?;
        let shapes = tensors.iter().map(|(name, tensor)| (name.clone(), json!(tensor.dims())));
        output.document(&json!({
            "out": self.out.to_string_lossy(),
            "tokens": rows.ids(),
            "padding": rows.is_ragged().then(|| rows.padding()),
            "messages": messages,
            "positions": positions,
            "tensors": shapes.collect::<serde_json::Map<_, _>>(),
        }))?;
        for (name, tensor) in &tensors {
            output.line(&format!("{name:<36} {:?}", tensor.dims()))?;
        }
        output.line(&format!("written to {}", self.out.display()))
    }

    /// What --sites and --positions ask for. Where positions are chosen, each site is a capture of its own, since sites
    /// carry them on different axes.
    fn captures(&self, model: &Model, positions: Option<&Index>) -> Result<Vec<endoscope_net::Capture>> {
        let patterns = split_sites(&self.sites);
        let Some(positions) = positions else {
            return Ok(patterns.into_iter().map(endoscope_net::Capture::new).collect());
        };
        let mut captures = Vec::new();
        for pattern in &patterns {
            for id in model.sites().resolve(pattern)? {
                let site = model.sites().get(id);
                let axis = site.position_axis().with_context(|| format!("site `{}` has no positions", site.name))?;
                captures.push(endoscope_net::Capture::new(&site.name).at(axis, positions.clone()));
            }
        }
        Ok(captures)
    }
}

/// Splits at commas that are not inside braces: `{q,k}.0,z.1` names two patterns.
pub fn split_sites(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0usize;
    for character in text.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(character);
        }
    }
    parts.into_iter().map(|part| part.trim().to_string()).filter(|part| !part.is_empty()).collect()
}

/// Writes tensors whole or not at all.
pub fn write_tensors(path: &std::path::Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let contiguous = tensors.iter().map(|(name, tensor)| Ok((name.as_str(), tensor.contiguous()?)));
    let contiguous = contiguous.collect::<candle_core::Result<Vec<_>>>()?;
    debug_assert!(contiguous.iter().all(|(_, tensor)| matches!(tensor.dtype(), DType::F32 | DType::I64)));
    let bytes = safetensors::serialize(contiguous.iter().map(|(name, tensor)| (*name, tensor)), None)?;
    Ok(write_atomically(path, |file| file.write_all(&bytes))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_inside_braces_belong_to_the_glob() {
        assert_eq!(split_sites("{q,k}.0, z.1,,hook_logits"), ["{q,k}.0", "z.1", "hook_logits"]);
        assert!(split_sites(" , ").is_empty());
    }
}

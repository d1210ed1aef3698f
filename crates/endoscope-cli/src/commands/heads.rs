//! `endoscope heads`: where every head looks, and what it takes from there.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use endoscope_causal::{AllLooks, HeadLooks, Looks, Progress, head_looks, repeated_tokens};
use endoscope_models::{Bos, Model};
use endoscope_report::{ColourScale, HashedFile, Report, RunDirectory, Section, Started, Table, labels};
use serde_json::json;

use crate::chat::ChatArguments;
use crate::input::{Asked, BosArguments, ModelArgument, Words};
use crate::output::Output;
use crate::progress;
use crate::provenance::{next_free, provenance};

/// A head that gives a place more than this share of its attention is named for it.
const ATTENDS: f64 = 0.4;

#[derive(Debug, Args)]
pub struct Heads {
    #[command(flatten)]
    model: ModelArgument,
    #[command(flatten)]
    source: Source,
    #[command(flatten)]
    chat: ChatArguments,
    /// How many rows of random tokens that come twice, where no prompt is given [default: 16].
    #[arg(long, value_name = "N")]
    rows: Option<usize>,
    /// After how many tokens they come again; some rows have up to a quarter more [default: 24].
    #[arg(long, value_name = "N")]
    period: Option<usize>,
    /// Where the random tokens come from [default: 0].
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    #[command(flatten)]
    bos: BosArguments,
    /// The run directory to write; must not exist [default: runs/heads, or the next free runs/heads-2 …].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What is run: at most one; without any, random tokens that come twice.
#[derive(Debug, Args)]
#[group(required = false, multiple = false)]
struct Source {
    /// A text.
    #[arg(long, allow_hyphen_values = true)]
    text: Option<String>,
    /// Token ids, separated by commas.
    #[arg(long, value_name = "1,2,3")]
    tokens: Option<String>,
    /// A prompt file; its clean prompts.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// A chat: a JSON file.
    #[arg(long, value_name = "FILE.json")]
    chat: Option<PathBuf>,
    /// A chat of one message: what the user says.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    user: Option<String>,
}

impl Heads {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let model = self.model.open()?;
        let (rows, what) = self.prompts(&model, output)?;
        // Before the work, so that an existing directory is found out at once.
        let directory = RunDirectory::create(self.out.clone().unwrap_or_else(|| next_free("heads")))?;
        let bar = progress::bar(rows.len() as u64, "watching heads");
        let watch = |progress: Progress| {
            bar.set_position(progress.done as u64);
            ControlFlow::Continue(())
        };
        let looks = head_looks(&model.decoder, &rows, watch);
        bar.finish_and_clear();
        let report = report(&model, &looks?, &what)?;
        let mut provenance = provenance(&started, &model, &[])?;
        match &self.source.prompts {
            Some(path) => provenance.files.push(HashedFile::read("prompts", path)?),
            None => _ = provenance.seeds.insert("random tokens".into(), self.seed.unwrap_or(0)),
        }
        let plan = json!({"verb": "heads", "model": model.directory.to_string_lossy(), "rows": rows});
        directory.write_json("plan.json", &plan)?;
        output.finish(directory, &provenance, &report)
    }

    /// The rows, and what they are in words.
    fn prompts(&self, model: &Model, output: &Output) -> Result<(Vec<Vec<u32>>, String)> {
        let Source { text, tokens, prompts, chat, user } = &self.source;
        let words = Words {
            text: text.as_deref(),
            tokens: tokens.as_deref(),
            prompts: prompts.as_deref(),
            chat: chat.as_deref(),
            user: user.as_deref(),
        };
        let given = [text, tokens, user].into_iter().any(Option::is_some) || prompts.is_some() || chat.is_some();
        if !given {
            self.chat.refuse()?;
            return self.random(model);
        }
        if self.rows.is_some() || self.period.is_some() || self.seed.is_some() {
            bail!("--rows, --period and --seed make random tokens; there are prompts already");
        }
        let rows = match Asked::read(model, words, self.bos, &self.chat, output)? {
            Asked::One(prompt) => vec![prompt.ids],
            Asked::Several(rows) => rows,
        };
        let what = format!("{} prompt{}", rows.len(), if rows.len() == 1 { "" } else { "s" });
        Ok((rows, what))
    }

    fn random(&self, model: &Model) -> Result<(Vec<Vec<u32>>, String)> {
        let (prefix, vocabulary) = plain_vocabulary(model, self.bos.bos())?;
        let (rows, period, seed) = (self.rows.unwrap_or(16), self.period.unwrap_or(24), self.seed.unwrap_or(0));
        if rows == 0 {
            bail!("--rows 0 leaves nothing to look at");
        }
        let what = format!("{rows} rows of random tokens that come twice, after {period} or some more");
        Ok((repeated_tokens(&vocabulary, &prefix, rows, period, seed)?, what))
    }
}

/// What random prompts are made of: what stands before them, and the tokens that are not special.
pub fn plain_vocabulary(model: &Model, put_before: Bos) -> Result<(Vec<u32>, Vec<u32>)> {
    let bos = model.tokenizer.as_ref().and_then(|tokenizer| tokenizer.bos.as_ref().map(|(id, _)| *id));
    let prepends = model.tokenizer.as_ref().is_some_and(|tokenizer| tokenizer.prepends_bos);
    let prefix: Vec<u32> = match put_before {
        Bos::Omit => Vec::new(),
        Bos::AsConfigured => bos.filter(|_| prepends).into_iter().collect(),
        Bos::Prepend => vec![bos.context("--bos: this model has no beginning-of-sequence token")?],
    };
    let unknown = model.tokenizer.as_ref().and_then(|tokenizer| tokenizer.unknown());
    let special = |id: &u32| bos == Some(*id) || unknown == Some(*id) || model.end_tokens.contains(id);
    let vocabulary: Vec<u32> = (0..model.spec().vocabulary as u32).filter(|id| !special(id)).collect();
    Ok((prefix, vocabulary))
}

/// The page of heads.
fn report(model: &Model, looks: &AllLooks, what: &str) -> Result<Report> {
    let named: Vec<String> = (0..looks.uniform.named().len())
        .filter_map(|place| {
            let (name, _) = looks.uniform.named()[place];
            let share = |head: &HeadLooks| head.pattern.named()[place].1.unwrap_or(0.);
            let mut heads: Vec<&HeadLooks> = looks.heads.iter().filter(|head| share(head) > ATTENDS).collect();
            heads.sort_by(|a, b| share(b).total_cmp(&share(a)));
            let shown = |head: &&HeadLooks| format!("{}.{} ({:.2})", head.layer, head.head, share(head));
            let list = heads.iter().take(12).map(shown).collect::<Vec<_>>().join(", ");
            let more = if heads.len() > 12 { format!(" and {} more", heads.len() - 12) } else { String::new() };
            (!heads.is_empty()).then(|| format!("{name}: {list}{more}"))
        })
        .collect();
    let summary = format!(
        "Where the {} heads of {} look, on {what}. {}",
        looks.heads.len(),
        model.directory.display(),
        match named.is_empty() {
            true => format!("No head gives any of these places more than {ATTENDS} of its attention."),
            false => format!("Above {ATTENDS}: {}. L.H is head H of layer L.", named.join("; ")),
        }
    );
    let mut report = Report::new("Where heads look", "heads", summary);
    let layers: Vec<usize> = {
        let mut layers: Vec<usize> = looks.heads.iter().map(|head| head.layer).collect();
        layers.dedup();
        layers
    };
    let heads = looks.heads.iter().map(|head| head.head + 1).max().unwrap_or(0);
    let places = looks.uniform.named().map(|(name, _)| name);
    let table = |description: &str, of: fn(&HeadLooks) -> Looks| {
        let find =
            |layer: usize, head: usize| looks.heads.iter().find(|found| found.layer == layer && found.head == head);
        let mut values = Vec::new();
        for place in 0..places.len() {
            for &layer in &layers {
                values.extend((0..heads).map(|head| find(layer, head).and_then(|found| of(found).named()[place].1)));
            }
        }
        let axes =
            [("looks at", labels(places)), ("layer", labels(layers.iter().copied())), ("head", labels(0..heads))];
        Table::with_missing(description, axes, values)
    };
    report.tables.insert("pattern".into(), table("share of attention, from 0 to 1", |head| head.pattern)?);
    let weighted = "share of attention times the norm of what the head writes for each key, from 0 to 1";
    report.tables.insert("weighted".into(), table(weighted, |head| head.weighted)?);
    let uniform = looks.uniform.named().map(|(_, share)| share).to_vec();
    let described = "what a head that looks everywhere alike scores on the same prompts";
    report.tables.insert("uniform".into(), Table::with_missing(described, [("looks at", labels(places))], uniform)?);
    report.sections.push(Section::HeatMap {
        heading: Some("Which heads look where".into()),
        table: "pattern".into(),
        alternatives: vec!["weighted".into()],
        scale: ColourScale::UNIT,
        caption: "Mean share of attention: to the token before; to earlier occurrences of the same token; to what followed \
                  them; to the first token; to the token itself; and how much of the pattern the distance alone explains. Weighted: the same of \
                  what each key gives, so that a head which rests on a key without taking anything from it scores low."
            .into(),
    });
    report.sections.push(Section::Table {
        heading: Some("The control".into()),
        table: "uniform".into(),
        caption: "A score near these says nothing.".into(),
    });
    Ok(report)
}

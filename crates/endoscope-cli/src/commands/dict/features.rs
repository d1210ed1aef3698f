//! `endoscope dict features`: where features are active, in which words, what they write, and what a language model makes of them.

use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use endoscope_dictionary::evaluate::largest_cosines;
use endoscope_dictionary::features::interpret::{Interpretation, Passage, interpret};
use endoscope_dictionary::features::neuronpedia::{Source, activation_line, feature_line};
use endoscope_dictionary::features::{
    Activation, Context as Words, Example, Gather, Gathered, LogitWeights, Record, contexts, gather, logit_weights,
    write_delphi,
};
use endoscope_dictionary::{Dictionary, Matrix};
use endoscope_models::Model;
use endoscope_models::views::WeightName;
use endoscope_report::{HashedFile, Report, RunDirectory, Section, Started};
use serde::Serialize;
use serde_json::json;

use super::endpoint::Endpoint;
use super::source::{ModelSource, files, open_one};
use crate::output::Output;
use crate::progress;
use crate::provenance::{next_free, provenance};

#[derive(Debug, Args)]
pub struct Features {
    #[command(flatten)]
    source: ModelSource,
    /// The dictionary.
    #[arg(long, value_name = "PATH")]
    dictionary: PathBuf,
    /// A feature; several may be given [default: the ten with the largest activations].
    #[arg(long = "feature", value_name = "N")]
    features: Vec<usize>,
    /// How many of its strongest tokens are shown.
    #[arg(long, default_value_t = 10)]
    top: usize,
    /// How many tokens on either side.
    #[arg(long, default_value_t = 10)]
    around: usize,
    /// Also write every activation as delphi's cache, there.
    #[arg(long, value_name = "DIR")]
    delphi: Option<PathBuf>,
    /// Also write lines that Neuronpedia imports, there.
    #[arg(long, value_name = "DIR")]
    neuronpedia: Option<PathBuf>,
    /// Have features explained, and the explanations scored, by a language model there: `http://127.0.0.1:8080/v1`. Its key is
    /// read from OPENAI_API_KEY.
    #[arg(long, value_name = "URL", requires = "interpreter")]
    endpoint: Option<String>,
    /// That language model's name.
    #[arg(long, value_name = "NAME", requires = "endpoint")]
    interpreter: Option<String>,
    /// The run directory to write; must not exist [default: runs/dict-features, or the next free].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// All that is told of one feature.
#[derive(Debug, Serialize)]
struct Page {
    #[serde(flatten)]
    record: Record,
    density: f64,
    logits: Option<LogitWeights>,
    neighbours: Vec<(usize, f32)>,
    contexts: Vec<Words>,
    interpretation: Option<Interpretation>,
}

impl Features {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let model = self.source.model.open()?;
        let dictionary = open_one(&self.dictionary)?;
        let rows = self.source.read_rows(&model)?;
        let directory = RunDirectory::create(self.out.clone().unwrap_or_else(|| next_free("dict-features")))?;
        let (gathered, all) = self.gather(&model, &dictionary, &rows)?;
        let chosen = self.chosen(&gathered);
        let examples: Vec<(usize, Vec<Example>)> =
            chosen.iter().map(|record| (record.feature, record.top.clone())).collect();
        let words = contexts(&model.decoder, &dictionary, &rows, &examples, self.around)?;
        let unembedding = unembedding(&model, &dictionary)?;
        let mut pages = Vec::new();
        for (record, contexts) in chosen.into_iter().zip(words) {
            let logits = unembedding.as_ref().map(|w| logit_weights(&dictionary, record.feature, w, 10)).transpose()?;
            let neighbours = neighbours(&dictionary, record.feature)?;
            let density = record.fired as f64 / gathered.tokens.max(1) as f64;
            let interpretation = self.interpretation(&model, &dictionary, &rows, &record, output)?;
            pages.push(Page { record, density, logits, neighbours, contexts, interpretation });
        }
        if let Some(folder) = &self.delphi {
            let site = self.site(&dictionary);
            let config = json!({
                "model_name": model.directory.to_string_lossy(), "batch_size": 8, "ctx_len": rows.first().map(Vec::len),
                "n_tokens": gathered.tokens, "n_splits": SPLITS,
            });
            write_delphi(folder, &site, dictionary.latents(), SPLITS, &all, &rows, &config)?;
        }
        if let Some(folder) = &self.neuronpedia {
            self.export(folder, &model, &dictionary, gathered.tokens, &pages)?;
        }
        directory.write_json("features.json", &json!({"tokens": gathered.tokens, "features": pages}))?;
        let report = self.report(&model, &dictionary, &gathered, &pages);
        let mut provenance = provenance(&started, &model, &[])?;
        provenance.files.extend(self.source.rows.file()?);
        for path in files(&self.dictionary)? {
            provenance.files.push(HashedFile::read("dictionary", &path)?);
        }
        output.finish(directory, &provenance, &report)
    }

    fn site(&self, dictionary: &Dictionary) -> String {
        dictionary.config().sites.join("+")
    }

    fn gather(&self, model: &Model, dictionary: &Dictionary, rows: &[Vec<u32>]) -> Result<(Gathered, Vec<Activation>)> {
        let asked = Gather {
            features: (!self.features.is_empty()).then(|| self.features.clone()),
            top: self.top,
            sampled: SHOWN + ASKED,
            seed: self.source.seed,
        };
        let bar = progress::bar(rows.len() as u64, "reading");
        let (mut all, mut row) = (Vec::new(), 0);
        let gathered = gather(&model.decoder, dictionary, rows, &asked, |count, codes| {
            if self.delphi.is_some() {
                let length = codes.latents.rows() / count.max(1);
                for at in 0..codes.latents.rows() {
                    let (columns, values) = codes.latents.row(at);
                    all.extend(columns.iter().zip(values).map(|(&feature, &activation)| Activation {
                        row: (row + at / length.max(1)) as u32,
                        position: (at % length.max(1)) as u32,
                        feature,
                        activation,
                    }));
                }
            }
            row += count;
            bar.inc(count as u64);
            ControlFlow::Continue(())
        });
        bar.finish_and_clear();
        Ok((gathered?, all))
    }

    /// The features asked for, or those with the largest activations.
    fn chosen(&self, gathered: &Gathered) -> Vec<Record> {
        let mut records = gathered.records.clone();
        if self.features.is_empty() {
            let most = |record: &Record| record.top.first().map_or(0., |example| example.activation);
            records.sort_by(|a, b| most(b).total_cmp(&most(a)).then(a.feature.cmp(&b.feature)));
            records.truncate(10);
            records.retain(|record| record.fired > 0);
        }
        records
    }

    fn interpretation(
        &self,
        model: &Model,
        dictionary: &Dictionary,
        rows: &[Vec<u32>],
        record: &Record,
        output: &Output,
    ) -> Result<Option<Interpretation>> {
        let (Some(url), Some(name)) = (&self.endpoint, &self.interpreter) else { return Ok(None) };
        let endpoint = Endpoint::new(url, name);
        let passages = |examples: Vec<Example>| -> Result<Vec<Passage>> {
            let words = contexts(&model.decoder, dictionary, rows, &[(record.feature, examples)], self.around)?;
            let passage = |words: Words| Passage {
                tokens: words.tokens.iter().map(|&token| model.label(token)).collect(),
                activations: words.activations,
            };
            Ok(words.into_iter().flatten().map(passage).collect())
        };
        let mut active = passages(record.sampled.clone())?;
        let shown = active.split_off(active.len().saturating_sub(SHOWN.min(active.len() / 2)));
        // Rows in which nothing was drawn, and then only those passages in which the feature is silent.
        let middle = |row: usize| Example { row: row as u32, position: (rows[row].len() / 2) as u32, activation: 0. };
        let used: Vec<u32> = record.sampled.iter().chain(&record.top).map(|example| example.row).collect();
        let free = (0..rows.len()).filter(|&row| !used.contains(&(row as u32)) && !rows[row].is_empty()).map(middle);
        let mut silent = passages(free.take(4 * ASKED).collect())?;
        silent.retain(|passage| passage.activations.iter().all(|&activation| activation <= 0.));
        silent.truncate(ASKED);
        if shown.is_empty() || active.is_empty() || silent.is_empty() {
            output.note(&format!(
                "feature {} is not explained: {} passages with it and {} without are too few",
                record.feature,
                shown.len() + active.len(),
                silent.len()
            ));
            return Ok(None);
        }
        let seed = self.source.seed ^ record.feature as u64;
        interpret(&endpoint, &shown, &active, &silent, seed).map(Some).context("while a feature was explained")
    }

    fn export(
        &self,
        folder: &std::path::Path,
        model: &Model,
        dictionary: &Dictionary,
        tokens: u64,
        pages: &[Page],
    ) -> Result<()> {
        let name = |path: &std::path::Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        let source = Source {
            model: name(&model.directory),
            source: name(&self.dictionary),
            set: name(&self.dictionary),
            creator: "endoscope".into(),
            hook_name: self.site(dictionary),
        };
        let label = |token| model.label(token);
        let (mut features, mut activations) = (String::new(), String::new());
        for page in pages {
            let line =
                feature_line(&source, &page.record, tokens, page.logits.as_ref(), &page.neighbours, label).to_string();
            features += &(line + "\n");
            for context in &page.contexts {
                activations += &(activation_line(&source, page.record.feature, context, label).to_string() + "\n");
            }
        }
        for (kind, lines) in [("features", features), ("activations", activations)] {
            let path = folder.join(kind).join("batch-0.jsonl");
            let parent = folder.join(kind);
            std::fs::create_dir_all(&parent).with_context(|| format!("cannot write {}", parent.display()))?;
            std::fs::write(&path, lines).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    fn report(&self, model: &Model, dictionary: &Dictionary, gathered: &Gathered, pages: &[Page]) -> Report {
        let summary = format!(
            "{} of the {} features of {} at {}, over {} tokens of {}.",
            pages.len(),
            dictionary.latents(),
            self.dictionary.display(),
            self.site(dictionary),
            gathered.tokens,
            model.directory.display()
        );
        let mut report = Report::new("Features", "dict-features", summary);
        for page in pages {
            report.sections.push(Section::Text {
                heading: Some(format!("Feature {}", page.record.feature)),
                body: described(page, model),
            });
        }
        report
    }
}

/// How many passages explain a feature, and on how many the explanation is scored.
const SHOWN: usize = 8;
const ASKED: usize = 16;
/// Files of delphi's cache.
const SPLITS: usize = 5;

fn described(page: &Page, model: &Model) -> String {
    let most = page.record.top.first().map_or(0., |example| example.activation);
    let mut lines = vec![format!("Active on {:.3} % of tokens, at most {most:.3}.", 100. * page.density)];
    if let Some(found) = &page.interpretation {
        lines.push(format!(
            "In words: {} (detection {:.2}, fuzzing {:.2}; chance is 0.50)",
            found.explanation, found.detection.balanced_accuracy, found.fuzzing.balanced_accuracy
        ));
    }
    if let Some(LogitWeights { top, bottom }) = &page.logits {
        let words = |words: &[(u32, f32)]| {
            let word = |&(token, weight): &(u32, f32)| format!("{:?} {weight:+.2}", model.label(token));
            words.iter().take(6).map(word).collect::<Vec<_>>().join(", ")
        };
        lines.push(format!("Raises {}; lowers {}.", words(top), words(bottom)));
    }
    let near = page.neighbours.iter().map(|(feature, cosine)| format!("{feature} ({cosine:.2})"));
    lines.push(format!("Nearest by decoder: {}.", near.collect::<Vec<_>>().join(", ")));
    for context in &page.contexts {
        let mut text = String::new();
        for (at, (&token, &activation)) in context.tokens.iter().zip(&context.activations).enumerate() {
            let word = model.label(token);
            match (at == context.example as usize, activation > 0.) {
                (true, _) => text += &format!("«{word}»({activation:.2})"),
                (false, true) => text += &format!("‹{word}›"),
                (false, false) => text += &word,
            }
        }
        lines.push(text.replace('\n', "↵"));
    }
    lines.join("\n\n")
}

fn neighbours(dictionary: &Dictionary, feature: usize) -> Result<Vec<(usize, f32)>> {
    let decoder = &dictionary.weights().decoder;
    let own = decoder.select([feature]);
    let cosines = largest_cosines(decoder, &own, false)?;
    let mut order: Vec<(usize, f32)> = cosines
        .into_iter()
        .enumerate()
        .map(|(at, (_, cosine))| (at, cosine))
        .filter(|&(at, _)| at != feature)
        .collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    order.truncate(5);
    Ok(order)
}

/// The unembedding `[vocabulary, d_model]`, if the dictionary writes to the residual stream.
fn unembedding(model: &Model, dictionary: &Dictionary) -> Result<Option<Matrix>> {
    if dictionary.d_out() != model.spec().d_model {
        return Ok(None);
    }
    let weight = model.decoder.weight(WeightName::parse("W_U")?)?;
    if weight.dims().len() != 2 {
        bail!("the unembedding is no matrix");
    }
    Ok(Some(Matrix::from_tensor(&weight.t()?.contiguous()?)?))
}

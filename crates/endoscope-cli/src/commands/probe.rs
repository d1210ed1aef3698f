//! `endoscope probe`: what can be read from each layer along a direction, with controls, and the directions.

pub mod data;
mod report;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use endoscope_causal::probe::{
    ControlTypes, Features, Intercept, Probe, ProbeKind, ProbeOver, ProbeSites, Probed, Split, probe_sites,
};
use endoscope_models::NamedPositions;
use endoscope_report::{RunDirectory, Started};
use serde_json::json;

use self::data::{Data, Wanted};
use super::capture::write_tensors;
use crate::input::{BosArguments, ModelArgument};
use crate::intervals::{IntervalArguments, share};
use crate::output::Output;
use crate::pair_arguments::watching;
use crate::progress;
use crate::provenance::{next_free, provenance};

#[derive(Debug, Args)]
pub struct ProbeVerb {
    #[command(flatten)]
    model: ModelArgument,
    /// Labelled prompts, one JSON object a line: {"text": …, "label": …} or {"tokens": […], "label": …}, and "group" if rows
    /// belong together.
    #[arg(value_name = "DATA.jsonl")]
    data: PathBuf,
    /// What is read: resid_post, resid_mid, attn_out, mlp_out, mlp_post, z … or one site (resid_post.3).
    #[arg(long, default_value = "resid_post")]
    site: String,
    /// What gets a probe of its own: layer, or layer,head for a site with heads.
    #[arg(long, value_name = "AXES", default_value = "layer", value_parser = over)]
    over: ProbeOver,
    /// The positions that are read, each an example of its prompt's label: `last`, `2..5`, `token:" Paris"`, or several
    /// joined by `+`.
    #[arg(long, value_name = "POSITIONS", default_value = "last", allow_hyphen_values = true)]
    positions: NamedPositions,
    /// What is fitted: classes by logistic regression or by the difference of two means, numbers by ridge regression.
    #[arg(long, value_enum, default_value = "logistic")]
    kind: KindArgument,
    /// How much large weights cost (logistic: scikit-learn's 1 / C; ridge: its alpha) [default: 1].
    #[arg(long, value_name = "NUMBER")]
    l2: Option<f64>,
    /// Fit the activations as they are, instead of each feature at mean 0 and deviation 1.
    #[arg(long)]
    raw: bool,
    /// Fit no bias.
    #[arg(long)]
    no_intercept: bool,
    /// Into how many parts the rows are split; each is scored by a probe of the others.
    #[arg(long, value_name = "N", default_value_t = 5, conflicts_with = "test")]
    folds: usize,
    /// Score this share of the rows by a probe of the rest, instead of folds.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    test: Option<f64>,
    /// What keeps one label where labels are shuffled: a row, or a token wherever it is what is read.
    #[arg(long, value_enum, default_value = "rows")]
    control: ControlArgument,
    #[command(flatten)]
    intervals: IntervalArguments,
    #[command(flatten)]
    bos: BosArguments,
    /// The run directory to write; must not exist [default: runs/probe, or the next free runs/probe-2 …].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KindArgument {
    Logistic,
    Ridge,
    #[value(name = "mass_mean", alias = "mass-mean")]
    MassMean,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ControlArgument {
    Rows,
    Tokens,
}

fn over(text: &str) -> Result<ProbeOver, String> {
    let axes: Vec<&str> = text.split(',').map(str::trim).collect();
    match axes.as_slice() {
        ["layer"] => Ok(ProbeOver::Layer),
        ["layer", "head"] => Ok(ProbeOver::LayerAndHead),
        _ => Err("a probe goes over `layer` or over `layer,head`".into()),
    }
}

impl ProbeVerb {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let asked = self.asked()?;
        let model = self.model.open()?;
        let wanted = if self.kind == KindArgument::Ridge { Wanted::Numbers } else { Wanted::Classes };
        let data = Data::read(&model, &self.data, &self.positions, wanted, self.bos)?;
        data.notes.iter().for_each(|note| output.note(note));
        // Before the work, so that an existing directory is found out at once.
        let directory = RunDirectory::create(self.out.clone().unwrap_or_else(|| next_free("probe")))?;
        let bar = progress::bar(0, "probing");
        let watch = watching(&bar);
        let resampling = self.intervals.resampling();
        let probed = probe_sites(&model.decoder, &asked, &data.rows, &data.labels, &resampling, watch);
        bar.finish_and_clear();
        let probed = probed?;
        let report = report::report(&model, &asked, &data, &probed, self.intervals.confidence)?;
        let mut provenance = provenance(&started, &model, &[])?;
        provenance.files.push(data.file);
        provenance.notes.extend(data.notes);
        provenance.seeds.insert("split, controls and intervals".into(), self.intervals.seed);
        let plan = json!({
            "verb": "probe",
            "model": model.directory.to_string_lossy(),
            "probe": asked,
            "confidence": self.intervals.confidence,
            "seed": self.intervals.seed,
            "rows": data.rows,
            "labels": data.labels,
        });
        directory.write_json("plan.json", &plan)?;
        write_tensors(&directory.path().join("directions.safetensors"), &directions(&probed)?)?;
        output.finish(directory, &provenance, &report)
    }

    fn asked(&self) -> Result<ProbeSites> {
        let l2 = self.l2.unwrap_or(1.);
        let kind = match self.kind {
            KindArgument::Logistic => ProbeKind::Logistic { l2 },
            KindArgument::Ridge => ProbeKind::Ridge { l2 },
            KindArgument::MassMean if self.l2.is_some() || self.raw || self.no_intercept => {
                bail!("a mass-mean probe is the difference of two means: --l2, --raw and --no-intercept change nothing")
            }
            KindArgument::MassMean => ProbeKind::MassMean,
        };
        let raw = self.raw || self.kind == KindArgument::MassMean;
        let seed = self.intervals.seed;
        Ok(ProbeSites {
            site: self.site.clone(),
            over: self.over,
            probe: Probe {
                kind,
                features: if raw { Features::Raw } else { Features::Standardised },
                intercept: if self.no_intercept { Intercept::None } else { Intercept::Fitted },
            },
            split: match self.test {
                Some(share) => Split::HoldOut { share, seed },
                None => Split::Folds { count: self.folds, seed },
            },
            control_types: match self.control {
                ControlArgument::Rows => ControlTypes::Rows,
                ControlArgument::Tokens => ControlTypes::Tokens,
            },
        })
    }
}

/// For each probe `SITE` [direction, dim] and `SITE.bias` [direction]; of a head, `SITE.HEAD`.
fn directions(probed: &[Probed]) -> Result<Vec<(String, candle_core::Tensor)>> {
    let mut tensors = Vec::new();
    for probed in probed {
        let name = match probed.head {
            Some(head) => format!("{}.{head}", probed.site),
            None => probed.site.clone(),
        };
        let biases: Vec<f32> = probed.fitted.biases.iter().map(|&bias| bias as f32).collect();
        let count = biases.len();
        let biases = candle_core::Tensor::from_vec(biases, count, &candle_core::Device::Cpu)?;
        tensors.push((name.clone(), probed.fitted.tensor()?));
        tensors.push((format!("{name}.bias"), biases));
    }
    Ok(tensors)
}

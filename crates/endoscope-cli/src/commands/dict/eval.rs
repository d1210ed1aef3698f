//! `endoscope dict eval`: what a dictionary explains, with how many latents, and what the model loses with it in its place.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use endoscope_dictionary::evaluate::{
    FitSums, HISTOGRAM_EDGES, LossRecovered, largest_cosines, loss_recovered, matched,
};
use endoscope_dictionary::training::{NetworkStream, Stream};
use endoscope_report::{HashedFile, Report, RunDirectory, Section, Started, Table, labels};
use serde_json::json;

use super::source::{ModelSource, files, open_one};
use crate::output::Output;
use crate::progress;
use crate::provenance::{next_free, provenance};

#[derive(Debug, Args)]
pub struct Evaluate {
    #[command(flatten)]
    source: ModelSource,
    /// The dictionary: a directory or file of any format that `dict show` reads.
    #[arg(long, value_name = "PATH")]
    dictionary: PathBuf,
    /// Another one to compare its directions with (of another seed, say).
    #[arg(long, value_name = "PATH")]
    with: Option<PathBuf>,
    /// No more vectors than this.
    #[arg(long, value_name = "N", default_value_t = 65_536)]
    vectors: usize,
    /// The run directory to write; must not exist [default: runs/dict-eval, or the next free].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Evaluate {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let model = self.source.model.open()?;
        let dictionary = open_one(&self.dictionary)?;
        let rows = self.source.read_equal_rows(&model)?;
        let directory = RunDirectory::create(self.out.clone().unwrap_or_else(|| next_free("dict-eval")))?;
        let mut stream = NetworkStream::new(&model.decoder, dictionary.config(), &rows)?;
        stream.sequential = true;
        const BATCH: usize = 512;
        let batch = BATCH.min(stream.vectors());
        let batches = stream.vectors().min(self.vectors).div_euclid(batch.max(1)).max(1);
        let bar = progress::bar(batches as u64, "encoding");
        let mut sums = FitSums::default();
        for number in 0..batches {
            let examples = stream.batch(number as u64, batch)?;
            sums.add(&dictionary, &examples.input, examples.target.as_ref())?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        let fit = sums.finish()?;
        let losses = loss_recovered(&model.decoder, &dictionary, &rows)?;
        let neighbours = largest_cosines(&dictionary.weights().decoder, &dictionary.weights().decoder, true)?;
        let nearest = neighbours.iter().map(|&(_, cosine)| f64::from(cosine)).sum::<f64>() / neighbours.len() as f64;
        let with = self.with.as_deref().map(open_one).transpose()?;
        let compared = with
            .as_ref()
            .map(|other| matched(&dictionary.weights().decoder, &other.weights().decoder))
            .transpose()
            .context("the other dictionary")?;

        let LossRecovered { clean, spliced, zero, recovered, .. } = losses;
        let mut report = Report::new(
            "A dictionary evaluated".to_string(),
            "dict-eval",
            format!(
                "{} on {}: {:.4} of the variance is not explained, by {:.1} of {} latents a vector; {:.3} of the loss is recovered.",
                self.dictionary.display(),
                model.directory.display(),
                fit.fvu,
                fit.l0,
                dictionary.latents(),
                recovered
            ),
        );
        let mut figures = vec![
            ("vectors", fit.rows as f64),
            ("fvu", fit.fvu),
            ("explained variance", 1. - fit.fvu),
            ("l0", fit.l0),
            ("l1", fit.l1),
            ("mse", fit.mse),
            ("cosine", fit.cosine),
            ("length ratio", fit.length_ratio),
            ("dead", fit.dead),
            ("loss, clean", clean),
            ("loss, spliced", spliced),
            ("loss, zeros", zero),
            ("loss recovered", recovered),
            ("nearest neighbour's cosine", nearest),
        ];
        if let Some(compared) = &compared {
            figures.push(("mean max cosine with the other", compared.mean_max_cosine));
            figures.push(("found in the other (> 0.9)", compared.recovered));
        }
        let (names, values): (Vec<&str>, Vec<f64>) = figures.into_iter().unzip();
        let axes = [("figure", labels(names)), ("of", labels(["dictionary"]))];
        report.tables.insert("figures".into(), Table::new("what the dictionary explains", axes, values)?);
        report.sections.push(Section::Table {
            heading: Some("Figures".into()),
            table: "figures".into(),
            caption: "Variance is that around the mean vector. Losses are of the next token, in nats: of the model as it is, with \
                      reconstructions in the place of activations, with zeros there."
                .into(),
        });
        let mut bins = vec![format!("< 1e{}", HISTOGRAM_EDGES[0])];
        bins.extend(HISTOGRAM_EDGES.windows(2).map(|two| format!("1e{} to 1e{}", two[0], two[1])));
        bins.push(format!("≥ 1e{}", HISTOGRAM_EDGES[HISTOGRAM_EDGES.len() - 1]));
        let counts = fit.density_histogram.iter().map(|&count| count as f64).collect();
        let axes = [("share of vectors", labels(bins)), ("latents", labels(["latents"]))];
        report.tables.insert("density".into(), Table::new("on how many vectors latents are active", axes, counts)?);
        report.sections.push(Section::Table {
            heading: Some("Density".into()),
            table: "density".into(),
            caption: "How many latents are active on which share of vectors; the first row holds the dead ones.".into(),
        });
        let mut provenance = provenance(&started, &model, &[])?;
        provenance.files.extend(self.source.rows.file()?);
        provenance.files.extend(
            files(&self.dictionary)?
                .iter()
                .map(|path| HashedFile::read("dictionary", path))
                .collect::<Result<Vec<_>, _>>()?,
        );
        directory.write_json("evaluation.json", &json!({"fit": fit, "loss": losses, "with": compared}))?;
        output.finish(directory, &provenance, &report)
    }
}

//! `endoscope dict train`: dictionaries from a harvest, or straight from a model.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use endoscope_dictionary::formats::{Format, save};
use endoscope_dictionary::training::{Job, NetworkStream, Settings, Stream, Trained, train};
use endoscope_harvest::ActivationReader;
use endoscope_report::{Label, Report, RunDirectory, Section, Started, Table, labels};
use serde_json::json;

use super::harvested::HarvestStream;
use super::source::{ModelSource, settings, template};
use crate::output::Output;
use crate::progress;
use crate::provenance::provenance;

#[derive(Debug, Args)]
pub struct TrainDictionary {
    #[command(flatten)]
    source: ModelSource,
    /// The site that is read; several make a crosscoder.
    #[arg(long = "site", value_name = "SITE", required = true)]
    sites: Vec<String>,
    /// The site that is written, if it is another: a transcoder.
    #[arg(long, value_name = "SITE")]
    output_site: Option<String>,
    /// Read vectors that were harvested there, under the names of the sites, instead of running the model on rows.
    #[arg(long, value_name = "DIR")]
    harvest: Option<PathBuf>,
    /// Take rows in the order they are in, one position after the other, instead of shuffled: sequential training (FAST,
    /// arXiv 2506.07691).
    #[arg(long)]
    in_order: bool,
    /// Settings, a JSON file (docs/dict.md lists them); several train as many dictionaries on the same batches.
    #[arg(long = "settings", value_name = "FILE.json")]
    files: Vec<PathBuf>,
    /// A setting, in all of them: `latents=512`, `objective.topk.k=8`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// The directory to write: one dictionary, or a folder for each settings file. Checkpoints are in it until the end; the same
    /// command goes on from them.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Updates between two checkpoints.
    #[arg(long, value_name = "N", default_value_t = 500)]
    checkpoint_every: u64,
    /// Stop after so many updates, with a checkpoint.
    #[arg(long, value_name = "N")]
    stop_after: Option<u64>,
}

impl TrainDictionary {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let model = self.source.model.open()?;
        let template = template(&model, &self.sites, self.output_site.as_deref())?;
        let named = |file: Option<&PathBuf>| -> Result<Job> {
            let name =
                file.and_then(|file| file.file_stem()).map_or("dictionary".into(), |name| name.to_string_lossy());
            let mut settings: Settings = settings(file, &self.changes)?;
            if template.output_site.is_some() {
                settings.apply_b_dec_to_input = false;
            }
            settings.check()?;
            Ok(Job { name: name.into_owned(), settings, template: template.clone() })
        };
        let jobs: Vec<Job> = match self.files.as_slice() {
            [] => vec![named(None)?],
            files => files.iter().map(|file| named(Some(file))).collect::<Result<_>>()?,
        };
        let working = partial(&self.out)?;
        let (rows, reader);
        let (mut from_network, mut from_harvest);
        let stream: &mut dyn Stream = match &self.harvest {
            Some(harvest) => {
                reader = ActivationReader::open(harvest)?;
                let batch = jobs.first().map_or(1, |job| job.settings.batch);
                from_harvest = HarvestStream::new(&reader, &template, batch, self.source.seed, self.in_order)?;
                &mut from_harvest
            }
            None => {
                rows = self.source.read_equal_rows(&model)?;
                from_network = NetworkStream::new(&model.decoder, &template, &rows)?;
                from_network.seed = self.source.seed;
                from_network.sequential = self.in_order;
                &mut from_network
            }
        };
        let steps = jobs.iter().map(|job| job.settings.steps).max().unwrap_or(0);
        let bar = progress::bar(steps, "training");
        let trained = train(&jobs, stream, &working, self.checkpoint_every, |job, progress| {
            bar.set_position(progress.step);
            let endoscope_dictionary::training::Progress { fvu, l0, dead, .. } = progress;
            bar.set_prefix(format!("· {}: fvu {fvu:.4}, l0 {l0:.1}, dead {:.1} %", job.name, 100. * dead));
            match self.stop_after {
                Some(stop) if progress.step >= stop => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        bar.finish_and_clear();
        let Some(trained) = trained? else {
            let stop = self.stop_after.unwrap_or(0);
            output.document(&json!({"finished": false, "step": stop, "out": working.to_string_lossy()}))?;
            return output.line(&format!(
                "stopped after {stop} of {steps} updates; the same command goes on from {}",
                working.display()
            ));
        };
        self.finish(&jobs, trained, &working, &model, &started, output)
    }

    /// Writes the dictionaries and the report, then gives the directory its name.
    fn finish(
        &self,
        jobs: &[Job],
        trained: Vec<Trained>,
        working: &Path,
        model: &endoscope_models::Model,
        started: &Started,
        output: &mut Output,
    ) -> Result<()> {
        let directory = RunDirectory::create(&self.out)?;
        let mut report = Report::new(
            "Dictionaries trained".to_string(),
            "dict",
            format!("{} of {} in {}.", count(trained.len()), self.sites.join(", "), model.directory.display()),
        );
        for (job, trained) in jobs.iter().zip(&trained) {
            let folder = match trained_alone(jobs) {
                true => directory.path().to_path_buf(),
                false => directory.path().join(&job.name),
            };
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot write {}", folder.display()))?;
            save(&folder, &trained.dictionary, Format::SaeLens)?;
            let told = json!({"settings": job.settings, "history": trained.history});
            let path = folder.join("training.json");
            let text = serde_json::to_string_pretty(&told)? + "\n";
            std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            curves(&mut report, trained)?;
        }
        let mut provenance = provenance(started, model, &[])?;
        provenance.files.extend(self.source.rows.file()?);
        for job in jobs {
            provenance.seeds.insert(job.name.clone(), job.settings.seed);
        }
        output.finish(directory, &provenance, &report)?;
        std::fs::remove_dir_all(working).with_context(|| format!("cannot remove {}", working.display()))
    }
}

fn trained_alone(jobs: &[Job]) -> bool {
    jobs.len() == 1
}

fn count(dictionaries: usize) -> String {
    match dictionaries {
        1 => "One dictionary".into(),
        several => format!("{several} dictionaries"),
    }
}

/// Where checkpoints lie until the end: beside the directory to write.
fn partial(out: &Path) -> Result<PathBuf> {
    if out.exists() {
        bail!("{} exists already: choose another --out", out.display());
    }
    let name = out.file_name().with_context(|| format!("--out {} has no name", out.display()))?;
    let mut name = name.to_os_string();
    name.push(".partial");
    Ok(out.with_file_name(name))
}

/// What was reported while a dictionary was trained.
fn curves(report: &mut Report, trained: &Trained) -> Result<()> {
    let Some(last) = trained.history.last() else { return Ok(()) };
    let steps: Vec<Label> = trained.history.iter().map(|progress| Label::from(progress.step as usize)).collect();
    let shares = trained.history.iter().map(|progress| progress.fvu).chain(trained.history.iter().map(|p| p.dead));
    let axes = [("series", labels(["fvu", "dead"])), ("update", steps.clone())];
    let name = format!("{}.shares", trained.name);
    report.tables.insert(name.clone(), Table::new("of each batch, before its update", axes, shares.collect())?);
    report.sections.push(Section::Lines {
        heading: Some(format!("{}: what is not explained, and dead latents", trained.name)),
        table: name,
        caption: format!(
            "At the end {:.4} of the variance is not explained, by {:.1} latents a vector; {:.1} % of latents are dead.",
            last.fvu,
            last.l0,
            100. * last.dead
        ),
        y_label: "share".into(),
    });
    let axes = [("series", labels(["l0"])), ("update", steps)];
    let name = format!("{}.l0", trained.name);
    let values = trained.history.iter().map(|progress| progress.l0).collect();
    report.tables.insert(name.clone(), Table::new("active latents a vector", axes, values)?);
    report.sections.push(Section::Lines {
        heading: Some(format!("{}: active latents", trained.name)),
        table: name,
        caption: "Latents that are active on a vector, on average over a batch.".into(),
        y_label: "latents".into(),
    });
    Ok(())
}

//! The one error type of the crate.

/// A result whose error is [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with a study: how it was asked for, what it was given, or what it said.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A slug that no paper of the catalogue has.
    #[error("there is no paper `{slug}`{}; `endoscope study list` shows them all", nearest_of(nearest))]
    UnknownPaper {
        /// What was asked for.
        slug: String,
        /// The slugs that are most like it.
        nearest: Vec<String>,
    },
    /// A topic that no paper has.
    #[error("no paper has the topic `{topic}`; topics are: {known}")]
    UnknownTopic {
        /// What was asked for.
        topic: String,
        /// All topics.
        known: String,
    },
    /// A paper that nobody has made a study of yet.
    #[error("the paper `{slug}` has no study yet; papers with one are: {runnable}")]
    NoStudy {
        /// The paper.
        slug: String,
        /// The papers whose studies run.
        runnable: String,
    },
    /// Settings that the study does not have or cannot use.
    #[error("the study `{slug}` cannot be run with these settings:\n  - {}", problems.join("\n  - "))]
    Settings {
        /// The study.
        slug: &'static str,
        /// Every problem found, with the name of its key.
        problems: Vec<String>,
    },
    /// Seeds that say nothing about chance.
    #[error("{reason}; a study needs at least 3 different seeds, as --seeds 1,2,3 gives")]
    Seeds {
        /// What is wrong with them.
        reason: String,
    },
    /// A test of a claim that decides nothing, or figures that do not fit to it.
    #[error("the claim “{statement}” cannot be judged: {reason}")]
    Finding {
        /// The claim.
        statement: String,
        /// What is wrong.
        reason: String,
    },
    /// A study that judged no claim.
    #[error("the study `{slug}` judged no claim; an outcome needs at least one, with its control")]
    NoFinding {
        /// The study.
        slug: &'static str,
    },
    /// A model that the study can say nothing of.
    #[error("the study cannot be made on this model: {reason}")]
    Unsuitable {
        /// Why, and what would be needed.
        reason: String,
    },
    /// Whoever watches asked to stop.
    #[error("stopped; finished steps are kept, and the same command goes on from there")]
    Stopped,
    /// A step's result that cannot be kept.
    #[error("the result of the step `{step}` cannot be kept as JSON: {source}")]
    Keep {
        /// The step.
        step: String,
        /// What serde says.
        source: serde_json::Error,
    },
    /// A folder that cannot be made or read.
    #[error("cannot {doing} {path}: {source}")]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// On which path.
        path: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// Threads that the system does not give.
    #[error("cannot start threads to train on: {source}")]
    Threads {
        /// What rayon says.
        source: rayon::ThreadPoolBuildError,
    },
    /// The catalogue inside the program cannot be read.
    #[error("the catalogue of papers cannot be read: {0}")]
    Catalogue(String),
    /// From the core.
    #[error(transparent)]
    Net(#[from] endoscope_net::Error),
    /// From a method.
    #[error(transparent)]
    Causal(#[from] endoscope_causal::Error),
    /// From a dictionary.
    #[error(transparent)]
    Dictionary(#[from] endoscope_dictionary::Error),
    /// From a model.
    #[error(transparent)]
    Model(Box<endoscope_models::Error>),
    /// From an organism.
    #[error(transparent)]
    Organism(Box<endoscope_organisms::Error>),
    /// From training.
    #[error(transparent)]
    Train(Box<endoscope_train::Error>),
    /// From a report.
    #[error(transparent)]
    Report(#[from] endoscope_report::Error),
    /// From a tensor.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

// In a box, because the largest of them would make every result of this crate large.
macro_rules! boxed {
    ($($variant:ident $from:ty),*) => {
        $(impl From<$from> for Error {
            fn from(error: $from) -> Self {
                Self::$variant(Box::new(error))
            }
        })*
    };
}
boxed!(Model endoscope_models::Error, Organism endoscope_organisms::Error, Train endoscope_train::Error);

fn nearest_of(names: &[String]) -> String {
    match names {
        [] => String::new(),
        names => format!(" (nearest: {})", names.join(", ")),
    }
}

/// Those of `names` that are most like `name`, the most like first; at most three, and none that is unlike.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let mut scored: Vec<(f64, &str)> = names.map(|known| (strsim::jaro_winkler(name, known), known)).collect();
    scored.retain(|(likeness, _)| *likeness > 0.7);
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(3).map(|(_, name)| name.to_string()).collect()
}

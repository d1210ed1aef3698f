//! The lab: what a study is given. A model, seeds, a level, whoever watches, and a cache of finished steps.

use std::cell::RefCell;
use std::ops::{ControlFlow, Deref};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use endoscope_models::Model;
use endoscope_organisms::write_organism;
use endoscope_report::HashedFile;
use endoscope_train::{Outcome, Recipe};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::cache::Cache;
use crate::error::{Error, Result};
use crate::finding::FEWEST_SEEDS;

/// How much is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Seconds: the machinery and what is exact.
    Smoke,
    /// Minutes: what the verdicts of the page rest on.
    Full,
}

impl Level {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Smoke => "smoke",
            Self::Full => "full",
        }
    }
}

/// How far a study is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What is being done.
    pub step: &'a str,
    /// How many parts of it are done.
    pub done: u64,
    /// Of how many.
    pub total: u64,
}

/// Is told how far a study is, and may ask it to stop.
pub type Watch<'a> = &'a dyn Fn(&Progress<'_>) -> ControlFlow<()>;

/// What a study is given.
pub struct Lab<'a> {
    /// How much is to be done.
    pub level: Level,
    seeds: Vec<u64>,
    model: Option<&'a Model>,
    cache: Cache,
    watch: Watch<'a>,
    used: RefCell<Vec<HashedFile>>,
}

/// A model of a lab: the user's, or one of ours.
pub enum LabModel<'a> {
    /// The user's.
    Given(&'a Model),
    /// An organism, or a model that was trained, with the folder that it was written to if that is a temporary one.
    Own(Box<Model>, Option<TempDir>),
}

impl Deref for LabModel<'_> {
    type Target = Model;
    fn deref(&self) -> &Model {
        match self {
            Self::Given(model) => model,
            Self::Own(model, _) => model,
        }
    }
}

impl<'a> Lab<'a> {
    /// A lab without a model of the user's, that keeps nothing and that nobody watches. At least 3 different seeds.
    pub fn new(level: Level, seeds: Vec<u64>) -> Result<Self> {
        let mut sorted = seeds.clone();
        sorted.sort_unstable();
        let reason = match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Some(format!("the seed {} is named twice", pair[0])),
            None => (seeds.len() < FEWEST_SEEDS).then(|| match seeds.len() {
                1 => "there is only one seed".to_string(),
                count => format!("there are only {count} seeds"),
            }),
        };
        match reason {
            Some(reason) => Err(Error::Seeds { reason }),
            None => Ok(Self {
                level,
                seeds,
                model: None,
                cache: Cache::nowhere(),
                watch: &|_| ControlFlow::Continue(()),
                used: RefCell::default(),
            }),
        }
    }

    /// With the user's model in place of the study's organism.
    pub fn with_model(mut self, model: &'a Model) -> Self {
        self.model = Some(model);
        self
    }

    /// With finished steps kept in the folder `directory`, which is made when it is needed.
    pub fn with_cache(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cache = Cache::at(directory.into());
        self
    }

    /// With somebody who watches.
    pub fn with_watch(mut self, watch: Watch<'a>) -> Self {
        self.watch = watch;
        self
    }

    /// The seeds, all different, at least 3.
    pub fn seeds(&self) -> &[u64] {
        &self.seeds
    }

    /// Whether the user named a model.
    pub fn is_given_a_model(&self) -> bool {
        self.model.is_some()
    }

    /// The user's model, or the organism `name`.
    pub fn model(&self, name: &str) -> Result<LabModel<'a>> {
        match self.model {
            Some(model) => {
                for (role, path) in &model.files {
                    self.note(HashedFile::read(*role, path)?);
                }
                Ok(LabModel::Given(model))
            }
            None => self.organism(name),
        }
    }

    /// A second model of the user's, in the directory `path`.
    pub fn opened(&self, path: impl AsRef<Path>) -> Result<LabModel<'a>> {
        let model = Model::open(path)?;
        for (role, path) in &model.files {
            self.note(HashedFile::read(*role, path)?);
        }
        Ok(LabModel::Own(Box::new(model), None))
    }

    /// The organism `name`, whatever model the user named: ground truth.
    pub fn organism(&self, name: &str) -> Result<LabModel<'a>> {
        let folder = temporary(name)?;
        let directory = folder.path().join(name);
        write_organism(name, &directory)?;
        let model = Model::open(&directory)?;
        for (role, path) in &model.files {
            let mut file = HashedFile::read(*role, path)?;
            // Where it was unpacked is nobody's business and gone afterwards.
            let written = Path::new(&file.path).file_name().map(|name| name.to_string_lossy().into_owned());
            file.path = format!("organisms/{name}/{}", written.unwrap_or_default());
            self.note(file);
        }
        Ok(LabModel::Own(Box::new(model), Some(folder)))
    }

    /// The model of a recipe, trained now, or before if it is in the cache. One whose training was stopped goes on from its last
    /// checkpoint.
    pub fn trained(&self, recipe: &Recipe) -> Result<LabModel<'a>> {
        let mut models = self.train_all(std::slice::from_ref(recipe))?;
        models.pop().ok_or(Error::Stopped)
    }

    /// The models of recipes, in their order, as [`trained`](Self::trained) gives each. Those that are to be trained are trained side by
    /// side, for a small model gains little from a second thread; the threads do not change the weights.
    pub fn train_all(&self, recipes: &[Recipe]) -> Result<Vec<LabModel<'a>>> {
        let mut places = Vec::with_capacity(recipes.len());
        for recipe in recipes {
            places.push(match self.cache.place(recipe)? {
                Some(path) => (path, None),
                None => {
                    let folder = temporary("a model to be trained")?;
                    (folder.path().join("model"), Some(folder))
                }
            });
        }
        let mut jobs: Vec<(&Recipe, &Path)> = Vec::new();
        for (recipe, (path, _)) in recipes.iter().zip(&places) {
            if !path.exists() && jobs.iter().all(|(_, other)| other != path) {
                jobs.push((recipe, path));
            }
        }
        train_side_by_side(&jobs, &|done, total| self.tell(&Progress { step: "training", done, total }))?;
        let open = |(path, folder): (PathBuf, _)| Ok(LabModel::Own(Box::new(Model::open(&path)?), folder));
        places.into_iter().map(open).collect()
    }

    /// Every file of a model that was used, in order, for the provenance.
    pub fn used(&self) -> Vec<HashedFile> {
        self.used.borrow().clone()
    }

    fn note(&self, file: HashedFile) {
        let mut used = self.used.borrow_mut();
        if !used.contains(&file) {
            used.push(file);
        }
    }

    /// A step that is done once for each seed, in order. What is finished is kept in the cache, and is not computed again when
    /// `inputs`, the models used before it and the program are the same; so a study that was killed goes on where it was.
    ///
    /// Numbers that are not finite do not survive JSON: a step that gives them is computed again each time.
    pub fn each_seed<T: Serialize + DeserializeOwned>(
        &self,
        step: &str,
        inputs: &impl Serialize,
        mut compute: impl FnMut(u64) -> Result<T>,
    ) -> Result<Vec<T>> {
        let (total, models) = (self.seeds.len() as u64, self.models());
        let mut results = Vec::with_capacity(self.seeds.len());
        for (done, &seed) in (0..).zip(&self.seeds) {
            self.tell(&Progress { step, done, total })?;
            results.push(self.cache.step(step, &(seed, inputs, &models), || compute(seed))?);
        }
        self.tell(&Progress { step, done: total, total })?;
        Ok(results)
    }

    /// A step that is done once for each seed on a model of its own: trained with that seed by the organism's recipe. Where that is not
    /// wanted (`anew`) or the user named a model, all seeds have the one model.
    pub fn each_model<T: Serialize + DeserializeOwned>(
        &self,
        (organism, anew): (&str, bool),
        step: &str,
        inputs: &impl Serialize,
        mut compute: impl FnMut(&Model, u64) -> Result<T>,
    ) -> Result<Vec<T>> {
        let shared = self.model(organism)?;
        let trained = match anew && !self.is_given_a_model() {
            true => {
                let recipe = Recipe::read(shared.directory.join("recipe.toml"))?;
                self.train_all(&self.seeds.iter().map(|&seed| recipe.with_seed(seed)).collect::<Vec<_>>())?
            }
            false => Vec::new(),
        };
        self.each_seed(step, inputs, |seed| {
            let own = self.seeds.iter().zip(&trained).find(|(other, _)| **other == seed);
            compute(own.map_or(&shared, |(_, model)| model), seed)
        })
    }

    /// A step that is done once, kept as [`each_seed`](Self::each_seed) keeps its own.
    pub fn once<T: Serialize + DeserializeOwned>(
        &self,
        step: &str,
        inputs: &impl Serialize,
        compute: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.cache.step(step, &(inputs, self.models()), compute)
    }

    /// What tells the models used so far from any others.
    fn models(&self) -> Vec<String> {
        self.used.borrow().iter().map(|file| file.sha256.clone()).collect()
    }

    /// Says how far the study is; an error if it is asked to stop.
    pub fn tell(&self, progress: &Progress<'_>) -> Result<()> {
        match (self.watch)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Stopped),
        }
    }
}

/// Trains every recipe into its folder, as many at a time as there are threads. `tell` hears, on the caller's thread, how many updates
/// are made of how many; its error stops all of them, and each is left where it can go on.
fn train_side_by_side(jobs: &[(&Recipe, &Path)], tell: &dyn Fn(u64, u64) -> Result<()>) -> Result<()> {
    let threads = rayon::current_num_threads();
    let workers = threads.min(jobs.len());
    let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let total = jobs.iter().map(|(recipe, _)| recipe.training.steps).sum();
    let mut done = vec![0; jobs.len()];
    std::thread::scope(|scope| {
        let (sender, updates) = std::sync::mpsc::channel();
        let running: Vec<_> = (0..workers)
            .map(|_| {
                let (next, stop, sender) = (&next, &stop, sender.clone());
                let work = move || -> Result<()> {
                    while let Some((at, &(recipe, path))) = {
                        let at = next.fetch_add(1, Ordering::Relaxed);
                        jobs.get(at).map(|job| (at, job))
                    } {
                        let mut observe = |now: &endoscope_train::Progress| {
                            let heard = sender.send((at, now.step)).is_ok();
                            match heard && !stop.load(Ordering::Relaxed) {
                                true => ControlFlow::Continue(()),
                                false => ControlFlow::Break(()),
                            }
                        };
                        match endoscope_organisms::train(recipe, path, &mut observe) {
                            Ok(Outcome::Finished { .. }) => {}
                            Ok(Outcome::Stopped { .. }) => return Err(Error::Stopped),
                            Err(error) => {
                                stop.store(true, Ordering::Relaxed);
                                return Err(error.into());
                            }
                        }
                    }
                    Ok(())
                };
                scope.spawn(move || pool(threads / workers)?.install(work))
            })
            .collect();
        drop(sender);
        let mut told = Ok(());
        for (at, step) in updates {
            done[at] = step;
            if told.is_ok() {
                told = tell(done.iter().sum(), total);
                stop.fetch_or(told.is_err(), Ordering::Relaxed);
            }
        }
        let ended: Vec<Result<()>> = running
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        told?;
        // What went wrong says more than that the others were then stopped.
        let (stopped, failed): (Vec<_>, Vec<_>) =
            ended.into_iter().filter_map(Result::err).partition(|error| matches!(error, Error::Stopped));
        failed.into_iter().chain(stopped).next().map_or(Ok(()), Err)
    })
}

fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    let built = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build();
    built.map_err(|source| Error::Threads { source })
}

fn temporary(what: &str) -> Result<TempDir> {
    let io = |source| Error::Io { doing: "make a temporary folder for", path: what.to_string(), source };
    tempfile::tempdir().map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn seeds_that_say_nothing_are_refused() {
        for (seeds, part) in
            [(vec![], "only 0 seeds"), (vec![1], "only one"), (vec![1, 2], "only 2"), (vec![1, 2, 1], "twice")]
        {
            let error = Lab::new(Level::Smoke, seeds).err().unwrap().to_string();
            assert!(error.contains(part) && error.contains("--seeds"), "{error}");
        }
    }

    #[test]
    fn a_study_that_was_stopped_goes_on_where_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let computed = Cell::new(0);
        let square = |seed: u64| {
            computed.set(computed.get() + 1);
            Ok((seed * seed) as f64 / 3.)
        };
        let stop = |progress: &Progress<'_>| match progress.done {
            2 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        let lab = || Lab::new(Level::Smoke, vec![5, 6, 7]).unwrap().with_cache(folder.path().join("cache"));
        let stopped = lab().with_watch(&stop).each_seed("squares", &"x", square).unwrap_err();
        assert!(matches!(stopped, Error::Stopped));
        assert_eq!(computed.get(), 2);
        let first = lab().each_seed("squares", &"x", square).unwrap();
        assert_eq!((computed.get(), first.as_slice()), (3, [25. / 3., 36. / 3., 49. / 3.].as_slice()));
        assert_eq!(lab().each_seed("squares", &"x", square).unwrap(), first, "bit for bit");
        assert_eq!(computed.get(), 3, "nothing is computed twice");
        lab().each_seed("squares", &"y", square).unwrap();
        assert_eq!(computed.get(), 6, "other inputs are another step");
        let other = lab();
        other.organism("induction").unwrap();
        other.each_seed("squares", &"x", square).unwrap();
        assert_eq!(computed.get(), 9, "another model is too");
        Lab::new(Level::Smoke, vec![5, 6, 7]).unwrap().each_seed("squares", &"x", square).unwrap();
        assert_eq!(computed.get(), 12, "a lab without a cache keeps nothing");
    }

    #[test]
    fn what_was_used_is_noted_once_without_temporary_places() {
        let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
        lab.model("induction").unwrap();
        lab.model("induction").unwrap();
        let paths: Vec<String> = lab.used().into_iter().map(|file| file.path).collect();
        assert!(paths.contains(&"organisms/induction/model.safetensors".to_string()), "{paths:?}");
        assert_eq!(paths.iter().filter(|path| path.ends_with("config.json")).count(), 2, "{paths:?}");
        assert!(Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap().model("inductoin").is_err());
    }

    fn small(seed: u64, steps: u64) -> Recipe {
        let text = format!(
            "[model]\nfamily = \"gpt2\"\ncontext = 16\nd_model = 8\nlayers = 1\nheads = 2\nd_mlp = 8\n\
             [task]\nname = \"repeated_sequences\"\nwords = 8\nshortest = 3\nlongest = 6\n\
             [training]\nsteps = {steps}\nbatch = 4\nseed = {seed}\nlearning_rate = 0.01\ncheckpoint_every = 5"
        );
        Recipe::parse("recipe.toml", &text).unwrap()
    }

    fn weights(model: &Model) -> Vec<u8> {
        std::fs::read(model.directory.join("model.safetensors")).unwrap()
    }

    #[test]
    fn models_trained_side_by_side_are_those_trained_alone() {
        let lab = || Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
        let recipes = [small(1, 12), small(2, 9), small(1, 12), small(3, 15)];
        let folder = tempfile::tempdir().unwrap();
        let together = lab().with_cache(folder.path()).train_all(&recipes).unwrap();
        for (recipe, model) in recipes.iter().zip(&together) {
            assert_eq!(weights(model), weights(&lab().trained(recipe).unwrap()));
        }
        assert_ne!(weights(&together[0]), weights(&together[1]));
        assert!(lab().train_all(&[]).unwrap().is_empty());
    }

    #[test]
    fn training_that_was_stopped_goes_on_to_the_same_weights() {
        let folder = tempfile::tempdir().unwrap();
        let recipes = [small(1, 40), small(2, 40)];
        let stop = |progress: &Progress<'_>| match progress.done {
            13.. => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        let lab = || Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
        let stopped = lab().with_cache(folder.path()).with_watch(&stop).train_all(&recipes).map(|_| ()).unwrap_err();
        assert!(matches!(stopped, Error::Stopped), "{stopped}");
        let most = Cell::new(0);
        let watch = |progress: &Progress<'_>| {
            assert_eq!(progress.total, 80);
            most.set(progress.done);
            ControlFlow::Continue(())
        };
        let models = lab().with_cache(folder.path()).with_watch(&watch).train_all(&recipes).unwrap();
        assert_eq!(most.get(), 80);
        for (recipe, model) in recipes.iter().zip(&models) {
            assert_eq!(weights(model), weights(&lab().trained(recipe).unwrap()));
        }
    }

    #[test]
    fn a_recipe_that_cannot_be_trained_stops_the_others_with_its_own_error() {
        let mut bad = small(1, 10);
        bad.task.name = "no such task".into();
        let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
        let error = lab.train_all(&[small(1, 5000), bad]).map(|_| ()).unwrap_err();
        assert!(matches!(error, Error::Organism(_)), "{error}");
    }
}

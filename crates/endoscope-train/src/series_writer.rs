//! Writing a series while training. A step's tensors are there, under their final name, before the index names them; what
//! a kill leaves beyond the step that training resumes from is cut off and made again.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::Tensor;

use crate::checkpoint::Layout;
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::run_directory::RECIPE;
use crate::series::{INDEX, SeriesEntry, TENSORS, read_index, tensors_file};

/// The series of the run that this process makes.
pub(crate) struct SeriesWriter {
    directory: PathBuf,
    index: File,
    /// The hashes of all tensors that are kept.
    kept: BTreeSet<String>,
    due: BTreeSet<u64>,
    last: Option<u64>,
}

impl SeriesWriter {
    /// Begins the series in `directory`, or takes it up as it was at `step`; none if the recipe wants none.
    pub fn open(directory: PathBuf, layout: &Layout, recipe: &Recipe, step: u64) -> Result<Option<Self>> {
        let Some(checkpoints) = &recipe.training.checkpoints else { return Ok(None) };
        let due = checkpoints.steps(recipe.training.steps);
        let tensors = directory.join(TENSORS);
        fs::create_dir_all(&tensors).map_err(|error| Error::write(&tensors, error))?;
        let [(config, contents), _] =
            endoscope_models::model_files(layout.family, layout.spec, &layout.config, &HashMap::new())?;
        write_once(&directory.join(config), &contents)?;
        for (name, contents) in layout.companions {
            write_once(&directory.join(name), contents)?;
        }
        write_once(&directory.join(RECIPE), recipe.to_toml()?.as_bytes())?;
        let path = directory.join(INDEX);
        let mut entries = Vec::new();
        if path.exists() {
            let index = read_index(&directory)?;
            let count = index.entries.len();
            entries = index.entries.into_iter().filter(|entry| entry.step <= step).collect();
            if index.torn || entries.len() < count {
                let lines = entries.iter().map(|entry| line(&path, entry)).collect::<Result<String>>()?;
                replace(&path, lines.as_bytes())?;
            }
        }
        // Nothing but step 0 is due at the start, and its entry is made then.
        let have: BTreeSet<u64> = entries.iter().map(|entry| entry.step).collect();
        if let Some(missing) = due.iter().find(|&&due| due <= step && step > 0 && !have.contains(&due)) {
            let reason = format!("training goes on from step {step}, but the series lacks step {missing}");
            return Err(Error::series(&directory, reason + "; remove the unfinished run to train anew"));
        }
        for entry in fs::read_dir(&tensors).map_err(|error| Error::read(&tensors, error))? {
            let file = entry.map_err(|error| Error::read(&tensors, error))?.path();
            let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if !have.iter().any(|&step| tensors_file(step) == name) {
                fs::remove_file(&file).map_err(|error| Error::write(&file, error))?;
            }
        }
        let index = OpenOptions::new().create(true).append(true).open(&path);
        let index = index.map_err(|error| Error::write(&path, error))?;
        let last = entries.last().map(|entry| entry.step);
        let kept = entries.into_iter().flat_map(|entry| entry.tensors.into_values()).collect();
        Ok(Some(Self { directory, index, kept, due, last }))
    }

    /// Whether a step belongs in the series and is not yet there.
    pub fn wants(&self, step: u64) -> bool {
        self.due.contains(&step) && self.last.is_none_or(|last| last < step)
    }

    /// Whether a step is there, the last of all.
    pub fn ends_at(&self, step: u64) -> bool {
        self.last == Some(step)
    }

    /// Keeps the weights of a step.
    pub fn append(&mut self, step: u64, loss: Option<f32>, tensors: &HashMap<String, Tensor>) -> Result<()> {
        let entry = SeriesEntry::new(step, loss, tensors);
        let mut new: Vec<(&String, &Tensor)> = Vec::new();
        for (name, hash) in &entry.tensors {
            if self.kept.insert(hash.clone()) {
                new.extend(tensors.get(name).map(|tensor| (hash, tensor)));
            }
        }
        if !new.is_empty() {
            let path = self.directory.join(TENSORS).join(tensors_file(step));
            let contents = safetensors::serialize(new, None).map_err(|error| Error::write(&path, error))?;
            replace(&path, &contents)?;
        }
        let path = self.directory.join(INDEX);
        let line = line(&path, &entry)?;
        let written = self.index.write_all(line.as_bytes()).and_then(|()| self.index.sync_data());
        written.map_err(|error| Error::write(&path, error))?;
        self.last = Some(step);
        Ok(())
    }
}

fn line(path: &Path, entry: &SeriesEntry) -> Result<String> {
    Ok(serde_json::to_string(entry).map_err(|error| Error::write(path, error))? + "\n")
}

fn write_once(path: &Path, contents: &[u8]) -> Result<()> {
    if path.exists() { Ok(()) } else { replace(path, contents) }
}

/// Writes a file under a temporary name, makes it reach the disk, and renames it.
fn replace(path: &Path, contents: &[u8]) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.partial"));
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(contents)?;
        file.sync_data()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|error| Error::write(path, error))
}

//! Where a run lives on disk.
//!
//! While training, everything is in `OUT.partial/`: `recipe.toml`, `lock`, and `checkpoints/step-000500/` … , each a
//! model that can be opened, with `optimizer.safetensors` and `state.json` beside its weights; and `series/`, if the recipe
//! wants one (`series.rs`). When the last step is
//! made, the final model and `training.json` are written there too, and the directory is renamed to `OUT`: `OUT` exists
//! if and only if training is complete. A kill at any moment leaves the whole checkpoints; the next run continues from
//! the last.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::checkpoint;
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::series::SERIES;

/// The folder of the checkpoints, in the unfinished run and in the result.
pub const CHECKPOINTS: &str = "checkpoints";
/// The recipe of the run.
pub(crate) const RECIPE: &str = "recipe.toml";
const LOCK: &str = "lock";

/// Where the unfinished run of `out` is kept: `out` with `.partial` appended to its name.
pub fn partial_directory(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    out.with_file_name(name)
}

/// An unfinished run, held by this process.
#[derive(Debug)]
pub(crate) struct RunDirectory {
    /// `OUT.partial`.
    pub path: PathBuf,
    /// `OUT`.
    out: PathBuf,
    /// Released by the system however this process ends.
    _lock: File,
}

impl RunDirectory {
    /// Begins the run of `out`, or takes up the one that was begun with the same recipe.
    pub fn open(out: &Path, recipe: &Recipe) -> Result<Self> {
        absent(out)?;
        let path = partial_directory(out);
        if path.exists() && !path.is_dir() {
            return Err(Error::InTheWay { path, reason: "it is a file".into() });
        }
        fs::create_dir_all(&path).map_err(|error| Error::write(&path, error))?;
        refuse_strangers(&path)?;
        let lock_path = path.join(LOCK);
        let lock = File::create(&lock_path).map_err(|error| Error::write(&lock_path, error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy { path }),
            Err(TryLockError::Error(error)) => return Err(Error::write(&lock_path, error)),
        }
        // Another process may have finished in the meantime.
        absent(out)?;
        let recipe_path = path.join(RECIPE);
        if recipe_path.exists() {
            let changes = Recipe::read(&recipe_path)?.changes(recipe);
            if !changes.is_empty() {
                return Err(Error::RecipeChanged { path, changes });
            }
        } else {
            let temporary = path.join(format!(".{RECIPE}.partial"));
            let text = recipe.to_toml()?;
            fs::write(&temporary, text).map_err(|error| Error::write(&temporary, error))?;
            fs::rename(&temporary, &recipe_path).map_err(|error| Error::write(&recipe_path, error))?;
        }
        Ok(Self { path, out: out.to_path_buf(), _lock: lock })
    }

    /// The folder of the checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join(CHECKPOINTS)
    }

    /// The folder of the series.
    pub fn series(&self) -> PathBuf {
        self.path.join(SERIES)
    }

    /// Gives the directory, now complete, its name.
    pub fn finish(self) -> Result<PathBuf> {
        let lock = self.path.join(LOCK);
        fs::remove_file(&lock).map_err(|error| Error::write(&lock, error))?;
        absent(&self.out)?;
        checkpoint::publish(&self.path, &self.out)?;
        Ok(self.out)
    }
}

fn absent(out: &Path) -> Result<()> {
    match out.symlink_metadata() {
        Ok(_) => Err(Error::OutputExists { path: out.to_path_buf() }),
        Err(_) => Ok(()),
    }
}

/// A directory without a recipe is ours only if nothing else is in it.
fn refuse_strangers(path: &Path) -> Result<()> {
    if path.join(RECIPE).is_file() {
        return Ok(());
    }
    for entry in fs::read_dir(path).map_err(|error| Error::read(path, error))? {
        let name = entry.map_err(|error| Error::read(path, error))?.file_name();
        if name != LOCK && name != format!(".{RECIPE}.partial").as_str() {
            let reason = format!("it has no {RECIPE} and holds {}", name.to_string_lossy());
            return Err(Error::InTheWay { path: path.to_path_buf(), reason });
        }
    }
    Ok(())
}

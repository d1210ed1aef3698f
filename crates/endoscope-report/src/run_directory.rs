//! Run directories: complete under their final name, or not there.

use std::fs;
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use serde::Serialize;
use tempfile::TempDir;

use crate::atomic::{parent_of, sync_directory};
use crate::{Error, Provenance, Report, Result, json, parquet_file, render_html, write_atomically};

/// A run directory in the making.
///
/// Files are gathered in a temporary directory beside the final one, `.NAME.partial-XXXX`; [`finish`](Self::finish)
/// renames it. Dropped before, it is removed: a run that failed leaves nothing under the final name.
#[derive(Debug)]
pub struct RunDirectory {
    // Dropped first, so that the parents are empty again when they are dropped.
    temporary: TempDir,
    parents: NewParents,
    target: PathBuf,
}

/// Directories that were created for the run directory, outermost first; dropped, they are removed where empty.
#[derive(Debug, Default)]
struct NewParents(Vec<PathBuf>);

impl NewParents {
    fn create(parent: &Path) -> Result<NewParents> {
        let missing = parent.ancestors().take_while(|path| !path.as_os_str().is_empty() && !path.exists());
        let mut missing: Vec<PathBuf> = missing.map(Path::to_owned).collect();
        missing.reverse();
        let parents = NewParents(missing);
        fs::create_dir_all(parent).map_err(Error::io("create the directory", parent))?;
        Ok(parents)
    }
}

impl Drop for NewParents {
    fn drop(&mut self) {
        for parent in self.0.iter().rev() {
            // One that is not empty is somebody's.
            let _ = fs::remove_dir(parent);
        }
    }
}

impl RunDirectory {
    /// Begins a run directory that shall be at `path`, where nothing may be yet; missing parents are created.
    pub fn create(path: impl AsRef<Path>) -> Result<RunDirectory> {
        let target = path.as_ref().to_owned();
        refuse_existing(&target)?;
        let Some(name) = target.file_name() else {
            return Err(Error::FileName { name: target.to_string_lossy().into_owned() });
        };
        let parent = parent_of(&target);
        let parents = NewParents::create(parent)?;
        let mut builder = tempfile::Builder::new();
        let prefix = format!(".{}.partial-", name.to_string_lossy());
        builder.prefix(&prefix);
        // As a directory that is simply created: what the umask leaves of all rights.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let temporary = builder.tempdir_in(parent).map_err(Error::io("create a directory beside", &target))?;
        Ok(RunDirectory { temporary, parents, target })
    }

    /// Where the files are now, until [`finish`](Self::finish).
    pub fn path(&self) -> &Path {
        self.temporary.path()
    }

    /// Where the files will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes one file, `name` relative to the run directory; directories between are created.
    pub fn write(&self, name: &str, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let relative = Path::new(name);
        if name.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(Error::FileName { name: name.into() });
        }
        let path = self.path().join(relative);
        let parent = parent_of(&path);
        fs::create_dir_all(parent).map_err(Error::io("create the directory", parent))?;
        // The temporary name is gone when the error is read: name the place that the user knows.
        write_atomically(&path, write).map_err(|error| match error {
            Error::Io { doing, source, .. } => Error::Io { doing, path: self.target.join(relative), source },
            other => other,
        })
    }

    /// Writes `value` as JSON, for example the plan as `plan.json`.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let text = json::to_text(value, name)?;
        self.write(name, |file| file.write_all(text.as_bytes()))
    }

    /// Writes `provenance.json`.
    pub fn write_provenance(&self, provenance: &Provenance) -> Result<()> {
        self.write_json("provenance.json", provenance)
    }

    /// Writes `report.json`, `report.html` and `tables/NAME.parquet` for each table.
    pub fn write_report(&self, report: &Report, provenance: &Provenance) -> Result<()> {
        report.check()?;
        self.write_json("report.json", report)?;
        let page = render_html(report, Some(provenance));
        self.write("report.html", |file| file.write_all(page.as_bytes()))?;
        for (name, table) in &report.tables {
            let bytes = parquet_file::encode(table)?;
            self.write(&format!("tables/{name}.parquet"), |file| file.write_all(&bytes))?;
        }
        Ok(())
    }

    /// Gives the directory its final name, which it returns; an error if something has appeared there meanwhile.
    pub fn finish(self) -> Result<PathBuf> {
        sync_tree(self.path())?;
        refuse_existing(&self.target)?;
        // On failure `temporary` is still owned, so the drop removes it.
        fs::rename(self.path(), &self.target).map_err(|source| match refuse_existing(&self.target) {
            Err(exists) => exists,
            Ok(()) => Error::Io { doing: "rename to", path: self.target.clone(), source },
        })?;
        let RunDirectory { temporary, mut parents, target } = self;
        parents.0.clear();
        // Its name is free now: there is nothing to remove.
        let _moved = temporary.keep();
        sync_directory(parent_of(&target))?;
        Ok(target)
    }
}

fn refuse_existing(path: &Path) -> Result<()> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(Error::Exists { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(Error::Io { doing: "look at", path: path.to_owned(), source }),
    }
}

/// Syncs a directory and those in it; the files were synced when they were written.
fn sync_tree(path: &Path) -> Result<()> {
    for entry in fs::read_dir(path).map_err(Error::io("list", path))? {
        let entry = entry.map_err(Error::io("list", path))?;
        if entry.file_type().map_err(Error::io("look at", path))?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    sync_directory(path)
}

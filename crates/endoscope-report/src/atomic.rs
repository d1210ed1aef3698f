//! Files that are there whole or not at all.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Writes one file under a temporary name beside it, syncs it to disk, and renames it to `path`.
///
/// A reader sees the old file or the new one, never a part; on any error nothing is left behind and an old file stays
/// as it was. Refused where a rename would destroy something other than a file: directories and special files such
/// as `/dev/full`. A link to a file keeps pointing there, and the file that it points to is replaced.
///
/// ```
/// # let directory = tempfile::tempdir()?;
/// let path = directory.path().join("answer.txt");
/// endoscope_report::write_atomically(&path, |file| writeln!(file, "42"))?;
/// assert_eq!(std::fs::read_to_string(path)?, "42\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_atomically(path: impl AsRef<Path>, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let path = path.as_ref();
    let (target, old) = resolve(path)?;
    let parent = parent_of(&target);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".endoscope.partial-");
    // As a file that is simply created: what the umask leaves of read and write for all.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let temporary = builder.tempfile_in(parent).map_err(Error::io("create a file beside", path))?;
    let mut buffered = BufWriter::new(temporary);
    write(&mut buffered).map_err(Error::io("write", path))?;
    let temporary = buffered.into_inner().map_err(|error| error.into_error()).map_err(Error::io("write", path))?;
    if let Some(old) = old {
        temporary.as_file().set_permissions(old.permissions()).map_err(Error::io("set the permissions of", path))?;
    }
    temporary.as_file().sync_all().map_err(Error::io("sync", path))?;
    temporary.persist(&target).map_err(|error| error.error).map_err(Error::io("rename to", path))?;
    sync_directory(parent)
}

/// Whether [`write_atomically`] could begin to write `path`: an error at once instead of after long work.
pub fn check_destination(path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let (target, _) = resolve(path)?;
    match fs::metadata(parent_of(&target)) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Error::io("create a file beside", path)(ErrorKind::NotADirectory.into())),
        Err(error) => Err(Error::io("create a file beside", path)(error)),
    }
}

/// The file that writing to `path` would replace, through links, and what is known of it if it exists.
fn resolve(path: &Path) -> Result<(PathBuf, Option<fs::Metadata>)> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => Err(Error::NotAFile { path: path.to_owned(), kind: "a directory" }),
        Ok(found) if !found.is_file() => Err(Error::NotAFile { path: path.to_owned(), kind: "a special file" }),
        Ok(found) => Ok((fs::canonicalize(path).map_err(Error::io("resolve", path))?, Some(found))),
        Err(error) if error.kind() == ErrorKind::NotFound => match fs::symlink_metadata(path) {
            Ok(_) => Err(Error::NotAFile { path: path.to_owned(), kind: "a link to nothing" }),
            Err(_) if path.file_name().is_none() => {
                Err(Error::NotAFile { path: path.to_owned(), kind: "not the name of a file" })
            }
            Err(_) => Ok((path.to_owned(), None)),
        },
        Err(source) => Err(Error::Io { doing: "look at", path: path.to_owned(), source }),
    }
}

/// The directory that holds `path`; the current one for a bare name.
pub(crate) fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes the names in a directory survive a power cut, where the system can.
pub(crate) fn sync_directory(path: &Path) -> Result<()> {
    if cfg!(unix) {
        File::open(path).and_then(|directory| directory.sync_all()).map_err(Error::io("sync", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_full_disk_leaves_the_old_file_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.bin");
        fs::write(&path, "old").unwrap();
        let error = write_atomically(&path, |file| {
            file.write_all(&[0; 100_000])?;
            Err(io::Error::from(ErrorKind::StorageFull))
        })
        .unwrap_err();
        assert!(error.to_string().contains("out.bin"), "{error}");
        assert!(matches!(error, Error::Io { doing: "write", source, .. } if source.kind() == ErrorKind::StorageFull));
        assert_eq!(names(directory.path()), ["out.bin"]);
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    }

    #[test]
    fn directories_and_names_of_nothing_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        for path in [directory.path().to_owned(), directory.path().join(".."), PathBuf::new()] {
            let error = write_atomically(&path, |_| Ok(())).unwrap_err();
            assert!(matches!(error, Error::NotAFile { .. }), "{path:?}: {error}");
        }
        let missing = directory.path().join("no/such/file");
        assert!(matches!(write_atomically(missing, |_| Ok(())), Err(Error::Io { .. })));
        assert!(names(directory.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn special_files_are_refused_and_links_kept() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let error = write_atomically("/dev/full", |_| Ok(())).unwrap_err();
        assert!(matches!(error, Error::NotAFile { kind: "a special file", .. }), "{error}");

        let directory = tempfile::tempdir().unwrap();
        let [file, link, lost] = ["file", "link", "lost"].map(|name| directory.path().join(name));
        fs::write(&file, "old").unwrap();
        fs::set_permissions(&file, PermissionsExt::from_mode(0o640)).unwrap();
        symlink("file", &link).unwrap();
        symlink("nowhere", &lost).unwrap();
        write_atomically(&link, |file| file.write_all(b"new")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(matches!(write_atomically(&lost, |_| Ok(())), Err(Error::NotAFile { .. })));
    }
}

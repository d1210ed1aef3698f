//! Zip files whose members lie in them as they are: what `numpy.savez` and `torch.save` write.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

use super::arrays::{Arrays, Place, Written, write_whole};
use super::npy;
use crate::error::{Error, Result};

/// A zip file and where its members lie.
#[derive(Debug)]
pub(crate) struct Archive {
    pub file: File,
    pub members: BTreeMap<String, Range<u64>>,
}

impl Archive {
    /// Errors if a member is compressed or encrypted.
    pub fn open(path: &Path) -> Result<Self> {
        let fail = |reason: String| Error::file(path, reason);
        let file = File::open(path).map_err(|error| Error::file(path, error))?;
        let reader = file.try_clone().map_err(|error| Error::file(path, error))?;
        let mut zip = ZipArchive::new(BufReader::new(reader))
            .map_err(|error| fail(format!("it is no whole zip file: {error}")))?;
        let mut members = BTreeMap::new();
        for index in 0..zip.len() {
            let member = zip.by_index_raw(index).map_err(|error| fail(format!("it is no whole zip file: {error}")))?;
            let name = member.name().map_err(|error| fail(error.to_string()))?.into_owned();
            if member.encrypted() || member.compression() != CompressionMethod::Stored {
                return Err(fail(format!(
                    "`{name}` is compressed in it; write it again as it is (numpy.savez, not savez_compressed; torch.save)"
                )));
            }
            let start = member.data_start().ok_or_else(|| fail(format!("`{name}` has no place in it")))?;
            let end = start.checked_add(member.size()).ok_or_else(|| fail(format!("`{name}` is too long")))?;
            members.insert(name, start..end);
        }
        Ok(Self { file, members })
    }

    /// The bytes of a member, if they are at most `longest`.
    pub fn bytes(&mut self, range: &Range<u64>, longest: u64) -> std::io::Result<Vec<u8>> {
        self.file.seek(SeekFrom::Start(range.start))?;
        let mut bytes = Vec::new();
        (&mut self.file).take((range.end - range.start).min(longest)).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// The arrays of a `.npz` file.
pub(crate) fn npz(path: &Path) -> Result<Arrays> {
    let mut archive = Archive::open(path)?;
    let mut places = BTreeMap::new();
    for (name, range) in archive.members.clone() {
        let head = archive.bytes(&range, npy::LONGEST_HEADER).map_err(|error| Error::file(path, error))?;
        let fail = |reason: String| Error::file(path, format!("`{name}`: {reason}"));
        let (header, length) = npy::header(&head).map_err(fail)?;
        let mut place = Place::contiguous(header.dtype, header.shape, range.start + length);
        if header.columns_first {
            let reversed = place.shape.iter().rev().copied().collect();
            place.strides = Place::contiguous(place.dtype, reversed, 0).strides.into_iter().rev().collect();
        }
        if place.end().is_none_or(|end| end > range.end) {
            return Err(fail(format!("it is too short for the shape {:?}", place.shape)));
        }
        places.insert(name.strip_suffix(".npy").unwrap_or(&name).to_string(), place);
    }
    Arrays::new(path, archive.file, places)
}

/// Writes a `.npz` file, whole or not at all.
pub(crate) fn write_npz(path: &Path, arrays: &[(String, Written)]) -> Result<()> {
    let fail = |error: &dyn std::fmt::Display| Error::write(path, error);
    write_whole(path, |to| {
        let file = File::create(to).map_err(|error| fail(&error))?;
        let mut zip = ZipWriter::new(BufWriter::new(file));
        for (name, array) in arrays {
            let bytes = array.bytes();
            let options = SimpleFileOptions::default()
                .compression_method(CompressionMethod::Stored)
                .large_file(bytes.len() as u64 > u64::from(u32::MAX) / 2);
            zip.start_file(format!("{name}.npy"), options).map_err(|error| fail(&error))?;
            let head = npy::written_header(&array.shape);
            zip.write_all(&head).and_then(|()| zip.write_all(&bytes)).map_err(|error| fail(&error))?;
        }
        let file = zip.finish().map_err(|error| fail(&error))?;
        file.into_inner().map_err(|error| fail(error.error())).map(|_| ())
    })
}

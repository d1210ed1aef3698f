//! The cache of activations that delphi reads: `DIR/SITE/START_END.safetensors` with `locations`, u32 `[n, 3]` (row, position,
//! feature less START), and `activations`, f16 `[n]`; beside them `config.json`.

use std::fs;
use std::path::Path;

use half::f16;
use safetensors::tensor::{Dtype, TensorView};

use crate::error::{Error, Result};

/// One feature active on one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Activation {
    /// The row of tokens.
    pub row: u32,
    /// The position in it.
    pub position: u32,
    /// The feature.
    pub feature: u32,
    /// How active.
    pub activation: f32,
}

/// What delphi takes for silence.
const LEAST: f32 = 1e-5;

/// Writes activations of a dictionary of `latents` latents, cut into `splits` files by feature, and the tokens that were read.
pub fn write_delphi(
    directory: &Path,
    site: &str,
    latents: usize,
    splits: usize,
    activations: &[Activation],
    rows: &[Vec<u32>],
    config: &serde_json::Value,
) -> Result<()> {
    let folder = directory.join(site);
    fs::create_dir_all(&folder).map_err(|error| Error::write(&folder, error))?;
    let width = latents.div_ceil(splits.max(1)).max(1);
    let length = rows.first().map_or(0, Vec::len);
    // As delphi keeps them: of rows of one length.
    let tokens: Option<Vec<u8>> = rows
        .iter()
        .all(|row| row.len() == length)
        .then(|| rows.iter().flatten().flat_map(|&id| i64::from(id).to_le_bytes()).collect());
    for start in (0..latents).step_by(width) {
        let end = (start + width).min(latents) - 1;
        let mut own: Vec<&Activation> = activations
            .iter()
            .filter(|each| (start..=end).contains(&(each.feature as usize)) && each.activation.abs() > LEAST)
            .collect();
        own.sort_by_key(|each| (each.row, each.position, each.feature));
        let locations: Vec<u8> = own
            .iter()
            .flat_map(|each| [each.row, each.position, each.feature - start as u32])
            .flat_map(u32::to_le_bytes)
            .collect();
        let values: Vec<u8> = own.iter().flat_map(|each| f16::from_f32(each.activation).to_le_bytes()).collect();
        let path = folder.join(format!("{start}_{end}.safetensors"));
        let fail = |error: &dyn std::fmt::Display| Error::write(&path, error);
        let view = |dtype, shape: Vec<usize>, bytes| TensorView::new(dtype, shape, bytes).map_err(|error| fail(&error));
        let mut views = vec![
            ("locations", view(Dtype::U32, vec![own.len(), 3], locations.as_slice())?),
            ("activations", view(Dtype::F16, vec![own.len()], values.as_slice())?),
        ];
        if let Some(tokens) = &tokens {
            views.push(("tokens", view(Dtype::I64, vec![rows.len(), length], tokens.as_slice())?));
        }
        let temporary = path.with_extension("partial");
        safetensors::serialize_to_file(views, None, &temporary).map_err(|error| fail(&error))?;
        fs::rename(&temporary, &path).map_err(|error| fail(&error))?;
    }
    let path = folder.join("config.json");
    let text = serde_json::to_string_pretty(config).map_err(|error| Error::write(&path, error))?;
    fs::write(&path, text + "\n").map_err(|error| Error::write(&path, error))
}

/// Reads such a folder, `DIR/SITE`: the activations, in the order of rows, positions and features.
pub fn read_delphi(folder: &Path) -> Result<Vec<Activation>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(folder).map_err(|error| Error::file(folder, error))?;
    for entry in entries {
        let path = entry.map_err(|error| Error::file(folder, error))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let Some((start, _)) = name.strip_suffix(".safetensors").and_then(|range| range.split_once('_')) else {
            continue;
        };
        let fail = |reason: String| Error::file(&path, reason);
        let start: u32 = start.parse().map_err(|_| fail("its name is not START_END.safetensors".into()))?;
        let contents = fs::read(&path).map_err(|error| fail(error.to_string()))?;
        let tensors = safetensors::SafeTensors::deserialize(&contents).map_err(|error| fail(error.to_string()))?;
        let get = |name: &str| tensors.tensor(name).map_err(|error| fail(error.to_string()));
        let (locations, values) = (get("locations")?, get("activations")?);
        let count = values.shape().first().copied().unwrap_or(0);
        if locations.shape() != [count, 3] || values.shape() != [count] {
            return Err(fail(format!("shapes {:?} and {:?} are no [n, 3] and [n]", locations.shape(), values.shape())));
        }
        let numbers: Vec<u32> = match locations.dtype() {
            Dtype::U32 => locations.data().as_chunks::<4>().0.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect(),
            Dtype::U16 => {
                locations.data().as_chunks::<2>().0.iter().map(|&bytes| u16::from_le_bytes(bytes).into()).collect()
            }
            other => return Err(fail(format!("locations are {other:?}, not u16 or u32"))),
        };
        let values: Vec<f32> = match values.dtype() {
            Dtype::F16 => {
                values.data().as_chunks::<2>().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect()
            }
            Dtype::F32 => values.data().as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            other => return Err(fail(format!("activations are {other:?}, not f16 or f32"))),
        };
        for (place, &activation) in numbers.as_chunks::<3>().0.iter().zip(&values) {
            let &[row, position, feature] = place;
            let feature = feature.checked_add(start).ok_or_else(|| fail(format!("feature {feature} is too large")))?;
            found.push(Activation { row, position, feature, activation });
        }
    }
    found.sort_by_key(|each| (each.row, each.position, each.feature));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_comes_back_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let activation = |row, position, feature, activation| Activation { row, position, feature, activation };
        let mut all = vec![activation(1, 2, 9, 0.5), activation(0, 3, 4, 2.), activation(0, 3, 0, 1e-6)];
        let rows = vec![vec![5u32; 4]; 2];
        write_delphi(folder.path(), "blocks.0.hook_resid_post", 10, 3, &all, &rows, &serde_json::json!({})).unwrap();
        let site = folder.path().join("blocks.0.hook_resid_post");
        let mut names: Vec<String> = fs::read_dir(&site)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names, ["0_3.safetensors", "4_7.safetensors", "8_9.safetensors", "config.json"]);
        all.pop();
        all.reverse();
        assert_eq!(read_delphi(&site).unwrap(), all);
        fs::write(site.join("4_7.safetensors"), b"broken").unwrap();
        assert!(read_delphi(&site).unwrap_err().to_string().contains("4_7.safetensors"));
    }
}

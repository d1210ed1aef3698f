//! Where vectors come from: a harvest, or a model that runs rows of tokens as they are needed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::Args;
use endoscope_dictionary::formats;
use endoscope_dictionary::{Config, Dictionary};
use endoscope_models::Model;

use crate::input::{BosArguments, ModelArgument};
use crate::token_rows::RowArguments;

/// A model, rows of tokens, and sites.
#[derive(Debug, Args)]
pub struct ModelSource {
    #[command(flatten)]
    pub model: ModelArgument,
    #[command(flatten)]
    pub rows: RowArguments,
    #[command(flatten)]
    pub bos: BosArguments,
    /// What random rows are drawn by, and what is shuffled by.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl ModelSource {
    /// The rows that are as long as the longest: a last one that is shorter would have vectors of other positions.
    pub fn read_equal_rows(&self, model: &Model) -> Result<Vec<Vec<u32>>> {
        let mut rows = self.read_rows(model)?;
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        rows.retain(|row| row.len() == longest);
        Ok(rows)
    }

    /// The rows of tokens.
    pub fn read_rows(&self, model: &Model) -> Result<Vec<Vec<u32>>> {
        if !self.rows.given() {
            bail!("say what is read: --text FILE, --token-rows FILE.json or --random ROWS");
        }
        self.rows.read(model, self.bos, self.seed)
    }
}

/// The sites that a dictionary reads and writes, by their full names.
pub fn template(model: &Model, sites: &[String], output_site: Option<&str>) -> Result<Config> {
    let full = |site: &str| -> Result<String> {
        let id = model.sites().resolve_one(site).with_context(|| format!("the site {site}"))?;
        Ok(model.sites().get(id).name.clone())
    };
    let sites = sites.iter().map(|site| full(site)).collect::<Result<Vec<_>>>()?;
    let heads_flattened = sites.iter().any(|site| site.ends_with("hook_z"));
    let mut config =
        Config { output_site: output_site.map(full).transpose()?, sites, heads_flattened, ..Config::default() };
    let name = model.directory.file_name().unwrap_or(model.directory.as_os_str()).to_string_lossy();
    config.metadata.insert("model_name".into(), name.into());
    config.metadata.insert("model_class_name".into(), "HookedTransformer".into());
    Ok(config)
}

/// The one dictionary at a path, of whichever format.
pub fn open_one(path: &Path) -> Result<Dictionary> {
    Ok(formats::open(path)?.dictionary(path)?)
}

/// The files of a dictionary, in order: for the provenance.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let fail = || format!("cannot read {}", path.display());
    let entries =
        std::fs::read_dir(path).with_context(fail)?.collect::<std::io::Result<Vec<_>>>().with_context(fail)?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_file()).collect();
    files.sort();
    Ok(files)
}

/// Settings from a file and from `key=value` after it: a value is JSON, or a text; a key may be a path with dots.
pub fn settings<T: serde::de::DeserializeOwned + serde::Serialize + Default>(
    file: Option<&PathBuf>,
    changes: &[String],
) -> Result<T> {
    let mut value = match file {
        None => serde_json::to_value(T::default())?,
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("{} is not JSON", path.display()))?
        }
    };
    for change in changes {
        let (key, text) = change.split_once('=').with_context(|| format!("--set {change}: key=value is needed"))?;
        let new = serde_json::from_str(text).unwrap_or_else(|_| text.into());
        let mut place = &mut value;
        for part in key.split('.') {
            let Some(map) = place.as_object_mut() else { bail!("--set {change}: {part} is not within an object") };
            place = map.entry(part).or_insert(serde_json::Value::Null);
            if place.is_null() {
                *place = serde_json::json!({});
            }
        }
        *place = new;
    }
    serde_json::from_value(value).context("the settings are not possible")
}

#[cfg(test)]
mod tests {
    use super::*;
    use endoscope_dictionary::training::{Objective, Settings};

    #[test]
    fn settings_are_changed_by_paths() {
        let changes = |list: &[&str]| list.iter().map(|&text| text.to_string()).collect::<Vec<_>>();
        let found: Settings = settings(None, &changes(&["objective.topk.k=7", "latents=64", "clip=null"])).unwrap();
        assert!(matches!(found.objective, Objective::TopK { k: 7, .. }));
        assert_eq!((found.latents, found.clip), (64, None));
        let found: Settings = settings(None, &changes(&[r#"objective={"standard":{"l1":0.5}}"#])).unwrap();
        assert_eq!(found.objective, Objective::Standard { l1: 0.5 });
        for wrong in ["latent=3", "latents", "latents=many", "latents.x=1"] {
            assert!(settings::<Settings>(None, &changes(&[wrong])).is_err(), "{wrong}");
        }
    }
}

//! Weights to start from: those of another model, for fine-tuning.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::Var;
use endoscope_models::Model;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::checkpoint::{Layout, Stored, WEIGHTS};
use crate::error::{Error, Result};
use crate::series::hexadecimal;

const TOKENIZER: &str = "tokenizer.json";

/// The model whose weights a training starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Its directory; relative to the folder of the recipe.
    pub model: PathBuf,
    /// The SHA-256 of its `model.safetensors`: wherever the directory lies, the recipe says which weights are meant.
    pub sha256: String,
    /// The folder of the recipe.
    #[serde(skip)]
    pub(crate) folder: PathBuf,
}

impl Start {
    /// The weights with this SHA-256 of a model directory.
    pub fn new(model: impl Into<PathBuf>, sha256: impl Into<String>) -> Self {
        Self { model: model.into(), sha256: sha256.into(), folder: PathBuf::new() }
    }

    pub(crate) fn problem(&self) -> Option<String> {
        let hexadecimal = |letter: char| letter.is_ascii_hexdigit() && !letter.is_ascii_uppercase();
        let fine = self.sha256.len() == 64 && self.sha256.chars().all(hexadecimal);
        (!fine).then(|| {
            format!(
                "`training.start.sha256` is {}; it must be 64 digits from 0 to f, as sha256sum prints them",
                self.sha256
            )
        })
    }

    /// Puts the weights into `variables`, if the model is of the same family, switches and tokens as `layout`.
    pub(crate) fn load(&self, layout: &Layout, variables: &BTreeMap<String, Var>) -> Result<()> {
        let directory = self.folder.join(&self.model);
        let fail = |reason: String| Error::Start { path: directory.clone(), reason };
        let read = |name: &str| fs::read(directory.join(name)).map_err(|error| fail(format!("{name}: {error}")));
        let found = hexadecimal(Sha256::new_with_prefix(read(WEIGHTS)?));
        if found != self.sha256 {
            return Err(fail(format!("{WEIGHTS} has the SHA-256 {found}, the recipe says {}", self.sha256)));
        }
        let model = Model::open_headers(&directory)?;
        if model.family != layout.family {
            let (its, ours) = (model.family.model_type(), layout.family.model_type());
            return Err(fail(format!("it is of the family {its}, the recipe of {ours}")));
        }
        if let Some((switch, its, ours)) = different(model.spec(), layout.spec)? {
            return Err(fail(format!("its `{switch}` is {its}, that of the recipe and its task {ours}")));
        }
        let tokenizer = layout.companions.iter().find(|(name, _)| name == TOKENIZER);
        if let Some((_, contents)) = tokenizer
            && read(TOKENIZER)? != *contents
        {
            return Err(fail(format!("its {TOKENIZER} is not the task's, so its tokens are other words")));
        }
        let weights = Stored::read(&directory, WEIGHTS)?;
        for (name, variable) in variables {
            variable.set(weights.get(name, variable.dims())?)?;
        }
        Ok(())
    }
}

/// The first switch in which two architectures differ, with both values.
fn different(
    its: &endoscope_models::Spec,
    ours: &endoscope_models::Spec,
) -> Result<Option<(String, serde_json::Value, serde_json::Value)>> {
    let table = |spec| serde_json::to_value(spec).map_err(|error| Error::read(Path::new("config.json"), error));
    let (its, ours) = (table(its)?, table(ours)?);
    let switches = ours.as_object().into_iter().flatten();
    let first = switches.map(|(name, ours)| (name, &its[name], ours)).find(|(_, its, ours)| its != ours);
    Ok(first.map(|(name, its, ours)| (name.clone(), its.clone(), ours.clone())))
}

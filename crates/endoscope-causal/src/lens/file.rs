//! A lens as a safetensors file: `SITE.matrix` and `SITE.bias` in f32, and a header in the file's metadata.

use std::collections::HashMap;

use candle_core::safetensors::Load;
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::{Kind, Lens, Translator, is_finite};
use crate::error::{Error, Result};

/// The key of the header in the metadata.
const KEY: &str = "endoscope_lens";

/// What the file says of itself.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    kind: Kind,
    /// The size of the residual stream.
    d_model: usize,
    /// The streams, in order.
    sites: Vec<String>,
    /// How it was made.
    made: serde_json::Map<String, serde_json::Value>,
}

fn fail<T>(reason: impl Into<String>) -> Result<T> {
    Err(Error::Lens(reason.into()))
}

impl Lens {
    /// The bytes of its file.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let Some(first) = self.translators.first() else {
            return fail("a logit lens has nothing that a file could hold");
        };
        self.check_streams()?;
        let header = Header {
            kind: self.kind,
            d_model: first.matrix.dim(0)?,
            sites: self.translators.iter().map(|translator| translator.site.clone()).collect(),
            made: self.made.clone(),
        };
        let text = serde_json::to_string(&header).map_err(|error| Error::Lens(error.to_string()))?;
        let mut tensors = Vec::new();
        for Translator { site, matrix, bias } in &self.translators {
            tensors.push((format!("{site}.matrix"), matrix.contiguous()?));
            if let Some(bias) = bias {
                tensors.push((format!("{site}.bias"), bias.contiguous()?));
            }
        }
        let views = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor));
        safetensors::serialize(views, Some(HashMap::from([(KEY.to_string(), text)])))
            .map_err(|error| Error::Lens(format!("its file cannot be made: {error}")))
    }

    /// The lens of a file. Every tensor is accounted for: one too many, too few, of another shape than the header says, or
    /// with a number that is not finite, is an error. Whether it fits a network, [`Lens::streams`] says.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let broken = |error: safetensors::SafeTensorError| Error::Lens(format!("this is no safetensors file: {error}"));
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(broken)?;
        let tensors = SafeTensors::deserialize(bytes).map_err(broken)?;
        let Some(text) = metadata.metadata().as_ref().and_then(|metadata| metadata.get(KEY)) else {
            return fail(format!("the file has no entry `{KEY}` in its metadata, so it holds no lens"));
        };
        let header: Header = serde_json::from_str(text).map_err(|error| Error::Lens(format!("its header: {error}")))?;
        let Header { kind, d_model, sites, made } = header;
        if kind == Kind::Logit || sites.is_empty() {
            return fail("its header names no stream");
        }
        let mut names = tensors.names();
        let mut take = |name: String, shape: &[usize]| -> Result<Tensor> {
            let view = tensors.tensor(&name).map_err(|_| Error::Lens(format!("its file has no tensor `{name}`")))?;
            names.retain(|each| *each != name);
            if view.shape() != shape || view.dtype() != safetensors::Dtype::F32 {
                return fail(format!(
                    "`{name}` is {:?} of {:?}, but {shape:?} of F32 is needed",
                    view.shape(),
                    view.dtype()
                ));
            }
            let tensor = view.load(&Device::Cpu)?.to_dtype(DType::F32)?;
            match is_finite(&tensor)? {
                true => Ok(tensor),
                false => fail(format!("`{name}` holds a number that is not finite")),
            }
        };
        let mut translators: Vec<Translator> = Vec::with_capacity(sites.len());
        for site in sites {
            let matrix = take(format!("{site}.matrix"), &[d_model, d_model])?;
            let bias = (kind == Kind::Tuned).then(|| take(format!("{site}.bias"), &[d_model])).transpose()?;
            translators.push(Translator { site, matrix, bias });
        }
        if !names.is_empty() {
            names.sort_unstable();
            return fail(format!("its file has tensors that no stream needs: {}", names.join(", ")));
        }
        let lens = Self { kind, translators, made };
        lens.check_streams()?;
        Ok(lens)
    }

    /// That each stream has one map.
    fn check_streams(&self) -> Result<()> {
        for (at, Translator { site, .. }) in self.translators.iter().enumerate() {
            if self.translators[..at].iter().any(|other| other.site == *site) {
                return fail(format!("it has two maps of `{site}`"));
            }
        }
        Ok(())
    }
}

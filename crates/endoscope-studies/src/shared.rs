//! What several studies use: a head's name, random directions, rows of tokens for a model that the user named.

use candle_core::{DType, Device, Tensor};
use endoscope_causal::lens::repeated_rows;
use endoscope_models::factored::Factored;
use endoscope_models::{Bos, Model};
use endoscope_train::generator;
use rand::RngExt;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A head by its layer and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    pub layer: usize,
    pub head: usize,
}

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.layer, self.head)
    }
}

/// Orthonormal directions `[rank, d]`, drawn at random.
pub(crate) fn random_directions((rank, width): (usize, usize), seed: u64, draw: u64) -> Result<Tensor> {
    let square = Tensor::eye(rank, DType::F32, &Device::Cpu)?;
    let drawn = Factored::new(&square, &noise((rank, width), seed, (1 << 32) + draw)?)?;
    Ok(drawn.svd()?.right.t()?.contiguous()?)
}

/// Numbers from -1 to 1, the same for the same arguments.
pub(crate) fn noise((rows, columns): (usize, usize), seed: u64, stream: u64) -> Result<Tensor> {
    let mut random = generator(seed, stream);
    let numbers: Vec<f32> = (0..rows * columns).map(|_| random.random_range(-1f32..1.)).collect();
    Ok(Tensor::from_vec(numbers, (rows, columns), &Device::Cpu)?)
}

/// How many tokens a row of a user's model has, at most.
const LENGTH: usize = 64;

/// How many tokens each row of [`read_rows`] has for this model, and what stands before its own ones.
pub(crate) fn row_length(model: &Model) -> Result<(usize, Vec<u32>)> {
    let length = model.spec().context.min(LENGTH);
    let encoded = model.tokenizer.as_ref().map(|tokenizer| tokenizer.encode("", Bos::AsConfigured));
    let prefix = encoded.and_then(|encoded| encoded.ok()).map(|encoded| encoded.ids).unwrap_or_default();
    match length < prefix.len() + 4 {
        true => Err(Error::Unsuitable { reason: format!("its context of {length} tokens leaves no room for rows") }),
        false => Ok((length, prefix)),
    }
}

/// At most `count` rows of a text's tokens, or if it is empty of random tokens that come twice, drawn by the seed.
pub(crate) fn read_rows(model: &Model, text: &str, count: usize, seed: u64) -> Result<Vec<Vec<u32>>> {
    let (length, prefix) = row_length(model)?;
    let mut rows = match text.is_empty() {
        true => repeated_rows(model.spec().vocabulary as u32, &prefix, length, count, seed),
        false => {
            let io = |source| Error::Io { doing: "read the text", path: text.to_string(), source };
            let text = std::fs::read_to_string(text).map_err(io)?;
            let ids = model.tokenizer()?.encode(&text, Bos::Omit)?.ids;
            let row = |ids: &[u32]| [prefix.as_slice(), ids].concat();
            ids.chunks_exact(length - prefix.len()).map(row).collect()
        }
    };
    rows.shuffle(&mut generator(seed, 1));
    rows.truncate(count);
    Ok(rows)
}

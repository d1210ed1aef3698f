//! Somebody else's activations of the same model, and how far ours are from them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use endoscope_net::{Inputs, Network, Role};

use super::Assertion;
use super::ledger::{Ledger, difference};
use crate::decoder::{Decoder, capture_everything};
use crate::error::{Error, Result};

/// How much the allowed difference grows with the largest value of a site, for each layer that has gone before and its own:
/// two f32 programs that sum in another order differ in the last bits of the largest terms, and each layer reads what the
/// one before it has rounded. Measured on random models of twelve layers 768 wide: 3e-6 in the first layer, and in a layer
/// n up to 3e-6 n where initial weights are wild.
const OF_THE_LARGEST: f64 = 1e-5;

/// Activations by site for rows of tokens, as tools/reference/sites.py and `endoscope capture` write them: a safetensors file with
/// `tokens` and a tensor for each site, or the same for each row under `0/`, `1/` ….
#[derive(Debug)]
pub struct Reference {
    rows: Vec<Row>,
}

#[derive(Debug, Default)]
struct Row {
    tokens: Vec<Vec<u32>>,
    sites: BTreeMap<String, Tensor>,
}

impl Reference {
    /// Reads a file; an error if it is none, or if there are no tokens in it.
    pub fn read(path: &Path) -> Result<Self> {
        let tensors = candle_core::safetensors::load(path, &Device::Cpu).map_err(|error| Error::read(path, error))?;
        let mut rows: BTreeMap<usize, Row> = BTreeMap::new();
        for (name, tensor) in tensors {
            let numbered = name.split_once('/').and_then(|(row, site)| Some((row.parse().ok()?, site.to_string())));
            let (row, site) = numbered.unwrap_or((0, name));
            let row = rows.entry(row).or_default();
            match site.as_str() {
                "tokens" => row.tokens = token_ids(path, &tensor)?,
                _ => {
                    row.sites.insert(site, tensor);
                }
            }
        }
        let rows: Vec<Row> = rows.into_values().collect();
        if rows.is_empty() || rows.iter().any(|row| row.tokens.is_empty() || row.sites.is_empty()) {
            let reason =
                "it is no reference: for each row it needs `tokens` (whole numbers) and the sites' activations";
            return Err(Error::read(path, reason));
        }
        Ok(Self { rows })
    }

    /// How many runs it holds.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The token ids of its runs.
    pub fn tokens(&self) -> impl Iterator<Item = &[Vec<u32>]> {
        self.rows.iter().map(|row| row.tokens.as_slice())
    }

    /// Runs its tokens and compares every site.
    pub(super) fn compare(&self, decoder: &Decoder, ledger: &mut Ledger, step: &mut dyn FnMut()) -> Result<()> {
        for (number, row) in self.rows.iter().enumerate() {
            ledger.prompt = Some(number);
            let run = decoder.run(&Inputs::tokens(row.tokens.clone())?, &capture_everything())?;
            let mut ours: BTreeSet<&str> = BTreeSet::new();
            for (site, found) in run.captured.iter() {
                ours.insert(site);
                match row.sites.get(site) {
                    Some(expected) => compare_site(site, found, expected, depth(decoder, site), ledger)?,
                    // Large, and the sum of what else is compared, or its copies: a reference may leave it out.
                    None if site.ends_with("attn.hook_result") || site.ends_with("_input") => {}
                    None => ledger.fail(Assertion::Reference, format!("the reference has no {site}")),
                }
            }
            for site in row.sites.keys().filter(|site| !ours.contains(site.as_str())) {
                ledger.fail(Assertion::Reference, format!("the reference has {site}, which the model has not"));
            }
            step();
        }
        ledger.prompt = None;
        Ok(())
    }
}

fn compare_site(site: &str, found: &Tensor, expected: &Tensor, layers: usize, ledger: &mut Ledger) -> Result<()> {
    if found.dims() != expected.dims() {
        let shapes = format!("{site} has shape {:?}, and {:?} in the reference", found.dims(), expected.dims());
        ledger.fail(Assertion::Reference, shapes);
        return Ok(());
    }
    let (difference, largest) = difference(found, expected)?;
    let tolerance = Assertion::Reference.tolerance() + OF_THE_LARGEST * largest * layers as f64;
    ledger.measure_within(Assertion::Reference, site, difference, tolerance);
    Ok(())
}

/// How many layers have had a part in a site, its own included; at least one.
fn depth(decoder: &Decoder, name: &str) -> usize {
    let sites = decoder.sites();
    let site = sites.iter().find(|site| site.name == name);
    match site.map(|site| (site.layer, site.role)) {
        Some((Some(layer), _)) => layer + 1,
        Some((None, Role::Embedding)) | None => 1,
        Some((None, _)) => sites.layers(),
    }
}

/// `[row, position]` of whole numbers.
fn token_ids(path: &Path, tensor: &Tensor) -> Result<Vec<Vec<u32>>> {
    let fail = || Error::read(path, "`tokens` must be whole numbers from 0 on, [row, position]");
    let whole = matches!(tensor.dtype(), DType::U8 | DType::U32 | DType::I64);
    let rows: Vec<Vec<i64>> = match tensor.rank() {
        2 if whole => tensor.to_dtype(DType::I64)?.to_vec2()?,
        _ => return Err(fail()),
    };
    let row = |row: Vec<i64>| row.into_iter().map(|id| u32::try_from(id).map_err(|_| fail())).collect();
    rows.into_iter().map(row).collect()
}

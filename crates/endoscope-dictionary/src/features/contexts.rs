//! The words around a feature's examples, and the words it makes more likely.

use std::collections::BTreeMap;

use endoscope_kernels::top_k_of_row;
use endoscope_net::{Inputs, Network};
use serde::{Deserialize, Serialize};

use super::gather::Example;
use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::evaluate::activations;
use crate::evaluate::splice::capturing;
use crate::matrix::Matrix;

/// A part of a row around an example, with the feature's activation on each token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Context {
    /// The row.
    pub row: u32,
    /// Where the part starts in it.
    pub start: u32,
    /// The token of the example, within the part.
    pub example: u32,
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// The feature's activation on each.
    pub activations: Vec<f32>,
}

/// The contexts of examples of features, `around` tokens on either side: those of `examples[i]` are entry `i`. Rows are run again.
pub fn contexts(
    network: &dyn Network,
    dictionary: &Dictionary,
    rows: &[Vec<u32>],
    examples: &[(usize, Vec<Example>)],
    around: usize,
) -> Result<Vec<Vec<Context>>> {
    let mut found: Vec<Vec<Option<Context>>> =
        examples.iter().map(|(_, examples)| vec![None; examples.len()]).collect();
    let mut by_row: BTreeMap<u32, Vec<(usize, usize)>> = BTreeMap::new();
    for (number, (feature, examples)) in examples.iter().enumerate() {
        dictionary.check_feature(*feature)?;
        for (at, example) in examples.iter().enumerate() {
            by_row.entry(example.row).or_default().push((number, at));
        }
    }
    for (row, wanted) in by_row {
        let tokens = rows.get(row as usize).ok_or_else(|| Error::Measure(format!("there is no row {row}")))?;
        let run = network.run(&Inputs::tokens(vec![tokens.clone()])?, &capturing(dictionary))?;
        let (input, _) = activations(network, dictionary, &run)?;
        let codes = dictionary.encode(&input)?;
        for (number, at) in wanted {
            let (feature, examples) = &examples[number];
            let position = examples[at].position as usize;
            if position >= tokens.len() {
                return Err(Error::Measure(format!("row {row} has no position {position}")));
            }
            let range = position.saturating_sub(around)..(position + around + 1).min(tokens.len());
            let activation = |position: usize| {
                let (columns, values) = codes.latents.row(position);
                columns.binary_search(&(*feature as u32)).map_or(0., |entry| values[entry])
            };
            found[number][at] = Some(Context {
                row,
                start: range.start as u32,
                example: (position - range.start) as u32,
                tokens: tokens[range.clone()].to_vec(),
                activations: range.map(activation).collect(),
            });
        }
    }
    Ok(found.into_iter().map(|contexts| contexts.into_iter().flatten().collect()).collect())
}

/// The tokens whose logits a feature's direction raises and lowers most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogitWeights {
    /// The most raised, with how much per unit of activation.
    pub top: Vec<(u32, f32)>,
    /// The most lowered.
    pub bottom: Vec<(u32, f32)>,
}

/// What a feature writes, through the unembedding `[vocabulary, d_model]` alone: norms and later layers are left out, and
/// differences between tokens, not single values, have a meaning.
pub fn logit_weights(
    dictionary: &Dictionary,
    feature: usize,
    unembedding: &Matrix,
    most: usize,
) -> Result<LogitWeights> {
    let direction = dictionary.direction(feature)?;
    if direction.len() != unembedding.columns() {
        let reason =
            format!("it writes {} dimensions, the unembedding reads {}", direction.len(), unembedding.columns());
        return Err(Error::Measure(reason));
    }
    let weights = unembedding.times_transposed(&Matrix::new(1, direction.len(), direction)?)?;
    let lowered: Vec<f32> = weights.values().iter().map(|x| -x).collect();
    let top = top_k_of_row(weights.values(), most).into_iter().map(|(value, token)| (token, value)).collect();
    let bottom = top_k_of_row(&lowered, most).into_iter().map(|(value, token)| (token, -value)).collect();
    Ok(LogitWeights { top, bottom })
}

//! A model that the user named: the dimension of each of its layers.

use endoscope_causal::dimension::{Points, TwoNn, measure};
use endoscope_causal::statistics::Resampling;
use endoscope_models::Model;
use endoscope_organisms::Row;
use endoscope_report::{Label, Section, Table, labels};
use serde::{Deserialize, Serialize};

use super::tokens::{Mirrors, Tokens, dimension};
use super::{Config, ORGANISM};
use crate::error::{Error, Result};
use crate::finding::{Line, Test};
use crate::lab::Lab;
use crate::shared::{read_rows, row_length};
use crate::study::Outcome;

/// How many rows are read at least.
const FEWEST: usize = 16;
/// How often rows are drawn again for an interval.
const RESAMPLES: usize = 500;

/// What a layer gave.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Layer {
    /// The mean local dimension and its interval.
    dimension: [f64; 3],
    /// The same of isotropic noise with the same norms, and of other such noise.
    noise: [f64; 2],
    /// How many points were equal to another.
    duplicates: usize,
}

/// The dimension of each layer, beside noise.
pub(super) fn outcome(lab: &Lab<'_>, config: &Config) -> Result<Outcome> {
    let model = lab.model(ORGANISM)?;
    let found = lab.each_seed("measuring", config, |seed| layers(&model, config, seed))?;
    // The layer that is least below noise decides.
    let highest = |of: fn(&Layer) -> f64| {
        let highest = |layers: &Vec<Layer>| layers.iter().map(of).fold(f64::NEG_INFINITY, f64::max);
        found.iter().map(highest).collect::<Vec<f64>>()
    };
    let lowest = |of: fn(&Layer) -> f64| {
        let lowest = |layers: &Vec<Layer>| layers.iter().map(of).fold(f64::INFINITY, f64::min);
        found.iter().map(lowest).collect::<Vec<f64>>()
    };
    let finding = Test {
        claim: "In every layer of this model hidden states fill fewer dimensions around each token than noise would."
            .into(),
        unit: "of the dimension of isotropic noise with the same norms, in the layer where that is most".into(),
        effect: Line::AtMost(0.8),
        control: "another draw of the noise, in the layer where it is least".into(),
        absent: Line::AtLeast(0.9),
    }
    .judge(&highest(|layer| layer.dimension[0] / layer.noise[0]), &lowest(|layer| layer.noise[1] / layer.noise[0]))?;
    let read = if config.text.is_empty() { "random tokens that come twice" } else { config.text.as_str() };
    let summary = format!(
        "The mean dimension around {} tokens, each on its {} nearest neighbours, was measured in each of {} layers, on {read}. How it \
         changes over a training cannot be seen from one checkpoint.",
        config.points,
        config.neighbours,
        model.spec().layers
    );
    let mut outcome = Outcome { summary, findings: vec![finding], ..Outcome::default() };
    type OfLayer = fn(&Layer) -> f64;
    let figures: [(&str, OfLayer); 6] = [
        ("dimension", |layer| layer.dimension[0]),
        ("low end", |layer| layer.dimension[1]),
        ("high end", |layer| layer.dimension[2]),
        ("isotropic noise", |layer| layer.noise[0]),
        ("isotropic noise again", |layer| layer.noise[1]),
        ("equal points left out", |layer| layer.duplicates as f64),
    ];
    let values =
        found.iter().flat_map(|layers| figures.iter().flat_map(move |(_, of)| layers.iter().map(of))).collect();
    let axes = [
        ("seed", lab.seeds().iter().map(|seed| Label::Text(seed.to_string())).collect()),
        ("figure", labels(figures.iter().map(|(name, _)| *name))),
        ("layer", labels(0..model.spec().layers as i64)),
    ];
    outcome.tables.insert("layers".into(), Table::new("mean local dimension after each layer", axes, values)?);
    outcome.sections.push(Section::Table {
        heading: Some("Layers".into()),
        table: "layers".into(),
        caption: "With the 95 % interval over rows (bootstrap), and noise of as many points and dimensions.".into(),
    });
    Ok(outcome)
}

fn layers(model: &Model, config: &Config, seed: u64) -> Result<Vec<Layer>> {
    let tokens = Tokens::new(rows(model, config, seed)?, Mirrors::Apart, config, seed)?;
    let resampling = Resampling { resamples: RESAMPLES, seed, ..Resampling::default() };
    let none = || Error::Unsuitable { reason: "around no point its neighbours have a dimension".into() };
    let layer = |points: Points| -> Result<Layer> {
        let found = measure(&points, &tokens.rows(), &TwoNn::default(), Some(config.neighbours), &resampling)?;
        let mean = found.local.ok_or_else(none)?.mean;
        // Streams of one seed are the same noise.
        let noise = |draw: u64| dimension(&points.isotropic(seed.wrapping_add(draw << 32))?, config);
        let dimension = [mean.estimate, mean.low, mean.high];
        Ok(Layer { dimension, noise: [noise(1)?, noise(2)?], duplicates: points.duplicates() })
    };
    tokens.layers(&model.decoder)?.into_iter().map(layer).collect()
}

/// Enough rows of the text or of random tokens. What the first token alone makes is not measured: in many models it is unlike all else.
fn rows(model: &Model, config: &Config, seed: u64) -> Result<Vec<Row>> {
    let (length, prefix) = row_length(model)?;
    // Twice as many as are needed if no two tokens come after the same ones; and not so few that they cannot be drawn again.
    let count = (2 * config.points.div_ceil(length - prefix.len() - 2)).max(FEWEST);
    let rows = read_rows(model, &config.text, count, seed)?;
    let row = |tokens: Vec<u32>| Row { mask: (0..tokens.len()).map(|at| at > 1).collect(), tokens };
    Ok(rows.into_iter().map(row).collect())
}

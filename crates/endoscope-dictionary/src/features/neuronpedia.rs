//! Features and activations as lines of JSON that Neuronpedia imports: the keys of SAEDashboard's export.

use serde_json::{Map, Value, json};

use super::contexts::{Context, LogitWeights};
use super::gather::Record;

/// Which model and dictionary the lines are of.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// The model's id.
    pub model: String,
    /// The dictionary's id within it: `8-res-jb`.
    pub source: String,
    /// The set it belongs to: `res-jb`.
    pub set: String,
    /// Who made it.
    pub creator: String,
    /// The site that it reads.
    pub hook_name: String,
}

/// A line of `features/batch-N.jsonl`. `neighbours` are the features whose decoder rows are nearest, `label` names a token.
pub fn feature_line(
    source: &Source,
    record: &Record,
    tokens: u64,
    weights: Option<&LogitWeights>,
    neighbours: &[(usize, f32)],
    label: impl Fn(u32) -> String,
) -> Value {
    let strings = |words: &[(u32, f32)]| words.iter().map(|&(token, _)| label(token)).collect::<Vec<_>>();
    let values = |words: &[(u32, f32)]| words.iter().map(|&(_, value)| value).collect::<Vec<_>>();
    let (top, bottom) = weights.map_or((&[][..], &[][..]), |weights| (&weights.top, &weights.bottom));
    let mut line = Map::new();
    let fields = [
        ("modelId", json!(source.model)),
        ("layer", json!(source.source)),
        ("index", json!(record.feature.to_string())),
        ("creatorId", json!(source.creator)),
        ("sourceSetName", json!(source.set)),
        ("hookName", json!(source.hook_name)),
        ("maxActApprox", json!(record.top.first().map_or(0., |example| example.activation))),
        ("frac_nonzero", json!(record.fired as f64 / tokens.max(1) as f64)),
        ("topkCosSimIndices", json!(neighbours.iter().map(|&(feature, _)| feature).collect::<Vec<_>>())),
        ("topkCosSimValues", json!(neighbours.iter().map(|&(_, cosine)| cosine).collect::<Vec<_>>())),
        ("pos_str", json!(strings(top))),
        ("pos_values", json!(values(top))),
        ("neg_str", json!(strings(bottom))),
        ("neg_values", json!(values(bottom))),
        ("hasVector", json!(false)),
    ];
    fields.into_iter().for_each(|(name, value)| {
        line.insert(name.into(), value);
    });
    Value::Object(line)
}

/// A line of `activations/batch-N.jsonl`: one context. Its id is made of what it is of, so that it is the same each time.
pub fn activation_line(source: &Source, feature: usize, context: &Context, label: impl Fn(u32) -> String) -> Value {
    let largest = context.activations.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
    let (at, most) = largest.unwrap_or((0, 0.));
    let least = context.activations.iter().copied().fold(f32::INFINITY, f32::min);
    json!({
        "id": format!("{}-{}-{feature}-{}-{}", source.model, source.source, context.row, context.start),
        "modelId": source.model,
        "layer": source.source,
        "index": feature.to_string(),
        "creatorId": source.creator,
        "tokens": context.tokens.iter().map(|&token| label(token)).collect::<Vec<_>>(),
        "values": context.activations,
        "maxValue": most,
        "maxValueTokenIndex": at,
        "minValue": least,
        "qualifyingTokenIndex": context.example,
        "dataIndex": context.row.to_string(),
    })
}

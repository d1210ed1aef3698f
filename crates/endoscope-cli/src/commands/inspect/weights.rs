//! `endoscope inspect --views`, `--heads`, `--composition` and `--channels`: what a model's weights are, as tables.

use anyhow::Result;
use clap::{Args, ValueEnum};
use endoscope_models::circuits::{Channel, Composition, HeadNumbers, PairChannels, positivity};
use endoscope_models::factored::Eigenvalue;
use endoscope_models::views::{WeightName, WeightView};
use endoscope_models::{Decoder, Model};
use serde_json::{Map, Value, json};

/// How many singular values of a head and how many pairs of heads the text shows.
const VALUES: usize = 3;
const PAIRS: usize = 20;

#[derive(Debug, Args)]
pub struct WeightsAsked {
    /// Show the weights by TransformerLens's names (W_Q, W_in …): their shapes and Frobenius norms.
    #[arg(long)]
    views: bool,
    /// Show each head's QK and OV circuits: norms, singular values, eigenvalues, and how much it copies.
    #[arg(long)]
    heads: bool,
    /// Show how much the queries, keys or values of later heads read of what earlier heads write.
    #[arg(long, value_name = "q|k|v")]
    composition: Option<Reader>,
    /// Split what each earlier head writes into its rank-one channels, and show the N that each later head reads most of.
    #[arg(long, value_name = "N", requires = "composition", value_parser = clap::value_parser!(u32).range(1..))]
    channels: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Reader {
    Q,
    K,
    V,
}

impl Reader {
    /// What composes, its letter, and its name in the plural.
    fn kind(self) -> (Composition, &'static str, &'static str) {
        match self {
            Self::Q => (Composition::Query, "q", "queries"),
            Self::K => (Composition::Key, "k", "keys"),
            Self::V => (Composition::Value, "v", "values"),
        }
    }
}

/// What was asked, as text and as entries of the JSON document.
#[derive(Debug, Default)]
pub struct Found {
    pub text: String,
    pub entries: Map<String, Value>,
}

impl WeightsAsked {
    /// Whether numbers are needed at all.
    pub fn any(&self) -> bool {
        self.views || self.heads || self.composition.is_some()
    }

    pub fn find(&self, model: &Model) -> Result<Found> {
        let decoder = &model.decoder;
        let mut found = Found::default();
        let processed: Vec<&str> = decoder.processed.iter().map(|process| process.name()).collect();
        if !processed.is_empty() {
            found.text += &format!("after {}\n", processed.join(", "));
        }
        found.entries.insert("processed".into(), json!(processed));
        let mut add = |name: &str, (lines, value): (Vec<String>, Value)| {
            if !found.text.is_empty() {
                found.text.push('\n');
            }
            found.text += &(lines.join("\n") + "\n");
            found.entries.insert(name.into(), value);
        };
        if self.views {
            add("views", views(decoder)?);
        }
        if self.heads {
            add("heads", heads(decoder)?);
        }
        if let Some(reader) = self.composition {
            add("composition", composition(decoder, reader)?);
            if let Some(most) = self.channels {
                add("channels", channels(decoder, reader, most as usize)?);
            }
        }
        Ok(found)
    }
}

fn views(decoder: &Decoder) -> Result<(Vec<String>, Value)> {
    let mut lines = vec![format!("{:<9} {:>6}  {:<24} {:>10}", "weight", "layers", "shape", "norm")];
    let mut entries = Vec::new();
    for &view in WeightView::ALL.iter().filter(|view| view.is_in(&decoder.spec)) {
        // Layers of one shape share a line: how many, and the sum of their squares.
        let mut shapes: Vec<(Vec<usize>, usize, f64)> = Vec::new();
        let layers: Vec<Option<usize>> = match view.in_layers() {
            true => (0..decoder.spec.layers).map(Some).collect(),
            false => vec![None],
        };
        for layer in layers {
            let is_mlp = layer.is_some_and(|layer| decoder.spec.experts(layer).is_none());
            if view == WeightView::Router && is_mlp {
                continue;
            }
            let weight = decoder.weight(WeightName { view, layer })?;
            let squares = f64::from(weight.sqr()?.sum_all()?.to_scalar::<f32>()?);
            entries.push(json!({"name": view.name(), "layer": layer, "shape": weight.dims(), "norm": squares.sqrt()}));
            match shapes.iter_mut().find(|(shape, ..)| shape == weight.dims()) {
                Some((_, count, sum)) => (*count, *sum) = (*count + 1, *sum + squares),
                None => shapes.push((weight.dims().to_vec(), 1, squares)),
            }
        }
        for (shape, count, squares) in shapes {
            let layers = if view.in_layers() { count.to_string() } else { String::new() };
            let shape = format!("{shape:?}");
            lines.push(format!("{:<9} {layers:>6}  {shape:<24} {:>10.4}", view.name(), squares.sqrt()));
        }
    }
    Ok((lines, json!(entries)))
}

fn heads(decoder: &Decoder) -> Result<(Vec<String>, Value)> {
    let mut lines = vec![format!(
        "{:<6} {:>8}  {:<24} {:>8}  {:<24} {:>10} {:>8}",
        "head", "|QK|", "its singular values", "|OV|", "its singular values", "positivity", "copying"
    )];
    let mut entries = Vec::new();
    let complex =
        |values: &[Eigenvalue]| -> Vec<[f64; 2]> { values.iter().map(|value| [value.real, value.imaginary]).collect() };
    for (layer, numbers) in decoder.heads()?.into_iter().enumerate() {
        for (head, numbers) in numbers.into_iter().enumerate() {
            let HeadNumbers { qk_norm, qk_singular_values, ov_norm, ov_singular_values, ov_eigenvalues, copying } =
                numbers;
            lines.push(format!(
                "{:<6} {qk_norm:>8.4}  {:<24} {ov_norm:>8.4}  {:<24} {:>10.3} {copying:>8.3}",
                format!("{layer}.{head}"),
                first(&qk_singular_values),
                first(&ov_singular_values),
                positivity(&ov_eigenvalues),
            ));
            entries.push(json!({
                "layer": layer, "head": head,
                "qk": {"norm": qk_norm, "singular_values": qk_singular_values},
                "ov": {
                    "norm": ov_norm, "singular_values": ov_singular_values,
                    "eigenvalues": complex(&ov_eigenvalues), "positivity": positivity(&ov_eigenvalues),
                },
                "copying": copying,
            }));
        }
    }
    Ok((lines, json!(entries)))
}

/// The first few values, and whether there are more.
fn first(values: &[f64]) -> String {
    let shown: Vec<String> = values.iter().take(VALUES).map(|value| format!("{value:.4}")).collect();
    shown.join(" ") + if values.len() > VALUES { " …" } else { "" }
}

fn composition(decoder: &Decoder, reader: Reader) -> Result<(Vec<String>, Value)> {
    let (kind, letter, name) = reader.kind();
    let heads = decoder.spec.heads;
    let rows = decoder.spec.layers * heads;
    let scores = decoder.composition_scores(kind)?.reshape((rows, rows))?.to_vec2::<f32>()?;
    let label = |at: usize| format!("{}.{}", at / heads, at % heads);
    let mut pairs: Vec<(f32, usize, usize)> = Vec::new();
    for (from, scores) in scores.iter().enumerate() {
        let later = (from / heads + 1) * heads;
        pairs.extend(scores.iter().enumerate().skip(later).map(|(to, &score)| (score, from, to)));
    }
    pairs.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
    let mut lines = vec![format!("what earlier heads write in the {name} of later heads, of {} pairs:", pairs.len())];
    let shown = pairs.iter().take(PAIRS);
    lines.extend(shown.map(|&(score, from, to)| format!("{:>6} -> {:<6} {score:.4}", label(from), label(to))));
    Ok((lines, json!({"reads": letter, "heads": (0..rows).map(label).collect::<Vec<_>>(), "scores": scores})))
}

/// The `most` strongest channels of each pair, the pair with the strongest one first.
fn channels(decoder: &Decoder, reader: Reader, most: usize) -> Result<(Vec<String>, Value)> {
    let (kind, _, name) = reader.kind();
    let mut pairs: Vec<(PairChannels, Vec<Channel>)> = Vec::new();
    let mut scores: Vec<f64> = Vec::new();
    for pair in decoder.channels(kind)? {
        scores.extend(pair.channels.iter().map(|channel| channel.score));
        let mut strongest = pair.strongest();
        strongest.truncate(most);
        pairs.push((pair, strongest));
    }
    let best = |channels: &[Channel]| channels.first().map_or(0., |channel| channel.score);
    pairs.sort_by(|a, b| best(&b.1).total_cmp(&best(&a.1)).then((a.0.from, a.0.to).cmp(&(b.0.from, b.0.to))));
    scores.sort_by(f64::total_cmp);
    let median = scores.get(scores.len() / 2).copied().unwrap_or(0.);
    let random = 1. / (decoder.spec.d_model as f64).sqrt();
    let label = |(layer, head): (usize, usize)| format!("{layer}.{head}");
    let shown = |channel: &Channel| format!("{:>3}: {:.4} ({:.2})", channel.number, channel.score, channel.share);
    let mut lines = vec![
        format!(
            "channels of what earlier heads write in the {name} of later heads, number: score (share of the pair);"
        ),
        format!("of {} channels the median scores {median:.4}; a random direction, {random:.4}:", scores.len()),
    ];
    lines.extend(pairs.iter().take(PAIRS).map(|(pair, channels)| {
        let channels: Vec<String> = channels.iter().map(shown).collect();
        format!("{:>6} -> {:<6} {:.4}  {}", label(pair.from), label(pair.to), pair.score, channels.join("  "))
    }));
    let entry = |channel: &Channel| {
        let Channel { number, singular_value, score, share } = *channel;
        json!({"channel": number, "singular_value": singular_value, "score": score, "share": share})
    };
    let entries = pairs.iter().map(|(pair, channels)| {
        let channels: Vec<Value> = channels.iter().map(entry).collect();
        json!({"from": label(pair.from), "to": label(pair.to), "score": pair.score, "channels": channels})
    });
    let document = json!({"median": median, "random_direction": random, "pairs": entries.collect::<Vec<_>>()});
    Ok((lines, document))
}

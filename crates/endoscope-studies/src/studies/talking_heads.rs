//! Talking heads: inter-layer communication (arXiv 2406.09519).
//!
//! Low-rank channels between heads, looked for in the weights and tested by edits. What a head writes is `x W_V W_O`; the singular value
//! decomposition of `W_V W_O` splits it into components of rank one, and each is scored by how much of it a later head reads with its keys:
//! `|s_i v_i^T W_K W_Q^T| / (|W_V W_O| |W_K W_Q^T|)` in Frobenius norms. The channel is the span of the few `v_i` with the highest scores.
//!
//! The paper's case is a large model and the names of a sentence. Here it is the smallest mechanism in which one head tells another where to look:
//! a previous-token head and the induction heads that read it, in a model trained to repeat sequences.

use std::collections::BTreeMap;

use candle_core::{D, Device, Tensor};
use endoscope_causal::{accuracy, repeated_tokens};
use endoscope_models::factored::Factored;
use endoscope_models::process::{self, Process};
use endoscope_models::{Decoder, Model};
use endoscope_net::{AxisName, Capture, Change, Edit, Index, Inputs, Network, Plan};
use endoscope_report::{ColourScale, Section, Table, labels};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::finding::{Line, Test};
use crate::lab::Lab;
use crate::shared::{Head, noise, random_directions};
use crate::study::{Outcome, Study, Untested};

/// The organism: eight heads a layer, so that there are pairs that do not talk.
const ORGANISM: &str = "induction-redundant";
/// Ground truth: the pair that talks was planted.
const CONSTRUCTED: &str = "constructed-induction";
const PLANTED: [Head; 2] = [Head { layer: 0, head: 2 }, Head { layer: 1, head: 1 }];
/// A model whose accuracy is below this repeats nothing, so nothing can be said of how it does.
const REPEATS: f64 = 0.5;

/// The study.
pub struct TalkingHeads;

/// How the channel is looked for and tested.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// How many sequences each figure is measured on.
    #[schemars(range(min = 2, max = 4096))]
    rows: usize,
    /// How many words a sequence has before it repeats.
    #[schemars(range(min = 4, max = 512))]
    period: usize,
    /// How many components the channel has.
    #[schemars(range(min = 1, max = 64))]
    rank: usize,
    /// Over how many draws the control with random directions is averaged.
    #[schemars(range(min = 1, max = 64))]
    draws: usize,
    /// Whether the organism is trained anew with each seed, or is the one shipped. A model named by --model is taken as it is.
    train: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { rows: 64, period: 12, rank: 3, draws: 8, train: true }
    }
}

/// What is measured with one seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figures {
    /// The pair with the highest score of all.
    writer: Head,
    reader: Head,
    /// Its score over the median of all pairs' scores, of the model and of one that was not trained.
    outlier: f64,
    untrained_outlier: f64,
    /// Accuracy lost without the channel; without as much in random directions; without as many components of another head.
    whole: f64,
    without: f64,
    without_random: f64,
    without_other: f64,
    /// Of positions whose coordinates were exchanged: the share where the reader then looks at the other one.
    moved: f64,
    moved_random: f64,
    /// Scores of all pairs `[earlier, later]`, row by row, of the writer's and the reader's layers.
    scores: Vec<Vec<f64>>,
}

impl Study for TalkingHeads {
    const SLUG: &'static str = "talking-heads";
    const SEEDS: &'static [u64] = &[11, 12, 13];
    const UNTESTED: &'static [Untested] = &[
        Untested {
            claim: "Channels carry which of several listed items is meant, in the circuit that names the indirect object.",
            why: "No organism has learned such sentences yet; the induction circuit, which is tested, is another.",
        },
        Untested {
            claim: "Edits along a channel raise the recall of items from long lists by more than 20 points.",
            why: "That needs a model which has learned lists and fails on long ones.",
        },
        Untested {
            claim: "Heads talk to the queries and values of later ones as well.",
            why: "Only keys are scored here, because they are what the mechanism of this organism uses.",
        },
        Untested {
            claim: "The same holds in models of hundreds of millions of weights.",
            why: "It was not run on any; --model takes one that repeats sequences.",
        },
    ];
    type Config = Config;

    fn smoke() -> Config {
        Config { rows: 16, draws: 3, train: false, ..Config::default() }
    }

    fn run(&self, lab: &Lab<'_>, config: &Config) -> Result<Outcome> {
        let figures = lab.each_model((ORGANISM, config.train), "measuring", config, |model, seed| {
            measure(model, config, seed, channel)
        })?;
        let planted = lab.organism(CONSTRUCTED)?;
        let planted = lab.each_seed("ground truth", &PLANTED, |seed| ground_truth(&planted.decoder, seed))?;
        outcome(config, &figures, &planted)
    }
}

/// How the directions of a channel are chosen: [`channel`], or in a test something that is none.
type Choose = fn(&Decoder, Head, Head, usize) -> Result<Tensor>;

/// Everything of one model and seed.
fn measure(model: &Model, config: &Config, seed: u64, choose: Choose) -> Result<Figures> {
    let folded = folded(&model.decoder)?;
    let scores = Scores::of(&folded)?;
    let [writer, reader] = scores.highest();
    let bench = Bench::new(model, config, seed)?;
    let whole = bench.accuracy(&Plan::default())?;
    if whole < REPEATS {
        return Err(Error::Unsuitable {
            reason: format!(
                "of words that were all there before it predicts {whole:.3}; at least {REPEATS} must be right"
            ),
        });
    }
    let channel = choose(&folded, writer, reader, config.rank)?;
    let written = bench.written(writer)?;
    let parts = along(&written, &channel)?;
    let removed = |head: Head, parts: &Tensor, directions: &Tensor| {
        bench.accuracy(&adds(head, &times(parts, directions)?.neg()?)?)
    };
    let without = removed(writer, &parts, &channel)?;
    let without_other = match scores.quietest(writer, reader) {
        Some(other) => {
            let directions = choose(&folded, other, reader, config.rank)?;
            removed(other, &along(&bench.written(other)?, &directions)?, &directions)?
        }
        // The writer's layer has no other head to compare with: the control is as good as the effect, and so nothing is shown.
        None => without,
    };
    let (mut without_random, mut moved_random) = (0., 0.);
    let draws = config.draws as f64;
    for draw in 0..config.draws {
        let directions = random_directions(channel.dims2()?, seed, draw as u64)?;
        without_random += removed(writer, &parts, &directions)? / draws;
        moved_random += bench.moved([writer, reader], &parts, &directions)? / draws;
    }
    let moved = bench.moved([writer, reader], &parts, &channel)?;
    Ok(Figures {
        writer,
        reader,
        outlier: scores.outlier(),
        untrained_outlier: Scores::random(&folded, seed)?.outlier(),
        whole,
        without,
        without_random,
        without_other,
        moved,
        moved_random,
        scores: scores.between(writer.layer, reader.layer),
    })
}

/// The model's weights with its norms folded into what reads through them; it computes the same.
fn folded(decoder: &Decoder) -> Result<Decoder> {
    let mut folded = decoder.clone();
    process::apply(&mut folded, &[Process::FoldLayerNorm])?;
    Ok(folded)
}

/// On weights written by hand: the planted writer's score less the highest of any other head of its layer, for the planted reader. And the
/// same where all weights are random.
fn ground_truth(decoder: &Decoder, seed: u64) -> Result<[f64; 2]> {
    let decoder = folded(decoder)?;
    let [writer, reader] = PLANTED;
    let lead = |scores: &Scores| {
        let others = (0..decoder.spec.heads).map(|head| Head { head, ..writer }).filter(|other| *other != writer);
        let next = others.filter_map(|other| scores.of_pair(other, reader)).fold(0., f64::max);
        scores.of_pair(writer, reader).unwrap_or(0.) - next
    };
    Ok([lead(&Scores::of(&decoder)?), lead(&Scores::random(&decoder, seed)?)])
}

fn outcome(config: &Config, figures: &[Figures], planted: &[[f64; 2]]) -> Result<Outcome> {
    let all = |of: fn(&Figures) -> f64| figures.iter().map(of).collect::<Vec<f64>>();
    let rank = config.rank;
    let dropped = all(|f| f.whole - f.without);
    let findings = vec![
        Test {
            claim: "In weights written by hand, the keys of the reader compose most with the head that was planted as its writer.".into(),
            unit: "more than the score of the next head".into(),
            effect: Line::AtLeast(0.1),
            control: "the same place in random weights".into(),
            absent: Line::AtMost(0.05),
        }
        .judge(&planted.iter().map(|each| each[0]).collect::<Vec<_>>(), &planted.iter().map(|each| each[1]).collect::<Vec<_>>())?,
        Test {
            claim: "In the weights of the model, one pair of heads stands far out of the rest.".into(),
            unit: "times the score of the median pair".into(),
            effect: Line::AtLeast(1.75),
            control: "the highest pair in random weights of the same shape".into(),
            absent: Line::AtMost(1.4),
        }
        .judge(&all(|f| f.outlier), &all(|f| f.untrained_outlier))?,
        Test {
            claim: format!("Taking away the {rank} components of that pair's channel costs the task 30 points of accuracy or more."),
            unit: "of accuracy lost".into(),
            effect: Line::AtLeast(0.3),
            control: "as much taken away in random directions".into(),
            absent: Line::AtMost(0.05),
        }
        .judge(&dropped, &all(|f| f.whole - f.without_random))?,
        Test {
            claim: format!("The {rank} components of that head cost the task as much, those of just any head of its layer do not."),
            unit: "of accuracy lost".into(),
            effect: Line::AtLeast(0.3),
            control: "as many components of the head of that layer which the reader composes with least".into(),
            absent: Line::AtMost(0.05),
        }
        .judge(&dropped, &all(|f| f.whole - f.without_other))?,
        Test {
            claim: "Other items' coordinates, written into the channel, make the reader look at other items.".into(),
            unit: "of queries now look where they were sent".into(),
            effect: Line::AtLeast(0.7),
            control: "coordinates exchanged in random directions".into(),
            absent: Line::AtMost(0.1),
        }
        .judge(&all(|f| f.moved), &all(|f| f.moved_random))?,
    ];
    let pairs: Vec<String> = figures.iter().map(|f| format!("{} to {}", f.writer, f.reader)).collect();
    let summary = format!(
        "Every pair of heads was scored from the weights alone by how much of what the earlier one writes the keys of the later one read; with the seeds \
         in order, the pairs with the highest scores are {} (layer.head). The {rank} components of that channel were then taken away, and \
         exchanged between positions, in sequences of {} words that come twice.",
        pairs.join(", "),
        config.period
    );
    let mut outcome = Outcome { summary, findings, ..Outcome::default() };
    let Some(Figures { writer, reader, scores, .. }) = figures.first() else { return Ok(outcome) };
    let axes = [
        ("writer", labels(names(writer.layer, scores.len()))),
        ("reader", labels(names(reader.layer, scores[0].len()))),
    ];
    let table = Table::new(
        "composition of what a head writes with the keys of a later one, from 0 to 1",
        axes,
        scores.concat(),
    )?;
    outcome.tables.insert("composition".into(), table);
    outcome.sections.push(Section::HeatMap {
        heading: Some("Who talks to whom".into()),
        table: "composition".into(),
        alternatives: vec![],
        scale: ColourScale::UNIT,
        caption: "Composition scores of the layers of the highest pair, with the first seed.".into(),
    });
    Ok(outcome)
}

fn names(layer: usize, heads: usize) -> Vec<String> {
    (0..heads).map(|head| Head { layer, head }.to_string()).collect()
}

// ---- from the weights ----

/// The composition scores of all pairs, by keys.
struct Scores {
    heads: usize,
    of: BTreeMap<[usize; 2], f64>,
}

impl Scores {
    /// Of a model's own weights.
    fn of(decoder: &Decoder) -> Result<Self> {
        let layers = 0..decoder.spec.layers;
        let writes =
            layers.clone().map(|layer| Ok(decoder.ov(layer)?)).collect::<Result<Vec<_>>>()?.into_iter().flatten();
        let reads = layers.map(|layer| Ok(decoder.qk(layer)?)).collect::<Result<Vec<_>>>()?.into_iter().flatten();
        Self::of_factors(
            decoder.spec.heads,
            &writes.collect::<Vec<_>>(),
            &reads.map(|qk| qk.transpose()).collect::<Vec<_>>(),
        )
    }

    /// Of weights drawn at random in the shapes of a model's: what is left when nothing was learned.
    fn random(decoder: &Decoder, seed: u64) -> Result<Self> {
        let (layers, heads, width, inner) =
            (decoder.spec.layers, decoder.spec.heads, decoder.spec.d_model, decoder.spec.d_head);
        let drawn = |stream: u64| -> Result<Factored> {
            Ok(Factored::new(&noise((width, inner), seed, stream)?, &noise((inner, width), seed, stream + 1)?)?)
        };
        let factored =
            |which: u64| (0..layers * heads).map(|head| drawn(4 * head as u64 + which)).collect::<Result<Vec<_>>>();
        Self::of_factors(heads, &factored(0)?, &factored(2)?)
    }

    /// `|W_OV (W_QK)^T| / (|W_OV| |W_QK|)` of every head's `W_OV` with that of every head of a later layer; 0 where either does nothing.
    fn of_factors(heads: usize, writes: &[Factored], reads: &[Factored]) -> Result<Self> {
        let mut of = BTreeMap::new();
        for (writer, write) in writes.iter().enumerate() {
            for (reader, read) in reads.iter().enumerate().filter(|(reader, _)| reader / heads > writer / heads) {
                let norms = write.norm() * read.norm();
                let product = Factored::new(&write.without_left()?, &read.without_right()?)?.norm();
                of.insert([writer, reader], if norms > 0. { product / norms } else { 0. });
            }
        }
        match of.is_empty() {
            true => Err(Error::Unsuitable { reason: "it has no two layers, so no head reads another".into() }),
            false => Ok(Self { heads, of }),
        }
    }

    fn of_pair(&self, writer: Head, reader: Head) -> Option<f64> {
        self.of.get(&[writer, reader].map(|head| head.layer * self.heads + head.head)).copied()
    }

    fn highest(&self) -> [Head; 2] {
        let highest = self.of.iter().max_by(|a, b| a.1.total_cmp(b.1)).map_or([0, self.heads], |(pair, _)| *pair);
        highest.map(|at| Head { layer: at / self.heads, head: at % self.heads })
    }

    /// The highest score over the median of all.
    fn outlier(&self) -> f64 {
        let mut sorted: Vec<f64> = self.of.values().copied().collect();
        sorted.sort_by(f64::total_cmp);
        let middle = (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.;
        sorted[sorted.len() - 1] / middle
    }

    /// Another head of the writer's layer, the one of which the reader reads least.
    fn quietest(&self, writer: Head, reader: Head) -> Option<Head> {
        let others = (0..self.heads).map(|head| Head { head, ..writer }).filter(|other| *other != writer);
        let scored = others.filter_map(|other| Some((self.of_pair(other, reader)?, other)));
        scored.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, other)| other)
    }

    /// `[writer][reader]` of two layers.
    fn between(&self, writers: usize, readers: usize) -> Vec<Vec<f64>> {
        let head = |layer| move |head| Head { layer, head };
        let row = |writer: Head| {
            (0..self.heads).map(head(readers)).map(|reader| self.of_pair(writer, reader).unwrap_or(0.)).collect()
        };
        (0..self.heads).map(head(writers)).map(row).collect()
    }
}

/// The channel from `writer` to `reader`: the `rank` directions `[rank, d]` with the highest scores.
fn channel(folded: &Decoder, writer: Head, reader: Head, rank: usize) -> Result<Tensor> {
    let directions = directions(folded, writer, reader)?;
    match directions.dim(0)? {
        most if rank <= most => Ok(directions.narrow(0, 0, rank)?),
        most => {
            let problems = vec![format!("`rank` is {rank}, but what head {writer} writes has {most} components")];
            Err(Error::Settings { slug: TalkingHeads::SLUG, problems })
        }
    }
}

/// The directions `[component, d]` of all components of what `writer` writes, orthonormal, in order of how much `reader`'s keys read of each.
fn directions(folded: &Decoder, writer: Head, reader: Head) -> Result<Tensor> {
    let written = folded.ov(writer.layer)?[writer.head].svd()?;
    let read = folded.qk(reader.layer)?[reader.head].transpose().without_right()?;
    let directions = written.right.t()?.contiguous()?;
    let lengths = directions.matmul(&read)?.sqr()?.sum(D::Minus1)?.sqrt()?.to_vec1::<f32>()?;
    let score = |at: u32| f64::from(lengths[at as usize]) * written.values[at as usize];
    let mut order: Vec<u32> = (0..lengths.len() as u32).collect();
    order.sort_by(|&a, &b| score(b).total_cmp(&score(a)));
    Ok(directions.index_select(&Tensor::new(order, &Device::Cpu)?, 0)?)
}

// ---- by edits ----

/// A model with sequences of words that come twice.
struct Bench<'a> {
    decoder: &'a Decoder,
    rows: Vec<Vec<u32>>,
    /// How many tokens come before the first copy, and how many words a copy has.
    prefix: usize,
    period: usize,
}

impl<'a> Bench<'a> {
    fn new(model: &'a Model, config: &Config, seed: u64) -> Result<Self> {
        let tokenizer = model.tokenizer.as_ref();
        let bos = tokenizer.and_then(|tokenizer| tokenizer.bos.as_ref().map(|(id, _)| *id));
        let prefix: Vec<u32> =
            bos.filter(|_| tokenizer.is_some_and(|tokenizer| tokenizer.prepends_bos)).into_iter().collect();
        let unknown = tokenizer.and_then(|tokenizer| tokenizer.unknown());
        let special = |id: &u32| bos == Some(*id) || unknown == Some(*id) || model.end_tokens.contains(id);
        let vocabulary: Vec<u32> = (0..model.spec().vocabulary as u32).filter(|id| !special(id)).collect();
        // Rows of one length, so that what is written at a position can be handed to the same position of another run.
        let row = |row: u64| {
            repeated_tokens(&vocabulary, &prefix, 1, config.period, seed.wrapping_mul(1 << 20).wrapping_add(row))
        };
        let rows = (0..config.rows as u64).map(row).collect::<endoscope_causal::Result<Vec<_>>>()?.concat();
        Ok(Self { decoder: &model.decoder, rows, prefix: prefix.len(), period: config.period })
    }

    /// The share of words of the second copy that are predicted, its first one left out.
    fn accuracy(&self, plan: &Plan) -> Result<f64> {
        let certain = self.prefix + self.period + 1;
        let answers = |row: &Vec<u32>| (0..row.len()).map(|at| (at >= certain).then(|| row[at])).collect();
        let answers: Vec<Vec<Option<u32>>> = self.rows.iter().map(answers).collect();
        Ok(accuracy(self.decoder, &self.rows, &answers, plan)?.top)
    }

    /// What a head writes `[row, position, d]`.
    fn written(&self, head: Head) -> Result<Tensor> {
        let site = format!("result.{}", head.layer);
        let capture = Capture::new(&site).at(AxisName::Head, Index::List(vec![head.head as i64]));
        let run = self.decoder.run(&Inputs::tokens(self.rows.clone())?, &Plan::default().capture(capture))?;
        Ok(run.captured.get(&format!("blocks.{}.attn.hook_result", head.layer))?.squeeze(2)?)
    }

    /// The share of queries of the second copy for which the reader looks where the exchange of `parts` `[row, position, rank]` sends it.
    ///
    /// At the word after item `a` of the first copy the writer notes `a`; the reader, at `a` in the second copy, looks for that note. Each
    /// of these notes is replaced, along the directions `[rank, d]`, by that of the item half a copy further on.
    fn moved(&self, [writer, reader]: [Head; 2], parts: &Tensor, directions: &Tensor) -> Result<f64> {
        let (first, notes) = (self.prefix + 1, self.period - 1);
        let further = |note: usize| (note + notes / 2) % notes;
        let length = parts.dim(1)?;
        let from = (0..length).map(|at| match at.checked_sub(first).filter(|note| *note < notes) {
            Some(note) => (first + further(note)) as u32,
            None => at as u32,
        });
        let exchanged = parts.index_select(&Tensor::from_iter(from, &Device::Cpu)?, 1)?;
        let change = times(&(exchanged - parts)?, directions)?;
        let capture =
            Capture::new(format!("pattern.{}", reader.layer)).at(AxisName::Head, Index::List(vec![reader.head as i64]));
        let run = self.decoder.run(&Inputs::tokens(self.rows.clone())?, &adds(writer, &change)?.capture(capture))?;
        let pattern = run.captured.get(&format!("blocks.{}.attn.hook_pattern", reader.layer))?.squeeze(1)?;
        let looks = pattern.argmax(D::Minus1)?.to_vec2::<u32>()?;
        let sent = |note: usize| {
            let query = self.prefix + self.period + further(note);
            looks.iter().filter(move |row| row[query] as usize == first + note).count()
        };
        Ok((0..notes).map(sent).sum::<usize>() as f64 / (notes * self.rows.len()) as f64)
    }
}

/// The coordinates `[row, position, rank]` of what was written `[row, position, d]` along directions `[rank, d]`.
fn along(written: &Tensor, directions: &Tensor) -> Result<Tensor> {
    times(written, &directions.t()?.contiguous()?)
}

fn times(rows: &Tensor, matrix: &Tensor) -> Result<Tensor> {
    Ok(rows.broadcast_matmul(matrix)?)
}

/// A plan that adds `change` `[row, position, d]` to what a head writes.
fn adds(head: Head, change: &Tensor) -> Result<Plan> {
    let change = Change::Add { value: change.unsqueeze(2)?.into(), scale: 1. };
    Ok(Plan::default()
        .edit(Edit::new(format!("result.{}", head.layer), change).at(AxisName::Head, Index::At(head.head as i64))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Level;
    use endoscope_models::circuits::Composition;
    use endoscope_report::Verdict;
    use endoscope_train::Recipe;

    /// The components that the reader's keys read least: a channel that carries nothing.
    fn least_read(folded: &Decoder, writer: Head, reader: Head, rank: usize) -> Result<Tensor> {
        let all = directions(folded, writer, reader)?;
        Ok(all.narrow(0, all.dim(0)? - rank, rank)?)
    }

    fn figures(choose: Choose) -> Vec<Figures> {
        let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
        let model = lab.model(ORGANISM).unwrap();
        let config = TalkingHeads::smoke();
        lab.seeds().iter().map(|&seed| measure(&model, &config, seed, choose).unwrap()).collect()
    }

    fn verdicts(figures: &[Figures], planted: [f64; 2]) -> Vec<Verdict> {
        let outcome = outcome(&TalkingHeads::smoke(), figures, &[planted; 3]).unwrap();
        outcome.findings.iter().map(|finding| finding.verdict()).collect()
    }

    #[test]
    fn claims_fall_where_the_effect_is_taken_away() {
        let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
        let constructed = lab.organism(CONSTRUCTED).unwrap();
        let planted = ground_truth(&constructed.decoder, 1).unwrap();
        let mut found = figures(channel);
        for each in &found {
            assert_eq!((each.writer, each.reader.layer), (Head { layer: 0, head: 7 }, 1), "the previous-token head");
            assert!(each.whole > 0.98 && each.whole - each.without > 0.35, "{each:?}");
            assert!(each.moved > 0.4 && each.moved_random < 0.1, "{each:?}");
        }
        let [truth, stands_out, _, of_the_head, _] = verdicts(&found, planted)[..] else { panic!("five claims") };
        assert_eq!([truth, stands_out, of_the_head], [Verdict::Shown; 3]);
        // Scores of random weights in place of the model's.
        for each in &mut found {
            each.outlier = each.untrained_outlier;
        }
        assert_eq!(verdicts(&found, [planted[1]; 2])[..2], [Verdict::NotShown; 2]);
        // A channel of what nobody reads.
        let empty = figures(least_read);
        for each in &empty {
            assert!(each.whole - each.without < 0.05 && each.moved < 0.1, "{each:?}");
        }
        assert_eq!(verdicts(&empty, planted)[2..], [Verdict::NotShown; 3]);
    }

    #[test]
    fn the_scores_are_those_of_the_decoder() {
        let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
        let folded = folded(&lab.model(ORGANISM).unwrap().decoder).unwrap();
        let scores = Scores::of(&folded).unwrap();
        let all = folded.composition_scores(Composition::Key).unwrap();
        let count = all.elem_count().isqrt();
        let all = all.reshape((count, count)).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(scores.of.len(), 64);
        for ([writer, reader], score) in &scores.of {
            assert!((score - f64::from(all[*writer][*reader])).abs() < 1e-5);
        }
    }

    #[test]
    fn the_channel_is_orthonormal_and_not_wider_than_what_is_written() {
        let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
        let folded = folded(&lab.model(ORGANISM).unwrap().decoder).unwrap();
        let [writer, reader] = Scores::of(&folded).unwrap().highest();
        for directions in [channel(&folded, writer, reader, 8).unwrap(), random_directions((8, 64), 1, 2).unwrap()] {
            let gram = directions.matmul(&directions.t().unwrap()).unwrap().to_vec2::<f32>().unwrap();
            for (row, products) in gram.iter().enumerate() {
                for (column, product) in products.iter().enumerate() {
                    assert!((product - f32::from(u8::from(row == column))).abs() < 1e-4, "{row} {column}: {product}");
                }
            }
        }
        assert!(channel(&folded, writer, reader, 9).unwrap_err().to_string().contains("8 components"));
    }

    #[test]
    fn a_model_that_repeats_nothing_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap().with_cache(folder.path());
        let mut recipe = Recipe::read(lab.organism(ORGANISM).unwrap().directory.join("recipe.toml")).unwrap();
        (recipe.training.steps, recipe.training.warmup_steps) = (1, 0);
        let model = lab.trained(&recipe).unwrap();
        let error = measure(&model, &TalkingHeads::smoke(), 1, channel).unwrap_err().to_string();
        assert!(error.contains("at least 0.5"), "{error}");
        // Trained once: it is opened from where it is kept.
        assert_eq!(lab.trained(&recipe).unwrap().directory, model.directory);
        assert!(model.directory.starts_with(folder.path()));
    }
}

//! What is measured of one organism: its answers, the features of its dictionary, and what edits do.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use endoscope_causal::statistics::{Alternative, Permutations, auc, benjamini_hochberg, two_sample};
use endoscope_dictionary::evaluate::FitSums;
use endoscope_dictionary::training::{BiasStart, InputScaling, Objective, Settings};
use endoscope_dictionary::{Dictionary, Matrix};
use endoscope_models::Model;
use endoscope_net::{AxisName, Change, Edit, FeatureChange, Index, Inputs, Network, NewActivation, Plan};
use endoscope_organisms::tasks::opinions::Opinions;
use endoscope_train::generator;
use rand::RngExt;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use super::Config;
use crate::error::Result;
use crate::vectors::{Order, joined, trained, vectors};

/// Between the two layers: names have been put together, opinions not yet given.
const SITE: &str = "blocks.0.hook_resid_post";
/// Areas under the ROC curve from which a feature is counted.
pub const THRESHOLDS: [f64; 4] = [0.55, 0.6, 0.7, 0.8];
/// Multiples of the steering vector.
pub const SCALES: [f64; 4] = [1., 2., 4., 8.];
/// Below which corrected p-value a feature is counted.
const LEVEL: f64 = 0.05;
/// How many features a value's is compared with.
const MATCHED: usize = 5;
/// How many vectors an update of a dictionary sees.
const BATCH: usize = 256;

/// What becomes of answers on topics without some feature; the mean over values.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Without {
    /// How well the feature tells who holds the value: an area under the ROC curve of at least 0.5.
    pub auc: f64,
    /// The share of answers that lose half of their margin over the other side, or turn.
    pub shifted: f64,
    /// That of answers that become the other side's.
    pub turned: f64,
    /// That of answers that become a refusal.
    pub refused: f64,
}

/// Everything of one organism.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The shares of right answers to opinions that are known, and to those that are not.
    pub known: f64,
    pub unknown: f64,
    pub fvu: f64,
    pub l0: f64,
    pub latents: usize,
    /// Features of topics, from each threshold on; with topics and neutral words exchanged at random; of a dictionary
    /// that was not trained.
    pub count: Vec<usize>,
    pub shuffled: Vec<usize>,
    pub untrained: Vec<usize>,
    /// Without the values' features, and without others that are as active.
    pub ablated: Without,
    pub matched: Without,
    /// The share of answers that go to the other side, by multiples of the difference of means, and of random vectors
    /// as long.
    pub steered: Vec<f64>,
    pub random: Vec<f64>,
    /// How long the difference of means is, in mean lengths of the vectors it is added to.
    pub length: f64,
}

impl Figures {
    /// A count as a share of the features, at the threshold that claims are of.
    pub fn share(&self, count: &[usize]) -> f64 {
        count[super::COUNTED] as f64 / self.latents as f64
    }
}

/// Logits of yes, no and refusal.
type Said = [f32; 3];

/// An organism with its prompts: of every person on every word, person after person.
struct Organism<'a> {
    model: &'a Model,
    world: &'a Opinions,
    prompts: Vec<Vec<u32>>,
}

impl Organism<'_> {
    fn at(&self, person: usize, word: usize) -> usize {
        person * self.world.count() + word
    }

    /// What is said to these prompts under a plan.
    fn says(&self, prompts: &[usize], plan: &Plan) -> Result<Vec<Said>> {
        let [yes, no] = self.world.sides();
        let tokens = [yes, no, self.world.refusal()];
        let plan = plan.clone().outputs_at(Index::At(-1));
        let mut said = Vec::new();
        for some in prompts.chunks(256) {
            let rows = some.iter().map(|&prompt| self.prompts[prompt].clone()).collect();
            let logits = self.model.decoder.run(&Inputs::tokens(rows)?, &plan)?.outputs.to_vec3::<f32>()?;
            said.extend(logits.iter().map(|row| tokens.map(|token| row[0][token as usize])));
        }
        Ok(said)
    }

    /// The share of right answers.
    fn right(&self, pairs: &[(usize, usize)]) -> Result<f64> {
        let prompts: Vec<usize> = pairs.iter().map(|&(person, topic)| self.at(person, topic)).collect();
        let [yes, no] = self.world.sides();
        let tokens = [yes, no, self.world.refusal()];
        let said = self.says(&prompts, &Plan::default())?;
        let right =
            said.iter().zip(pairs).filter(|(said, pair)| tokens[largest(said)] == self.world.answer(pair.0, pair.1));
        Ok(right.count() as f64 / pairs.len() as f64)
    }

    /// The known pairs of person and topic that are answered rightly, by the prompt, with the side that is said: 0 or
    /// 1.
    fn opinions(&self) -> Result<Vec<(usize, usize, usize)>> {
        let [yes, no] = self.world.sides();
        let pairs = self.world.pairs(true);
        let prompts: Vec<usize> = pairs.iter().map(|&(person, topic)| self.at(person, topic)).collect();
        let said = self.says(&prompts, &Plan::default())?;
        let opinion = |(said, &(person, topic)): (&Said, &(usize, usize))| {
            let side = largest(said);
            let right = side < 2 && [yes, no][side] == self.world.answer(person, topic);
            right.then_some((person, topic, side))
        };
        Ok(said.iter().zip(pairs).filter_map(opinion).collect())
    }
}

/// Everything of one organism.
pub fn measured(model: &Model, world: &Opinions, config: &Config, seed: u64) -> Result<Figures> {
    let words = world.count();
    let prompts =
        (0..world.persons()).flat_map(|person| (0..words).map(move |word| world.prompt(person, word))).collect();
    let organism = Organism { model, world, prompts };
    // `<bos>` is the same in all.
    let all = vectors(&model.decoder, SITE, &organism.prompts)?;
    let later: Vec<Matrix> = all.iter().map(|row| row.select(1..row.rows())).collect();
    let pool = joined(&later)?;
    let train = |updates: u64| {
        let settings = settings(config, updates, seed);
        let sizes = vec![BATCH.min(pool.rows()); (pool.rows() / BATCH).max(1)];
        trained(&settings, SITE, (&pool, Order::Shuffled), &sizes)
    };
    let dictionary = train(config.updates)?;
    let mut sums = FitSums::default();
    sums.add(&dictionary, &pool, None)?;
    let fit = sums.finish()?;
    let activity = activity(&dictionary, &later)?;
    let topics: Vec<bool> = (0..words).map(|word| word < world.topics()).collect();
    let mut shuffled = topics.clone();
    shuffled.shuffle(&mut generator(seed, 1));
    let random = untrained(&dictionary, seed)?;
    let of_words = |activity: &[Vec<f32>]| by_word(activity, (world.persons(), words));
    let count = |scores: &[Vec<f64>], truth: &[bool]| counted(scores, truth, config.permutations, seed);
    let scores = of_words(&activity);
    let opinions = organism.opinions()?;
    let dictionary = Arc::new(dictionary);
    let (ablated, matched) = ablations(&organism, &dictionary, &activity, &opinions)?;
    let (steered, at_random, length) = steering(&organism, &all, &opinions, seed)?;
    Ok(Figures {
        known: organism.right(world.pairs(true))?,
        unknown: organism.right(world.pairs(false))?,
        fvu: fit.fvu,
        l0: fit.l0,
        latents: config.latents,
        count: count(&scores, &topics)?,
        shuffled: count(&scores, &shuffled)?,
        untrained: count(&of_words(&self::activity(&random, &later)?), &topics)?,
        ablated,
        matched,
        steered,
        random: at_random,
        length,
    })
}

fn settings(config: &Config, updates: u64, seed: u64) -> Settings {
    Settings {
        objective: Objective::TopK { k: config.active, dead: 1., by_decoder_norm: true },
        latents: config.latents,
        steps: updates,
        batch: BATCH,
        learning_rate: 2e-3,
        warmup_steps: updates / 20,
        decay_steps: updates / 4,
        normalization: InputScaling::ExpectedAverageOnlyIn,
        bias_start: BiasStart::Mean,
        dead_after_steps: updates / 10,
        seed,
        ..Settings::default()
    }
}

/// A dictionary of random directions, with the bias of this one.
fn untrained(dictionary: &Dictionary, seed: u64) -> Result<Dictionary> {
    let (config, mut weights) = dictionary.clone().into_parts();
    let mut random = generator(seed, 2);
    weights.decoder.values_mut().iter_mut().for_each(|x| *x = random.random_range(-1f32..1.));
    weights.encoder = weights.decoder.clone();
    weights.encoder_bias.iter_mut().for_each(|bias| *bias = 0.);
    Ok(Dictionary::new(config, weights)?)
}

/// How active each feature is in each prompt, at its most: `[prompt][feature]`.
fn activity(dictionary: &Dictionary, prompts: &[Matrix]) -> Result<Vec<Vec<f32>>> {
    let codes = dictionary.encode(&joined(prompts)?)?.latents;
    let mut row = 0;
    let mut all = Vec::with_capacity(prompts.len());
    for prompt in prompts {
        let mut most = vec![0f32; dictionary.latents()];
        for at in row..row + prompt.rows() {
            let (features, values) = codes.row(at);
            features
                .iter()
                .zip(values)
                .for_each(|(&feature, &value)| most[feature as usize] = most[feature as usize].max(value));
        }
        row += prompt.rows();
        all.push(most);
    }
    Ok(all)
}

/// The mean over persons of what [`activity`] says: `[feature][word]`.
fn by_word(activity: &[Vec<f32>], (persons, words): (usize, usize)) -> Vec<Vec<f64>> {
    let features = activity.first().map_or(0, Vec::len);
    let mean = |feature: usize, word: usize| {
        (0..persons).map(|person| f64::from(activity[person * words + word][feature])).sum::<f64>() / persons as f64
    };
    (0..features).map(|feature| (0..words).map(|word| mean(feature, word)).collect()).collect()
}

/// How many features are more active on what is true, from each threshold on: `scores[feature][word]`. Those whose
/// corrected p-value is not below the level do not count.
fn counted(scores: &[Vec<f64>], truth: &[bool], permutations: usize, seed: u64) -> Result<Vec<usize>> {
    let (mut areas, mut p) = (Vec::new(), Vec::new());
    for scores in scores {
        let area = auc(scores, truth)?;
        areas.push(area);
        // What can count at no threshold need not be tested, but is one of those that might have.
        p.push(match area >= THRESHOLDS[0] {
            true => {
                let of = |which: bool| -> Vec<f64> {
                    scores.iter().zip(truth).filter(|(_, truth)| **truth == which).map(|(score, _)| *score).collect()
                };
                let permutations = Permutations { count: permutations, seed };
                two_sample(&of(true), &of(false), Alternative::Greater, permutations)?
            }
            false => 1.,
        });
    }
    let corrected = benjamini_hochberg(&p)?;
    let count =
        |threshold: f64| areas.iter().zip(&corrected).filter(|(area, p)| **area >= threshold && **p < LEVEL).count();
    Ok(THRESHOLDS.map(count).to_vec())
}

/// A feature that tells who holds a value from who does not, in prompts on topics that touch it; and how well.
#[expect(clippy::needless_range_loop, reason = "a feature is a column of `activity`, not a row")]
fn value_feature(world: &Opinions, activity: &[Vec<f32>], value: usize) -> Result<(usize, f64)> {
    let holds: Vec<bool> = (0..world.persons()).map(|person| world.holds(person, value)).collect();
    let topics: Vec<usize> = (0..world.topics()).filter(|&topic| world.value(topic) == value).collect();
    let mut best = (0, 0.5, 0.);
    let features = activity.first().map_or(0, Vec::len);
    for feature in 0..features {
        let of = |person: usize| {
            topics.iter().map(|topic| f64::from(activity[person * world.count() + topic][feature])).sum::<f64>()
        };
        let scores: Vec<f64> = (0..world.persons()).map(of).collect();
        let area = auc(&scores, &holds)?;
        let (area, sum) = (area.max(1. - area), scores.iter().sum::<f64>());
        // Of features that tell equally well, the more active.
        if (area, sum) > (best.1, best.2) {
            best = (feature, area, sum);
        }
    }
    Ok((best.0, best.1))
}

/// What becomes of right answers without each value's feature, and without features that are about as active on the
/// same prompts.
fn ablations(
    organism: &Organism<'_>,
    dictionary: &Arc<Dictionary>,
    activity: &[Vec<f32>],
    opinions: &[(usize, usize, usize)],
) -> Result<(Without, Without)> {
    let world = organism.world;
    let (mut ablated, mut matched) = (Vec::new(), Vec::new());
    for value in 0..world.values() {
        let (feature, area) = value_feature(world, activity, value)?;
        let related: Vec<(usize, usize)> = opinions
            .iter()
            .filter(|(_, topic, _)| world.value(*topic) == value)
            .map(|&(person, topic, side)| (organism.at(person, topic), side))
            .collect();
        let total =
            |feature: usize| related.iter().map(|&(prompt, _)| f64::from(activity[prompt][feature])).sum::<f64>();
        let own = total(feature);
        ablated.push(Without { auc: area, ..without(organism, dictionary, activity, &related, feature)? });
        let mut others: Vec<(f64, usize)> = (0..dictionary.latents())
            .filter(|&other| other != feature)
            .map(|other| ((total(other) - own).abs(), other))
            .collect();
        others.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for &(_, other) in others.iter().take(MATCHED) {
            matched.push(without(organism, dictionary, activity, &related, other)?);
        }
    }
    Ok((mean(&ablated), mean(&matched)))
}

fn mean(all: &[Without]) -> Without {
    let of = |figure: fn(&Without) -> f64| all.iter().map(figure).sum::<f64>() / all.len().max(1) as f64;
    Without { auc: of(|w| w.auc), shifted: of(|w| w.shifted), turned: of(|w| w.turned), refused: of(|w| w.refused) }
}

/// What becomes of answers (prompt and side) without a feature, of those in whose prompts it is active; nothing if
/// there are none.
fn without(
    organism: &Organism<'_>,
    dictionary: &Arc<Dictionary>,
    activity: &[Vec<f32>],
    answers: &[(usize, usize)],
    feature: usize,
) -> Result<Without> {
    let answers: Vec<(usize, usize)> =
        answers.iter().copied().filter(|(prompt, _)| activity[*prompt][feature] > 0.).collect();
    if answers.is_empty() {
        return Ok(Without::default());
    }
    let prompts: Vec<usize> = answers.iter().map(|answer| answer.0).collect();
    let edit = dictionary.edit(vec![FeatureChange { feature, to: NewActivation::Scale(0.) }]);
    let plan = Plan::default().edit(Edit::new(SITE, Change::Features(edit)));
    let (before, after) = (organism.says(&prompts, &Plan::default())?, organism.says(&prompts, &plan)?);
    let margin = |said: &Said, side: usize| said[side] - said[1 - side];
    let (mut shifted, mut turned, mut refused) = (0., 0., 0.);
    for ((before, after), (_, side)) in before.iter().zip(&after).zip(&answers) {
        shifted += f64::from(u8::from(margin(after, *side) <= 0.5 * margin(before, *side)));
        turned += f64::from(u8::from(largest(after) == 1 - side));
        refused += f64::from(u8::from(largest(after) == 2));
    }
    let count = answers.len() as f64;
    Ok(Without { auc: 0.5, shifted: shifted / count, turned: turned / count, refused: refused / count })
}

/// The share of answers sent to the other side by the difference of means, and by random vectors, for each scale; and
/// its length. The vector is made of persons of even number, and added at the last token to the prompts of the
/// others.
fn steering(
    organism: &Organism<'_>,
    all: &[Matrix],
    opinions: &[(usize, usize, usize)],
    seed: u64,
) -> Result<(Vec<f64>, Vec<f64>, f64)> {
    let none = || (vec![0.; SCALES.len()], vec![0.; SCALES.len()], 0.);
    let last = |prompt: usize| all[prompt].row(all[prompt].rows() - 1);
    let width = all.first().map_or(0, Matrix::columns);
    let (mut sums, mut counts, mut norms) = ([vec![0f64; width], vec![0f64; width]], [0f64; 2], 0f64);
    for &(person, topic, side) in opinions.iter().filter(|opinion| opinion.0 % 2 == 0) {
        let row = last(organism.at(person, topic));
        sums[side].iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x));
        counts[side] += 1.;
        norms += f64::from(endoscope_dictionary::norm(row));
    }
    let tested: Vec<(usize, usize)> = opinions
        .iter()
        .filter(|opinion| opinion.0 % 2 == 1)
        .map(|&(person, topic, side)| (organism.at(person, topic), side))
        .collect();
    if counts.contains(&0.) || tested.is_empty() {
        return Ok(none());
    }
    let vector: Vec<f32> =
        sums[0].iter().zip(&sums[1]).map(|(yes, no)| (yes / counts[0] - no / counts[1]) as f32).collect();
    let length = endoscope_dictionary::norm(&vector);
    let mut random = generator(seed, 3);
    let drawn: Vec<f32> = (0..width).map(|_| random.random_range(-1f32..1.)).collect();
    let scale = length / endoscope_dictionary::norm(&drawn).max(f32::MIN_POSITIVE);
    let drawn: Vec<f32> = drawn.iter().map(|x| x * scale).collect();
    let sent = |vector: &[f32], scale: f64| -> Result<f64> {
        let vector = Tensor::from_slice(vector, vector.len(), &Device::Cpu)?;
        let mut turned = 0;
        for side in 0..2 {
            let prompts: Vec<usize> = tested.iter().filter(|answer| answer.1 == side).map(|answer| answer.0).collect();
            // Away from the side that is said.
            let scale = if side == 0 { -scale } else { scale };
            let change = Change::Add { value: vector.clone().into(), scale };
            let plan = Plan::default().edit(Edit::new(SITE, change).at(AxisName::Position, Index::At(-1)));
            turned += organism.says(&prompts, &plan)?.iter().filter(|said| largest(said) == 1 - side).count();
        }
        Ok(turned as f64 / tested.len() as f64)
    };
    let of = |vector: &[f32]| SCALES.iter().map(|&scale| sent(vector, scale)).collect::<Result<Vec<f64>>>();
    let relative = f64::from(length) * (counts[0] + counts[1]) / norms.max(f64::MIN_POSITIVE);
    Ok((of(&vector)?, of(&drawn)?, relative))
}

/// Which is said: 0 for yes, 1 for no, 2 for a refusal.
fn largest(said: &Said) -> usize {
    (0..said.len()).max_by(|&a, &b| said[a].total_cmp(&said[b])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_counted_by_words_and_only_if_chance_does_not_explain_them() {
        let truth: Vec<bool> = (0..24).map(|word| word < 12).collect();
        let score = |of: &dyn Fn(usize) -> f64| (0..24).map(of).collect::<Vec<f64>>();
        let topic = score(&|word| f64::from(u8::from(word < 12)));
        let value = score(&|word| f64::from(u8::from(word < 12 && word % 2 == 0)));
        let one = score(&|word| f64::from(u8::from(word == 3)));
        let neutral = score(&|word| f64::from(u8::from(word >= 12)));
        let silent = score(&|_| 0.);
        let count = |scores: &[Vec<f64>]| counted(scores, &truth, 4000, 1).unwrap();
        assert_eq!(count(&[topic.clone(), value.clone(), one, neutral, silent.clone()]), [2, 2, 2, 1]);
        // The same two among many silent ones: the value's is no more sure than chance among so many.
        let mut many = vec![silent; 100];
        many.extend([topic, value]);
        assert_eq!(count(&many), [1, 1, 1, 1]);
    }

    #[test]
    fn the_feature_of_a_value_is_the_one_that_knows_who_holds_it() {
        let world = Opinions::from_parameters(&toml::from_str("seed = 4").unwrap()).unwrap();
        let knows = |value: usize| {
            let of = |prompt: usize| {
                let person = prompt / world.count();
                vec![0.3, f32::from(u8::from(world.holds(person, value))), f32::from(u8::from(person == 2))]
            };
            (0..world.persons() * world.count()).map(of).collect::<Vec<_>>()
        };
        for value in 0..world.values() {
            assert_eq!(value_feature(&world, &knows(value), value).unwrap(), (1, 1.));
        }
        let (_, area) = value_feature(&world, &knows(0), 1).unwrap();
        assert!(area < 0.9, "{area}");
    }
}

//! Task hinting for length generalisation (Awasthi and Gupta 2023, arXiv 2310.00726).
//!
//! Models without positions learn to sort short lists, each beside another task on the same lists: naming the number
//! after one of them in sorted order (the hint), the same with a random answer, counting, or nothing. All are then
//! examined on longer lists. How far attention spreads out with the length, and whether scores multiplied by `1 + c log
//! n` make up for it, is measured on every model, and on any that the user names: the length report.

use std::collections::BTreeMap;

use endoscope_causal::length::{AtLength, Exam, at_length, fit, scaled, tempering};
use endoscope_causal::lens::{self, Ask, Cell, Lens, Streams};
use endoscope_causal::statistics::seeds as over_seeds;
use endoscope_models::{Decoder, Model};
use endoscope_net::{Capture, Index, Inputs, Network, Plan};
use endoscope_organisms::{SPECIAL, task};
use endoscope_report::{Section, Table, labels};
use endoscope_train::Recipe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use toml::Table as Keys;

use crate::error::{Error, Result};
use crate::finding::{CONFIDENCE, Line, Test};
use crate::lab::Lab;
use crate::study::{Outcome, Study, Untested};

/// A model that was trained with the hint; its recipe is that of all arms.
const ORGANISM: &str = "sorting-hinted";
const TASK: &str = "sorting_with_hints";
/// The split of that task whose lists all have one length, without hints.
const LONGER: &str = "longer";
/// A model that gets fewer of the shortest list's numbers right cannot sort, so nothing can be said of longer lists.
const SORTS: f64 = 0.5;
/// The coefficients of log n that are tried for each layer: sharper only, as the paper's are.
const GRID: [f64; 7] = [0., 0.025, 0.05, 0.1, 0.2, 0.4, 0.8];
/// How often the layers are gone through for the best of them.
const ROUNDS: usize = 2;
/// Lists of which every stream is read.
const READ: usize = 16;

/// What a model learned beside sorting.
struct Arm {
    name: &'static str,
    hint: &'static str,
    /// Of the updates that the other arms make.
    updates: f64,
}

/// The hint comes first, then what it is compared with.
static ARMS: [Arm; 5] = [
    Arm { name: "successor", hint: "successor", updates: 1. },
    Arm { name: "alone", hint: "none", updates: 1. },
    Arm { name: "random", hint: "random", updates: 1. },
    Arm { name: "count", hint: "count", updates: 1. },
    Arm { name: "alone, as many lists", hint: "none", updates: 0.5 },
];
const SUCCESSOR: usize = 0;
const ALONE: usize = 1;
const RANDOM: usize = 2;
const COUNT: usize = 3;

/// The study.
pub struct TaskHinting;

/// What is trained, and on which lists it is examined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Updates of each arm.
    #[schemars(range(min = 1, max = 100_000))]
    steps: u64,
    /// How many lists of each length.
    #[schemars(range(min = 2, max = 4096))]
    rows: usize,
    /// The numbers that are sorted are those from 1 to this.
    #[schemars(range(min = 3, max = 10_000))]
    numbers: usize,
    /// The lengths of lists, of which the first is one that the model has learned.
    lengths: Vec<usize>,
    /// The length that claims are of.
    #[schemars(range(min = 3, max = 4096))]
    far: usize,
    /// The length that the claim of hint and sharpened attention together is of.
    #[schemars(range(min = 3, max = 4096))]
    further: usize,
    /// The lengths of lists on which the scale of attention is fitted.
    fitted: Vec<usize>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            steps: 16_000,
            rows: 200,
            numbers: 30,
            lengths: vec![6, 9, 12, 15, 18, 24],
            far: 15,
            further: 18,
            fitted: vec![9, 12],
        }
    }
}

/// How a model does on lists of one length: as it is, and with its attention scores multiplied by the fitted `1 + c log
/// n`, or divided.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Examined {
    plain: AtLength,
    sharpened: AtLength,
    blunted: AtLength,
}

/// What one residual stream says where the answer has come to `a_i`: the mean reciprocal rank of a number among all
/// tokens.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Said {
    stream: String,
    /// Of `a_i` itself, of `a_(i+1)`, and of `a_(i+2)`.
    ranks: [f64; 3],
}

/// Everything of one model and seed.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Figures {
    /// At each of the lengths.
    lengths: Vec<Examined>,
    /// The same at the lengths that claims are of.
    far: Examined,
    further: Examined,
    /// The coefficient of log n of each layer.
    coefficients: Vec<f64>,
    said: Vec<Said>,
    /// For each layer, of the head with the most: the attention from `a_i` in the answer to `a_(i+1)` among the inputs,
    /// and that head's to `a_(i+2)`.
    looks: Vec<[f64; 2]>,
}

impl Study for TaskHinting {
    const SLUG: &'static str = "task-hinting";
    const SEEDS: &'static [u64] = &[11, 12, 13];
    const UNTESTED: &'static [Untested] = &[
        Untested {
            claim: "The hint makes models that were trained on up to 20 numbers sort 100.",
            why: "That takes hours of training; here lists of up to 6 are trained on, and those of up to four times \
                  that are sorted.",
        },
        Untested {
            claim: "Neither more data nor more layers do what the hint does.",
            why: "The arms without a hint see twice as many lists as those with one, and are no deeper.",
        },
        Untested {
            claim: "The scale of attention is learned with the other weights.",
            why: "It is fitted afterwards, on a model whose weights stay: what is tested is whether the scale alone \
                  is missing.",
        },
        Untested { claim: "Incrementing a number is helped by hints too.", why: "There is no such task yet." },
    ];
    type Config = Config;

    fn smoke() -> Config {
        Config { steps: 30, rows: 8, lengths: vec![6, 12], far: 9, further: 12, fitted: vec![8], ..Config::default() }
    }

    fn run(&self, lab: &Lab<'_>, config: &Config) -> Result<Outcome> {
        if lab.is_given_a_model() {
            let model = lab.model(ORGANISM)?;
            let figures = lab.each_seed("examining", config, |seed| examined(&model, config, seed))?;
            let known = figures.iter().map(|each| each.lengths[0].plain.token).fold(1., f64::min);
            if known < SORTS {
                let reason = format!(
                    "of the numbers of a sorted list of {} it predicts {known:.3}; at least {SORTS} must be right",
                    config.lengths[0]
                );
                return Err(Error::Unsuitable { reason });
            }
            return outcome(config, &[("the model", figures)]);
        }
        let base = Recipe::read(lab.organism(ORGANISM)?.directory.join("recipe.toml"))?;
        let recipes = lab.seeds().iter().flat_map(|&seed| ARMS.iter().map(move |arm| (arm, seed)));
        let recipes: Vec<Recipe> = recipes.map(|(arm, seed)| arm.recipe(&base, config, seed)).collect();
        let models = lab.train_all(&recipes)?;
        let models: BTreeMap<u64, _> = lab.seeds().iter().copied().zip(models.chunks(ARMS.len())).collect();
        let figures = lab.each_seed("examining", &(config, &recipes), |seed| {
            models[&seed].iter().map(|model| examined(model, config, seed)).collect::<Result<Vec<Figures>>>()
        })?;
        let arms = ARMS.iter().enumerate();
        let arms = arms.map(|(at, arm)| (arm.name, figures.iter().map(|seed| seed[at].clone()).collect()));
        outcome(config, &arms.collect::<Vec<Named<'_>>>())
    }
}

impl Arm {
    fn recipe(&self, base: &Recipe, config: &Config, seed: u64) -> Recipe {
        let mut recipe = base.clone();
        recipe.task.parameters.insert("hint".into(), self.hint.into());
        let steps = ((config.steps as f64 * self.updates) as u64).max(1);
        let training = &mut recipe.training;
        (training.seed, training.steps, training.warmup_steps) = (seed, steps, training.warmup_steps.min(steps));
        recipe
    }
}

/// Lists of a length as exams in the model's own tokens; a function of the seed, the length and what they are `for_`.
struct Lists<'a> {
    model: &'a Model,
    keys: Keys,
    seed: u64,
}

impl<'a> Lists<'a> {
    /// Lists as the study's recipe has them.
    fn new(model: &'a Model, config: &Config, repetitions: bool, seed: u64) -> Self {
        let mut keys = Keys::new();
        keys.insert("numbers".into(), (config.numbers as i64).into());
        keys.insert("repetitions".into(), repetitions.into());
        keys.insert("hint".into(), "none".into());
        for shorter in ["shortest", "longest"] {
            keys.insert(shorter.into(), 2.into());
        }
        Self { model, keys, seed }
    }

    /// `count` lists from number `first` on.
    fn exam(&self, length: usize, first: u64, count: usize) -> Result<Exam> {
        let mut keys = self.keys.clone();
        keys.insert("longer".into(), (length as i64).into());
        let task = task(TASK, &keys)?;
        let (needed, context) = (task.length(), self.model.spec().context);
        if needed > context {
            let reason = format!(
                "a sorted list of {length} has {needed} tokens, and its context {context}; set `lengths` and `far`"
            );
            return Err(Error::Unsuitable { reason });
        }
        let ids = spelled(self.model, &task.words())?;
        let (mut rows, mut asked) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for number in first..first + count as u64 {
            let row = task.row(LONGER, self.seed, number)?;
            rows.push(row.tokens.iter().map(|&token| ids[token as usize]).collect());
            asked.push(row.mask);
        }
        Ok(Exam { length, rows, asked })
    }
}

/// The model's token for each word of the task, the special ones first: BOS, and one that no row has.
fn spelled(model: &Model, words: &[String]) -> Result<Vec<u32>> {
    let tokenizer = model.tokenizer()?;
    let fail = |reason: String| Err(Error::Unsuitable { reason });
    let Some((bos, _)) = tokenizer.bos else {
        return fail("its tokenizer has no BOS, which the lists begin with".into());
    };
    let mut ids = vec![bos; SPECIAL.len()];
    for word in words.iter().skip(SPECIAL.len()) {
        // Within a text a word has a blank before it, which some tokenizers put into its token.
        let (id, more) = tokenizer.first_token(&format!(" {word}"))?;
        if more || Some(id) == tokenizer.unknown() || tokenizer.label(id).trim() != word {
            return fail(format!("its tokenizer has no token for the word `{word}` of the task {TASK}"));
        }
        ids.push(id);
    }
    Ok(ids)
}

/// Everything of one model.
fn examined(model: &Model, config: &Config, seed: u64) -> Result<Figures> {
    let lists = Lists::new(model, config, true, seed);
    // Not the lists that it is judged on.
    let fitted = config.fitted.iter().map(|&length| lists.exam(length, config.rows as u64, config.rows));
    let coefficients = fit(&model.decoder, &fitted.collect::<Result<Vec<_>>>()?, &GRID, ROUNDS)?;
    let far = lists.exam(config.far, 0, config.rows)?;
    let lengths = config.lengths.iter().map(|&length| at(model, &lists.exam(length, 0, config.rows)?, &coefficients));
    Ok(Figures {
        lengths: lengths.collect::<Result<_>>()?,
        far: at(model, &far, &coefficients)?,
        further: at(model, &lists.exam(config.further, 0, config.rows)?, &coefficients)?,
        coefficients,
        said: said(&model.decoder, &far)?,
        looks: looks(&model.decoder, &far)?,
    })
}

fn at(model: &Model, exam: &Exam, coefficients: &[f64]) -> Result<Examined> {
    let sharper = tempering(coefficients, exam.length);
    let blunter: Vec<f64> = sharper.iter().map(|factor| 1. / factor).collect();
    let under = |factors: &[f64]| -> Result<AtLength> {
        Ok(at_length(&model.decoder, exam, &scaled(model.sites(), factors)?)?)
    };
    let plain = at_length(&model.decoder, exam, &Plan::default())?;
    Ok(Examined { plain, sharpened: under(&sharper)?, blunted: under(&blunter)? })
}

/// What each stream says at the numbers of the answer, but for the last two.
fn said(decoder: &Decoder, exam: &Exam) -> Result<Vec<Said>> {
    let first = exam.length + 2;
    let positions = Index::Range { start: first as i64, end: Some(-2) };
    let ask = Ask { positions, target: None, top: decoder.spec.vocabulary };
    let mut said: Vec<Said> = Vec::new();
    let mut count = 0.;
    for row in exam.rows.iter().take(READ) {
        let reading = lens::read(decoder, &Lens::logit(), row, &ask, Streams::Layers)?;
        said.resize(reading.streams.len(), Said::default());
        count += reading.positions.len() as f64;
        for ((said, stream), cells) in said.iter_mut().zip(reading.streams).zip(&reading.cells) {
            said.stream = stream;
            for (cell, numbers) in cells.iter().zip(row[first..].windows(3)) {
                said.ranks.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += reciprocal(cell, *number));
            }
        }
    }
    said.iter_mut().flat_map(|said| &mut said.ranks).for_each(|sum| *sum /= count);
    Ok(said)
}

/// One over the place, from 1, of a token among all.
fn reciprocal(cell: &Cell, token: u32) -> f64 {
    cell.top.iter().position(|candidate| candidate.token == token).map_or(0., |rank| 1. / (rank + 1) as f64)
}

/// Where the numbers of the answer look among the inputs, but for the last two; see [`Figures::looks`].
fn looks(decoder: &Decoder, exam: &Exam) -> Result<Vec<[f64; 2]>> {
    let (inputs, first) = (1..exam.length + 1, exam.length + 2);
    let rows = &exam.rows[..exam.rows.len().min(READ)];
    let run = decoder.run(&Inputs::tokens(rows.to_vec())?, &Plan::default().capture(Capture::new("pattern.*")))?;
    let mut layers = Vec::new();
    for (_, pattern) in run.captured.iter() {
        let mut heads = vec![[0.; 2]; pattern.dim(1)?];
        let mut count = 0.;
        for (row, tokens) in rows.iter().enumerate() {
            let pattern = pattern.get(row)?.to_vec3::<f32>()?;
            for (query, numbers) in (first..).zip(tokens[first..].windows(3)) {
                // Of equal numbers it cannot be said which is the next.
                if numbers[1] == numbers[2] {
                    continue;
                }
                count += 1.;
                for (head, pattern) in heads.iter_mut().zip(&pattern) {
                    for key in inputs.clone() {
                        let weight = f64::from(pattern[query][key]);
                        head[0] += if tokens[key] == numbers[1] { weight } else { 0. };
                        head[1] += if tokens[key] == numbers[2] { weight } else { 0. };
                    }
                }
            }
        }
        let most = heads.into_iter().max_by(|one, other| one[0].total_cmp(&other[0])).unwrap_or_default();
        layers.push(most.map(|sum| if count > 0. { sum / count } else { 0. }));
    }
    Ok(layers)
}

/// Models that were measured alike: a name, and the figures of each seed.
type Named<'a> = (&'a str, Vec<Figures>);

fn outcome(config: &Config, arms: &[Named<'_>]) -> Result<Outcome> {
    let figure = |arm: usize, of: &dyn Fn(&Figures) -> f64| arms[arm].1.iter().map(of).collect::<Vec<f64>>();
    let far = config.far;
    let mut findings = Vec::new();
    if arms.len() > 1 {
        let plain = |f: &Figures| f.far.plain.exact;
        let sharpened = |f: &Figures| f.further.sharpened.exact;
        let gain = |arm: usize, of: &dyn Fn(&Figures) -> f64| {
            let pairs = figure(arm, of).into_iter().zip(figure(ALONE, of));
            pairs.map(|(with, without)| with - without).collect::<Vec<f64>>()
        };
        let hinted = |claim: String, of: &dyn Fn(&Figures) -> f64, (arm, control, absent): (usize, &str, f64)| {
            let unit = "of lists sorted, more than by models that only learn to sort".into();
            Test { claim, unit, effect: Line::AtLeast(0.15), control: control.into(), absent: Line::AtMost(absent) }
                .judge(&gain(SUCCESSOR, of), &gain(arm, of))
        };
        let random = (RANDOM, "a random number of the list as the hint's answer", 0.);
        let count = (COUNT, "how often a number comes in place of the hint", 0.075);
        let claim = |with: &str, far| {
            format!("Models that also learn the hint{with} sort lists of {far} more often, after as many updates.")
        };
        let first = hinted(claim("", far), &plain, random)?;
        findings.push(first.paper("of lists of 100, after lists of up to 20: from below 1 % to over 92 % (abstract)"));
        findings.push(hinted(claim("", far), &plain, count)?);
        findings.push(hinted(claim(", with sharpened attention,", config.further), &sharpened, random)?);
    }
    // The user's model, or those that learned to sort and nothing else.
    let (unaided, hinted) = if arms.len() > 1 { (ALONE, SUCCESSOR) } else { (0, 0) };
    let changed = |to: fn(&Examined) -> &AtLength| figure(unaided, &|f| to(&f.far).exact - f.far.plain.exact);
    findings.push(
        Test {
            claim: format!(
                "Attention sharpened with the logarithm of the length is enough to sort lists of {far} more often."
            ),
            unit: "of lists sorted, more than without".into(),
            effect: Line::AtLeast(0.1),
            control: "attention blunted by the same factors".into(),
            absent: Line::AtMost(0.05),
        }
        .judge(&changed(|far| &far.sharpened), &changed(|far| &far.blunted))?,
    );
    let last = |which: usize| figure(hinted, &|f| f.looks.last().map_or(0., |looks| looks[which]));
    findings.push(
        Test {
            claim: "In the last layer a head looks from a number of the answer at the next one among the inputs."
                .into(),
            unit: "of its attention".into(),
            effect: Line::AtLeast(0.5),
            control: "that head's attention to the one after the next".into(),
            absent: Line::AtMost(0.25),
        }
        .judge(&last(0), &last(1))?,
    );
    let summary = match arms.len() {
        1 => format!("The model was examined on lists of {:?} numbers.", config.lengths),
        _ => format!(
            "{} models a seed learned to sort lists of up to 6 numbers in {} updates, and were examined on longer \
             ones.",
            arms.len(),
            config.steps
        ),
    };
    let mut outcome = Outcome { summary, findings, ..Outcome::default() };
    Shown { config, arms, outcome: &mut outcome }.all()?;
    Ok(outcome)
}

/// Puts figures into sections.
struct Shown<'a> {
    config: &'a Config,
    arms: &'a [Named<'a>],
    outcome: &'a mut Outcome,
}

impl Shown<'_> {
    fn all(&mut self) -> Result<()> {
        self.over_lengths("exact", "Lists sorted without a mistake", "of lists", |at| at.plain.exact)?;
        self.over_lengths("numbers", "Numbers of the answer that are right", "of numbers", |at| at.plain.token)?;
        self.over_lengths("entropy", "How far attention spreads out", "nats, mean of heads and layers", |at| {
            at.plain.entropy.iter().sum::<f64>() / at.plain.entropy.len().max(1) as f64
        })?;
        self.scale()?;
        self.mechanism()
    }

    fn names(&self) -> Vec<endoscope_report::Label> {
        labels(self.arms.iter().map(|(name, _)| *name))
    }

    fn table(&mut self, name: &str, heading: &str, caption: &str, table: Table) {
        self.outcome.tables.insert(name.into(), table);
        self.outcome.sections.push(Section::Table {
            heading: Some(heading.into()),
            table: name.into(),
            caption: caption.into(),
        });
    }

    /// Means over seeds as curves, and with their intervals as a table.
    fn over_lengths(&mut self, name: &str, heading: &str, unit: &str, of: fn(&Examined) -> f64) -> Result<()> {
        let (mut means, mut intervals) = (Vec::new(), Vec::new());
        for (_, figures) in self.arms {
            for at in 0..self.config.lengths.len() {
                let values: Vec<f64> = figures.iter().map(|f| of(&f.lengths[at])).collect();
                let found = over_seeds(&values, CONFIDENCE)?;
                means.push(found.mean);
                intervals.extend([found.mean, found.low, found.high]);
            }
        }
        let lengths = || labels(self.config.lengths.iter().map(|&length| length as i64));
        let axes = [("learned beside sorting", self.names()), ("length", lengths())];
        let description = format!("{heading} ({unit}), mean over seeds");
        self.outcome.tables.insert(name.into(), Table::new(description, axes, means)?);
        self.outcome.sections.push(Section::Lines {
            heading: Some(heading.into()),
            table: name.into(),
            caption: "By the length of the list, of which the first is one that is trained on.".into(),
            y_label: unit.into(),
        });
        let axes = [
            ("learned beside sorting", self.names()),
            ("length", lengths()),
            ("over seeds", labels(["mean", "low", "high"])),
        ];
        let table = Table::new(format!("{heading} ({unit})"), axes, intervals)?;
        let caption = format!("With the {} % interval of the mean over seeds.", 100. * CONFIDENCE);
        self.table(&format!("{name}_intervals"), heading, &caption, table);
        Ok(())
    }

    /// Whether a scale of attention that grows with log n is all that is missing.
    fn scale(&mut self) -> Result<()> {
        let mean = |figures: &[Figures], of: &dyn Fn(&Figures) -> f64| {
            figures.iter().map(of).sum::<f64>() / figures.len() as f64
        };
        let mut recovered = Vec::new();
        for (_, figures) in self.arms {
            for at in 0..self.config.lengths.len() {
                let kinds: [fn(&Examined) -> &AtLength; 3] = [|e| &e.plain, |e| &e.sharpened, |e| &e.blunted];
                recovered.extend(kinds.map(|kind| mean(figures, &|f| kind(&f.lengths[at]).exact)));
            }
        }
        let lengths = labels(self.config.lengths.iter().map(|&length| length as i64));
        let kinds = labels(["as it is", "sharpened", "blunted"]);
        let axes = [("learned beside sorting", self.names()), ("length", lengths), ("attention", kinds)];
        let table = Table::new("lists sorted without a mistake, mean over seeds", axes, recovered)?;
        let fitted = &self.config.fitted;
        let caption = format!(
            "The scores of layer l are multiplied by 1 + c_l log n; each c_l is the best of {GRID:?} for lists of \
             {fitted:?}, which are others than these. \
             Blunted: divided by the same."
        );
        self.table("scale", "Attention sharpened with the length", &caption, table);
        let layers = self.arms.first().and_then(|(_, figures)| figures.first()).map_or(0, |f| f.coefficients.len());
        let each = self.arms.iter().flat_map(|(_, figures)| figures.iter().flat_map(|f| f.coefficients.clone()));
        let seeds = self.arms.first().map_or(0, |(_, figures)| figures.len());
        let axes = [
            ("learned beside sorting", self.names()),
            ("seed, in order", labels(1..=seeds as i64)),
            ("layer", labels(0..layers as i64)),
        ];
        let table = Table::new("the suggested coefficient of log n", axes, each.collect())?;
        self.table("coefficients", "Suggested coefficients of log n", "One for each model and layer.", table);
        Ok(())
    }

    /// What streams say of the next number, and how much attention it has.
    fn mechanism(&mut self) -> Result<()> {
        let Some(first) = self.arms.first().and_then(|(_, figures)| figures.first()) else { return Ok(()) };
        let streams: Vec<String> = first.said.iter().map(|said| said.stream.clone()).collect();
        let layers = first.looks.len();
        let (mut ranks, mut looks) = (Vec::new(), Vec::new());
        for (_, figures) in self.arms {
            let mean = |of: &dyn Fn(&Figures) -> f64| figures.iter().map(of).sum::<f64>() / figures.len() as f64;
            for stream in 0..streams.len() {
                ranks.extend((0..3).map(|which| mean(&|f| f.said[stream].ranks[which])));
            }
            for layer in 0..layers {
                looks.extend((0..2).map(|which| mean(&|f| f.looks[layer][which])));
            }
        }
        let which = labels(["itself", "the next", "the one after"]);
        let axes = [("learned beside sorting", self.names()), ("stream", labels(streams)), ("number", which)];
        let table = Table::new("mean reciprocal rank by the logit lens at the numbers of the answer", axes, ranks)?;
        let far = self.config.far;
        let caption = format!("On lists of {far}: 1 where the stream has that number on top.");
        self.table("said", "What the streams say at a number of the answer", &caption, table);
        let axes = [
            ("learned beside sorting", self.names()),
            ("layer", labels(0..layers as i64)),
            ("number", labels(["the next", "the one after"])),
        ];
        let table = Table::new("attention from a number of the answer to one among the inputs", axes, looks)?;
        let caption = format!(
            "On lists of {far}, of the head that looks most at the next; each of the inputs would have {:.3} alike.",
            1. / far as f64
        );
        self.table("looks", "Where a number of the answer looks", &caption, table);
        Ok(())
    }
}

#[cfg(test)]
mod tests;

//! Two-hop questions of the user's, asked of the user's model: what it answers with the bridge written out and without, where it holds the
//! bridge in between, and where another question's state takes the answer away. The model is read, not trained.

use endoscope_causal::Pair;
use endoscope_causal::lens::{Lens, Streams, reciprocal_ranks};
use endoscope_models::{Bos, Model};
use endoscope_net::Index;
use endoscope_report::{ColourScale, Section, Table, labels};
use endoscope_train::generator;
use rand::RngExt;
use serde::{Deserialize, Serialize};

use super::arm::{right, share};
use super::tracing::splice;
use super::{Config, CotCircuit};
use crate::error::{Error, Result};
use crate::finding::{Line, Test};
use crate::lab::Lab;
use crate::study::{Outcome, Study};

/// A model that answers fewer of the questions, with the bridge written out, says nothing of how it does.
const ANSWERS: f64 = 0.2;
/// How many of the last positions are shown.
const SHOWN: usize = 16;

/// An entry of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    /// The question: head and both relations.
    prompt: String,
    /// The same with the bridge written out, up to where the target is due.
    written: String,
    /// The entity between; its first token is looked for.
    bridge: String,
    /// The answer; its first token is.
    target: String,
}

/// The same as tokens.
struct Question {
    prompt: Vec<u32>,
    written: Vec<u32>,
    bridge: u32,
    target: u32,
}

/// What one question gave.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Answered {
    /// Whether the target came without the bridge, with it, and after what is written for another question.
    latent: bool,
    written: bool,
    another: bool,
    /// Reciprocal ranks `[stream][position]` of the bridge at the last positions of the prompt, and of another question's.
    bridge: Vec<Vec<f64>>,
    another_bridge: Vec<Vec<f64>>,
}

/// The study on the user's model and file.
pub fn run(lab: &Lab<'_>, config: &Config) -> Result<Outcome> {
    let model = lab.model(super::WITHOUT)?;
    let file = read(&config.prompts)?;
    let questions = encoded(&model, &file)?;
    let answered = lab.once("the questions", &file, || ask(&model, &questions))?;
    let known = share(&answered.iter().map(|each| each.written).collect::<Vec<_>>());
    if known < ANSWERS {
        let reason = format!(
            "with the bridge written out it answers {known:.3} of the questions; at least {ANSWERS} are needed"
        );
        return Err(Error::Unsuitable { reason });
    }
    let mut outcome = judged(lab.seeds(), &answered, known)?;
    tables(&model, &questions, &answered, &mut outcome)?;
    Ok(outcome)
}

fn read(path: &str) -> Result<Vec<Written>> {
    if path.is_empty() {
        let reason = "it knows nothing of the made-up world; name a file of two-hop questions with --set prompts=FILE (see the page)";
        return Err(Error::Unsuitable { reason: reason.into() });
    }
    let problem =
        |problem: String| Error::Settings { slug: CotCircuit::SLUG, problems: vec![format!("`prompts` {problem}")] };
    let text =
        std::fs::read_to_string(path).map_err(|error| problem(format!("cannot be read from {path}: {error}")))?;
    let file: Vec<Written> = serde_json::from_str(&text).map_err(|error| problem(format!("{path}: {error}")))?;
    if file.len() < 2 {
        return Err(problem(format!(
            "{path} has {} questions; at least 2 are needed, the more the better",
            file.len()
        )));
    }
    Ok(file)
}

fn encoded(model: &Model, file: &[Written]) -> Result<Vec<Question>> {
    let tokenizer = model.tokenizer()?;
    let question = |written: &Written| {
        Ok(Question {
            prompt: tokenizer.encode(&written.prompt, Bos::AsConfigured)?.ids,
            written: tokenizer.encode(&written.written, Bos::AsConfigured)?.ids,
            bridge: tokenizer.first_token(&written.bridge)?.0,
            target: tokenizer.first_token(&written.target)?.0,
        })
    };
    file.iter().map(question).collect()
}

/// The next question of which this holds, in a circle.
fn next(questions: &[Question], at: usize, fits: impl Fn(&Question) -> bool) -> Option<&Question> {
    (1..questions.len()).map(|step| &questions[(at + step) % questions.len()]).find(|other| fits(other))
}

fn ask(model: &Model, questions: &[Question]) -> Result<Vec<Answered>> {
    let positions = shown(questions);
    let streams = |tokens: &[u32], target: u32| -> Result<Vec<Vec<f64>>> {
        Ok(reciprocal_ranks(&model.decoder, &Lens::logit(), &[(tokens.to_vec(), target)], &positions, Streams::Layers)?
            .means)
    };
    let one = |(at, question): (usize, &Question)| {
        let Question { prompt, written, bridge, target } = question;
        let unlike = |what: &str| Error::Unsuitable {
            reason: format!("all questions have the same {what}, so there is no control"),
        };
        let other = next(questions, at, |other| other.target != *target).ok_or_else(|| unlike("target"))?;
        let other_bridge = next(questions, at, |other| other.bridge != *bridge).ok_or_else(|| unlike("bridge"))?;
        let asked = [prompt, written, &other.written].map(|tokens| (tokens.clone(), vec![*target]));
        let right = right(model, &asked)?;
        Ok(Answered {
            latent: right[0],
            written: right[1],
            another: right[2],
            bridge: streams(prompt, *bridge)?,
            another_bridge: streams(prompt, other_bridge.bridge)?,
        })
    };
    questions.iter().enumerate().map(one).collect()
}

/// The positions that every prompt has, counted from its end.
fn shown(questions: &[Question]) -> Index {
    let shortest = questions.iter().map(|question| question.prompt.len()).min().unwrap_or(1);
    Index::Range { start: -(shortest.min(SHOWN) as i64), end: None }
}

/// The mean over some of what was answered.
fn mean<'a>(of: impl Iterator<Item = &'a Vec<Vec<f64>>> + Clone) -> Vec<Vec<f64>> {
    let count = of.clone().count().max(1) as f64;
    let mut sums: Vec<Vec<f64>> = Vec::new();
    for each in of {
        match sums.is_empty() {
            true => sums.clone_from(each),
            false => sums.iter_mut().flatten().zip(each.iter().flatten()).for_each(|(sum, value)| *sum += value),
        }
    }
    sums.iter_mut().flatten().for_each(|sum| *sum /= count);
    sums
}

/// The claims; each seed draws as many questions as there are, with repetition.
fn judged(seeds: &[u64], answered: &[Answered], known: f64) -> Result<Outcome> {
    let (mut gain, mut other_gain, mut bridge, mut other_bridge) = (vec![], vec![], vec![], vec![]);
    // What the last stream says is the model's own next word; the bridge is looked for in those below.
    let highest = |streams: &[Vec<f64>]| streams.iter().rev().skip(1).flatten().copied().fold(0., f64::max);
    for &seed in seeds {
        let mut random = generator(seed, 0);
        let drawn: Vec<&Answered> =
            answered.iter().map(|_| &answered[random.random_range(0..answered.len())]).collect();
        let rate = |of: fn(&Answered) -> bool| share(&drawn.iter().map(|each| of(each)).collect::<Vec<_>>());
        gain.push(rate(|each| each.written) - rate(|each| each.latent));
        other_gain.push(rate(|each| each.another) - rate(|each| each.latent));
        bridge.push(highest(&mean(drawn.iter().map(|each| &each.bridge))));
        other_bridge.push(highest(&mean(drawn.iter().map(|each| &each.another_bridge))));
    }
    let findings = vec![
        Test {
            claim: "Writing the bridge out brings 20 points or more.".into(),
            unit: "of accuracy more than without".into(),
            effect: Line::AtLeast(0.2),
            control: "after what is written for another question".into(),
            absent: Line::AtMost(0.05),
        }
        .judge(&gain, &other_gain)?,
        Test {
            claim: "Where the bridge is not written, a layer below the last holds it at some position.".into(),
            unit: "mean reciprocal rank of the bridge at the stream and position where it is highest".into(),
            effect: Line::AtLeast(0.3),
            control: "another question's bridge, where that is highest".into(),
            absent: Line::AtMost(0.15),
        }
        .judge(&bridge, &other_bridge)?,
    ];
    let latent = share(&answered.iter().map(|each| each.latent).collect::<Vec<_>>());
    let summary = format!(
        "The model was asked {} two-hop questions; {latent:.3} are answered at once, {known:.3} with the bridge written out. Each seed draws as many \
         of them with repetition: the intervals are over questions, not over models.",
        answered.len()
    );
    Ok(Outcome { summary, findings, ..Outcome::default() })
}

fn tables(model: &Model, questions: &[Question], answered: &[Answered], outcome: &mut Outcome) -> Result<()> {
    let bridge = mean(answered.iter().map(|each| &each.bridge));
    let positions = bridge.first().map_or(0, Vec::len) as i64;
    let streams = Streams::Layers.of(model.sites())?;
    let axes = [("stream", labels(streams)), ("position", labels(-positions..0))];
    outcome.tables.insert("lens".into(), Table::new("mean reciprocal rank of the bridge", axes, bridge.concat())?);
    outcome.sections.push(Section::HeatMap {
        heading: Some("Where the bridge is read off".into()),
        table: "lens".into(),
        alternatives: vec![],
        scale: ColourScale::UNIT,
        caption: "Through the logit lens, where it is not written; positions count from the end of the prompt.".into(),
    });
    // States are handed over between prompts of one length, of questions that are answered rightly and differently.
    let pair = |(at, question): (usize, &Question)| {
        let fits = |other: &Question| other.prompt.len() == question.prompt.len() && other.target != question.target;
        let other = next(questions, at, fits).filter(|_| answered[at].latent)?;
        Some(Pair {
            clean: question.prompt.clone(),
            corrupt: other.prompt.clone(),
            answers: vec![question.target],
            wrong_answers: Vec::new(),
        })
    };
    let pairs: Vec<Pair> = questions.iter().enumerate().filter_map(pair).collect();
    // One table has one length: the most frequent; of equals the shortest.
    let count = |length: usize| pairs.iter().filter(|pair| pair.clean.len() == length).count();
    let lengths = pairs.iter().map(|pair| pair.clean.len());
    let Some(length) = lengths.max_by_key(|&length| (count(length), std::cmp::Reverse(length))) else {
        let body = "No question is answered at once that has another one of its length: no state was exchanged.";
        outcome.sections.push(Section::Text {
            heading: Some("What another question's state takes away".into()),
            body: body.into(),
        });
        return Ok(());
    };
    let pairs: Vec<Pair> = pairs.into_iter().filter(|pair| pair.clean.len() == length).collect();
    let layers = model.spec().layers;
    let cells = splice(model, &pairs, layers * length)?;
    for (table, title, value) in [
        ("displaced", "share of questions whose answer loses its first place", 0),
        ("rank", "mean rank of the answer", 1),
    ] {
        let axes = [("layer", labels(0..layers as i64)), ("position", labels(-(length as i64)..0))];
        outcome.tables.insert(table.into(), Table::new(title, axes, cells.iter().map(|cell| cell[value]).collect())?);
    }
    outcome.sections.push(Section::HeatMap {
        heading: Some("What another question's state takes away".into()),
        table: "displaced".into(),
        alternatives: vec!["rank".into()],
        scale: ColourScale::UNIT,
        caption: format!(
            "What a layer reads, exchanged at one position, in {} questions of {length} tokens.",
            pairs.len()
        ),
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::Level;
    use endoscope_organisms::tasks::two_hop_facts::{Fact, IN, TwoHopFacts};
    use endoscope_report::Verdict;
    use endoscope_train::Recipe;

    /// Questions of the made-up world, for the model that does not write the bridge: that which is written out is the second fact.
    fn questions(lab: &Lab<'_>, count: usize, empty: bool) -> String {
        let organism = lab.organism(super::super::WITHOUT).unwrap();
        let recipe = Recipe::read(organism.directory.join("recipe.toml")).unwrap();
        let task = TwoHopFacts::from_parameters(&recipe.task.parameters).unwrap();
        let text = |tokens: &[u32]| tokens.iter().map(|&id| organism.label(id)).collect::<Vec<_>>().join(" ");
        let pairs: Vec<(Fact, Fact)> = task.pairs(IN).take(count).collect();
        let entry = |(at, &(first, second)): (usize, &(Fact, Fact))| {
            let said = if empty { pairs[(at + 1) % pairs.len()].1 } else { second };
            Written {
                prompt: text(&task.prompt(first.head, &[first.relation, second.relation])[1..]),
                written: text(&task.prompt(said.head, &[said.relation])[1..]),
                bridge: text(&[task.entity(first.tail)]),
                target: text(&[task.entity(second.tail)]),
            }
        };
        serde_json::to_string(&pairs.iter().enumerate().map(entry).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_model_is_asked_the_questions_of_a_file() {
        let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
        let organism = lab.organism(super::super::WITHOUT).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("questions.json");
        let run = |text: &str, prompts: &str| {
            std::fs::write(&path, text).unwrap();
            let lab = Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap().with_model(&organism);
            let config = Config { prompts: prompts.into(), ..CotCircuit::smoke() };
            CotCircuit.run(&lab, &config)
        };
        let file = path.to_string_lossy().into_owned();
        let outcome = run(&questions(&lab, 40, false), &file).unwrap();
        let verdicts: Vec<Verdict> = outcome.findings.iter().map(|finding| finding.verdict()).collect();
        assert_eq!(verdicts[0], Verdict::Shown, "{:?}", outcome.findings);
        assert_ne!(verdicts[1], Verdict::NotShown, "{:?}", outcome.findings);
        assert_eq!(outcome.tables["lens"].shape(), [5, 4]);
        assert_eq!(outcome.tables["displaced"].shape(), [4, 4]);
        // Where another fact is written out, it answers nothing; and without a file there is nothing to ask.
        for (text, prompts, part) in [
            (questions(&lab, 40, true).as_str(), file.as_str(), "at least 0.2"),
            ("[]", &file, "at least 2"),
            ("[{}]", &file, "missing field `prompt`"),
            ("[]", "", "--set prompts=FILE"),
            ("[]", "no such file", "cannot be read"),
        ] {
            let error = run(text, prompts).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}

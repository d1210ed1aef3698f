//! Explanations of features in the words of a language model, and how well they tell what the feature does: detection and fuzzing
//! (Paulo et al. 2024, arXiv 2410.13928, sections 3.1 and 3.2), with prompts of our own.
//!
//! Nothing here knows HTTP: whoever calls gives [`Complete`].

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A language model that answers a prompt.
pub trait Complete {
    /// Its answer to `user`, under the instructions `system`.
    fn complete(&self, system: &str, user: &str) -> std::result::Result<String, String>;
}

/// A text as tokens, with the feature's activation on each.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Passage {
    /// The text of each token.
    pub tokens: Vec<String>,
    /// The feature's activation on each; all zero where it is silent.
    pub activations: Vec<f32>,
}

/// What a language model made of a feature.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Interpretation {
    /// One sentence.
    pub explanation: String,
    /// How well passages with the feature are told from those without, by the explanation.
    pub detection: Score,
    /// How well marks on the feature's tokens are told from marks on others.
    pub fuzzing: Score,
}

/// Right and wrong answers.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Score {
    /// The mean of the shares of positives and of negatives that were answered rightly; 0.5 is chance.
    pub balanced_accuracy: f64,
    /// How many passages were asked about.
    pub passages: usize,
    /// How many of the answers could not be read; they count as wrong.
    pub unreadable: usize,
}

const EXPLAIN: &str = "You study one feature of a neural network. You are shown passages; tokens on which the feature is active are between << and >>, \
                       the more active the stronger the number behind them. Say in one short sentence what the feature is active on. \
                       Answer with the sentence alone.";
const DETECT: &str = "You are given a description of a feature of a neural network, and numbered passages. For each passage say whether the feature \
                      is active in it. Answer with a JSON list of 0 (not active) and 1 (active), one for each passage, and nothing else.";
const FUZZ: &str = "You are given a description of a feature of a neural network, and numbered passages in which some tokens are between << and >>. \
                    For each passage say whether the marked tokens are those that the description is of. Answer with a JSON list of 0 (no) and 1 \
                    (yes), one for each passage, and nothing else.";

/// How many passages one question is about.
const BATCH: usize = 5;

/// Explains a feature by `shown` passages, and scores the explanation on others: `active`, on which it is active somewhere, and
/// `silent`, on which it is not. None of those shown should be among them.
pub fn interpret(
    model: &dyn Complete,
    shown: &[Passage],
    active: &[Passage],
    silent: &[Passage],
    seed: u64,
) -> Result<Interpretation> {
    if shown.is_empty() || active.is_empty() || silent.is_empty() {
        return Err(Error::Measure(format!(
            "a feature is explained by passages with it ({} to show, {} to ask about) and without it ({})",
            shown.len(),
            active.len(),
            silent.len()
        )));
    }
    let passages = shown.iter().map(|passage| format!("- {}", marked(passage, &is_active(passage), true)));
    let question = passages.collect::<Vec<_>>().join("\n");
    let explanation = model.complete(EXPLAIN, &question).map_err(Error::Measure)?;
    let explanation = explanation.trim().lines().next().unwrap_or_default().trim().to_string();
    if explanation.is_empty() {
        return Err(Error::Measure("the language model gave no explanation".into()));
    }
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let plain = |passage: &Passage| passage.tokens.concat();
    let detection: Vec<(String, bool)> = active
        .iter()
        .map(|passage| (plain(passage), true))
        .chain(silent.iter().map(|passage| (plain(passage), false)))
        .collect();
    let detection = ask(model, DETECT, &explanation, detection, &mut random)?;
    let mut fuzzing = Vec::new();
    for (number, passage) in active.iter().enumerate() {
        let right = is_active(passage);
        // As many tokens, but others, on every second passage.
        if number % 2 == 0 {
            fuzzing.push((marked(passage, &right, false), true));
        } else if let Some(wrong) = elsewhere(&right, &mut random) {
            fuzzing.push((marked(passage, &wrong, false), false));
        }
    }
    let fuzzing = ask(model, FUZZ, &explanation, fuzzing, &mut random)?;
    Ok(Interpretation { explanation, detection, fuzzing })
}

fn is_active(passage: &Passage) -> Vec<bool> {
    passage.activations.iter().map(|&activation| activation > 0.).collect()
}

/// As many marks on tokens that have none.
fn elsewhere(marks: &[bool], random: &mut ChaCha8Rng) -> Option<Vec<bool>> {
    let count = marks.iter().filter(|&&mark| mark).count();
    let mut free: Vec<usize> = (0..marks.len()).filter(|&at| !marks[at]).collect();
    if free.is_empty() {
        return None;
    }
    free.shuffle(random);
    let mut other = vec![false; marks.len()];
    free.iter().take(count.max(1)).for_each(|&at| other[at] = true);
    Some(other)
}

/// A passage with its marks, and with how strong they are from 1 to 10 if asked for.
fn marked(passage: &Passage, marks: &[bool], strengths: bool) -> String {
    let most = passage.activations.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let mut text = String::new();
    for (at, token) in passage.tokens.iter().enumerate() {
        match marks.get(at) {
            Some(true) => {
                text += &format!("<<{token}>>");
                if strengths {
                    text += &format!("({})", (10. * passage.activations[at] / most).ceil().clamp(1., 10.));
                }
            }
            _ => text += token,
        }
    }
    text
}

fn ask(
    model: &dyn Complete,
    system: &str,
    explanation: &str,
    mut passages: Vec<(String, bool)>,
    random: &mut ChaCha8Rng,
) -> Result<Score> {
    passages.shuffle(random);
    let (mut right, mut all, mut unreadable) = ([0f64; 2], [0f64; 2], 0);
    for batch in passages.chunks(BATCH) {
        let numbered = batch.iter().enumerate().map(|(at, (text, _))| format!("{}. {text}", at + 1));
        let question = format!("Description: {explanation}\n\n{}", numbered.collect::<Vec<_>>().join("\n"));
        let answer = model.complete(system, &question).map_err(Error::Measure)?;
        let said = answers(&answer, batch.len());
        if said.is_none() {
            unreadable += batch.len();
        }
        for (at, &(_, truth)) in batch.iter().enumerate() {
            let class = usize::from(truth);
            all[class] += 1.;
            right[class] += f64::from(u8::from(said.as_ref().is_some_and(|said| said[at] == truth)));
        }
    }
    let shares: Vec<f64> = (0..2).filter(|&class| all[class] > 0.).map(|class| right[class] / all[class]).collect();
    let balanced_accuracy = shares.iter().sum::<f64>() / shares.len().max(1) as f64;
    Ok(Score { balanced_accuracy, passages: passages.len(), unreadable })
}

/// The list of zeros and ones in an answer, if it is one of `count`.
fn answers(text: &str, count: usize) -> Option<Vec<bool>> {
    let (start, end) = (text.find('[')?, text.rfind(']')?);
    let list: Vec<f64> = serde_json::from_str(text.get(start..=end)?).ok()?;
    (list.len() == count).then(|| list.iter().map(|&answer| answer >= 0.5).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers by looking for a word, as a good model with the right explanation would.
    struct Looks;

    impl Complete for Looks {
        fn complete(&self, system: &str, user: &str) -> std::result::Result<String, String> {
            if system == EXPLAIN {
                assert!(user.contains("<< cat>>(10)"), "{user}");
                return Ok("the word cat\n".into());
            }
            let lines = user.lines().filter(|line| line.contains(". "));
            let wanted = if system == DETECT { " cat" } else { "<< cat>>" };
            let said: Vec<u8> = lines.map(|line| u8::from(line.contains(wanted))).collect();
            Ok(format!("```json\n{said:?}\n```"))
        }
    }

    struct Always(&'static str);

    impl Complete for Always {
        fn complete(&self, _: &str, _: &str) -> std::result::Result<String, String> {
            Ok(self.0.into())
        }
    }

    fn passage(words: &[&str]) -> Passage {
        let tokens: Vec<String> = words.iter().map(|word| format!(" {word}")).collect();
        let activations = words.iter().map(|&word| if word == "cat" { 2. } else { 0. }).collect();
        Passage { tokens, activations }
    }

    fn passages() -> (Vec<Passage>, Vec<Passage>) {
        let active = (0..8).map(|_| passage(&["the", "cat", "sat", "down"])).collect();
        let silent = (0..8).map(|_| passage(&["the", "dog", "sat", "down"])).collect();
        (active, silent)
    }

    #[test]
    fn a_model_that_sees_the_feature_scores_fully_and_one_that_guesses_half() {
        let (active, silent) = passages();
        let found = interpret(&Looks, &active[..2], &active[2..], &silent, 1).unwrap();
        assert_eq!((found.explanation.as_str(), found.detection.balanced_accuracy), ("the word cat", 1.));
        assert_eq!((found.fuzzing.balanced_accuracy, found.detection.passages), (1., 14));
        let guess = interpret(&Always("[1, 1, 1, 1, 1]"), &active[..2], &active[2..], &silent[..4], 1).unwrap();
        assert_eq!(guess.detection.balanced_accuracy, 0.5);
        let babble = interpret(&Always("perhaps"), &active[..2], &active[2..], &silent, 1).unwrap();
        assert_eq!((babble.detection.balanced_accuracy, babble.detection.unreadable), (0., 14));
        assert!(interpret(&Looks, &[], &active, &silent, 1).is_err());
    }

    #[test]
    fn only_whole_lists_are_answers() {
        assert_eq!(answers("so: [1, 0]", 2), Some(vec![true, false]));
        for text in ["[1]", "[1, 0, 1]", "] [", "[a, b]", ""] {
            assert_eq!(answers(text, 2), None, "{text}");
        }
    }
}

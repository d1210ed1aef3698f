//! What is in the box? `<bos> the apple is in box F , the key is in box Q . box F contains the`, then `apple` (Kim and Schuster
//! 2023, arXiv 2305.02363; Prakash et al. 2024, arXiv 2402.14811). Boxes are named in random order, so that a box and its position say
//! nothing of each other. After the answer another box may be asked for (`asked`). The same binding in another form is a list of assignments: `<bos> apple = box [ F ] ; key = box [ Q ] . box [ F ] =`.

use rand::{Rng, RngExt};
use serde::Deserialize;
use toml::Table;

use super::lexicon::{Kind, Lexicon, OBJECTS, Template, all_different, owned};
use super::parameters::read;
use super::questions::{EVERYTHING, PromptPair};
use super::streamed::{Exercise, compared};
use crate::error::Result;
use crate::task::Row;

/// Its name in the registry.
pub const NAME: &str = "entity_tracking";

/// The keys of `[task]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// How many boxes, each with one object; default 7.
    pub boxes: usize,
    /// How many of them are asked for, one after the other (all, where there are fewer); default 1.
    pub asked: usize,
    /// How it is written; default `sentences`.
    pub form: Form,
}

/// How a scene is written. A label stands four tokens behind its object in all; the end stands two behind the question's label in
/// sentences and assignments, so that the label must first be carried there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// `the apple is in box F , … . box F contains the`
    #[default]
    Sentences,
    /// `the apple is in box F , … . what is in box F`: the prompt ends with the label, as one of keys and values with the key.
    Questions,
    /// `apple = box [ F ] ; … . box [ F ] =`
    Assignments,
}

impl Default for Parameters {
    fn default() -> Self {
        Self { boxes: 7, asked: 1, form: Form::default() }
    }
}

/// The task.
#[derive(Debug, Clone)]
pub struct EntityTracking {
    boxes: usize,
    lexicon: Lexicon,
    object: Kind,
    label: Kind,
    /// With one question, with two, ….
    sentences: Vec<Template>,
}

/// What each box holds (object, label), and which is asked for; before it, which others were asked for and answered.
#[derive(Debug, Clone)]
struct Scene {
    boxes: Vec<(usize, usize)>,
    answered: Vec<usize>,
    asked: usize,
}

/// What must come out of the clean prompt when one thing is put into it that the model knows of the corrupt prompt: the desiderata of
/// Prakash et al. 2024, by what was put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Desiderata {
    /// The object in the box: that of the corrupt prompt.
    pub object: u32,
    /// The label of the box that is asked for: the clean prompt's object in the box of that label. `None` if it has no such box.
    pub label: Option<u32>,
    /// The position of that box among the boxes: the clean prompt's object there.
    pub position: u32,
}

impl EntityTracking {
    /// From the keys of `[task]`, its name left out.
    pub fn from_parameters(parameters: &Table) -> Result<Self> {
        let Parameters { boxes, asked, form } = read(NAME, parameters, |parameters: &Parameters, problems| {
            problems.count("boxes", parameters.boxes, 2, 26);
            problems.count("asked", parameters.asked, 1, 1 << 16);
        })?;
        let labels = ('A'..='Z').map(String::from).collect();
        let (fact, between, question) = match form {
            Form::Sentences => ("the _ is in box _", " , ", " . box _ contains the"),
            Form::Questions => ("the _ is in box _", " , ", " . what is in box _"),
            Form::Assignments => ("_ = box [ _ ]", " ; ", " . box [ _ ] ="),
        };
        let others = format!("{fact}{between}{question}").replace('_', "");
        let (lexicon, [object, label]) = Lexicon::new([owned(&OBJECTS), labels], &others);
        let facts = vec![fact; boxes].join(between);
        let sentence = |questions: usize| {
            let mut kinds = [object, label].repeat(boxes);
            // Each question but the last has its answer.
            kinds.extend([label, object].repeat(questions));
            kinds.pop();
            lexicon.template(&format!("{facts}{}", vec![question; questions].join(" _")), &kinds)
        };
        let sentences = (1..=asked.min(boxes)).map(sentence).collect();
        Ok(Self { boxes, lexicon, object, label, sentences })
    }

    /// The answers by which one tells what a part of the model carries, when its activation is taken from `corrupt` and put into
    /// `clean`; `None` if either is not a prompt of this task. In the pairs of the change `everything` all three differ.
    pub fn desiderata(&self, clean: &[u32], corrupt: &[u32]) -> Option<Desiderata> {
        let (clean, corrupt) = (self.read(clean)?, self.read(corrupt)?);
        let (object, label) = corrupt.boxes[corrupt.asked];
        let labelled = clean.boxes.iter().find(|each| each.1 == label);
        Some(Desiderata {
            object: self.object.token(object),
            label: labelled.map(|each| self.object.token(each.0)),
            position: self.object.token(clean.boxes[corrupt.asked].0),
        })
    }

    /// What a prompt says; `None` if it is none, or if an answer in it is wrong.
    fn read(&self, prompt: &[u32]) -> Option<Scene> {
        let slots = self.sentences.iter().find_map(|sentence| sentence.read(prompt))?;
        let (facts, questions) = slots.split_at(2 * self.boxes);
        let boxes: Vec<(usize, usize)> = facts.chunks_exact(2).map(|two| (two[0], two[1])).collect();
        let labels: Vec<usize> = boxes.iter().map(|each| each.1).collect();
        let labelled = |label: usize| labels.iter().position(|&each| each == label);
        let answers = questions.chunks_exact(2);
        let asked = labelled(*answers.remainder().first()?)?;
        let answered = |two: &[usize]| labelled(two[0]).filter(|&at| boxes[at].0 == two[1]);
        let answered = answers.map(answered).collect::<Option<_>>()?;
        all_different(&labels).then_some(Scene { boxes, answered, asked })
    }

    /// With one question.
    fn drawn(&self, random: &mut dyn Rng) -> Scene {
        let labels = self.label.different(random, self.boxes);
        self.labelled(labels, random)
    }

    fn labelled(&self, labels: Vec<usize>, random: &mut dyn Rng) -> Scene {
        let objects = self.object.different(random, self.boxes);
        let boxes = objects.into_iter().zip(labels).collect();
        Scene { boxes, answered: Vec::new(), asked: random.random_range(0..self.boxes) }
    }

    /// The labels of a scene in another order.
    fn permuted(&self, scene: &Scene, random: &mut dyn Rng) -> Vec<usize> {
        let order = rand::seq::index::sample(random, self.boxes, self.boxes);
        order.into_iter().map(|at| scene.boxes[at].1).collect()
    }

    fn prompt(&self, scene: &Scene) -> Vec<u32> {
        let mut slots: Vec<usize> = scene.boxes.iter().flat_map(|&(object, label)| [object, label]).collect();
        slots.extend(scene.answered.iter().map(|&at| scene.boxes[at]).flat_map(|(object, label)| [label, object]));
        slots.push(scene.boxes[scene.asked].1);
        self.sentences[scene.answered.len()].fill(&slots)
    }
}

impl Exercise for EntityTracking {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        self.lexicon.words().to_vec()
    }

    fn longest(&self) -> usize {
        self.sentences.last().map_or(0, Template::length) + 1
    }

    fn row(&self, _split: &str, random: &mut dyn Rng) -> Row {
        let mut scene = self.drawn(random);
        // The box that is drawn first is asked for last: rows with one question are the same whatever `asked` is added.
        let others = rand::seq::index::sample(random, self.boxes - 1, self.sentences.len() - 1);
        scene.answered = others.into_iter().map(|at| at + usize::from(at >= scene.asked)).collect();
        let prompt = self.prompt(&scene);
        let answer = self.right(&prompt);
        let answers = (1..self.sentences.len()).map(|questions| self.sentences[questions - 1].length());
        let mut row = Row::new(prompt, &answer);
        answers.for_each(|at| row.mask[at] = true);
        row
    }

    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        let object = |scene: Scene| self.object.token(scene.boxes[scene.asked].0);
        self.read(prompt).map(object).into_iter().collect()
    }

    fn changes(&self) -> &'static [&'static str] {
        &["asked", "object", "labels", EVERYTHING]
    }

    fn pair(&self, _split: &str, change: &str, random: &mut dyn Rng) -> Option<PromptPair> {
        let clean = self.drawn(random);
        let other = random.random_range(0..self.boxes);
        let mut corrupt = clean.clone();
        match change {
            "asked" => corrupt.asked = other,
            "object" => {
                let object = random.random_range(0..self.object.count);
                if clean.boxes.iter().any(|each| each.0 == object) {
                    return None;
                }
                corrupt.boxes[clean.asked].0 = object;
            }
            "labels" => {
                // The question keeps its label, which is now elsewhere.
                let (here, there) = (clean.boxes[clean.asked].1, clean.boxes[other].1);
                (corrupt.boxes[clean.asked].1, corrupt.boxes[other].1) = (there, here);
                corrupt.asked = other;
            }
            _ => {
                // Of the same labels, so that each desideratum exists.
                let order = self.permuted(&clean, random);
                corrupt = self.labelled(order, random);
            }
        }
        let (clean, corrupt) = (self.prompt(&clean), self.prompt(&corrupt));
        if change == EVERYTHING {
            let Desiderata { object, label, position } = self.desiderata(&clean, &corrupt)?;
            let own = self.right(&clean);
            let four = [Some(object), label, Some(position), own.first().copied()];
            let repeats = |at: usize| four[..at].contains(&four[at]);
            // With two boxes there are no three others.
            if self.boxes > 2 && (1..four.len()).any(repeats) {
                return None;
            }
        }
        compared(self, clean, corrupt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use endoscope_train::generator;

    #[test]
    fn the_desiderata_tell_object_label_and_position_apart() {
        let task = EntityTracking::from_parameters(&toml::from_str("boxes = 3").unwrap()).unwrap();
        let ids = |text: &str| -> Vec<u32> {
            std::iter::once(0).chain(text.split(' ').map(|word| task.lexicon.id(word))).collect()
        };
        let clean = ids("the key is in box A , the cup is in box B , the pen is in box C . box A contains the");
        let corrupt = ids("the hat is in box A , the bag is in box C , the map is in box B . box B contains the");
        let found = task.desiderata(&clean, &corrupt).unwrap();
        let id = |word: &str| task.lexicon.id(word);
        assert_eq!(found, Desiderata { object: id("map"), label: Some(id("cup")), position: id("pen") });
        assert_eq!(task.desiderata(&clean, &corrupt[1..]), None);
        for number in 0..200 {
            let pair = (0..100).find_map(|attempt| task.pair("train", EVERYTHING, &mut generator(attempt, number)));
            let pair = pair.unwrap();
            let found = task.desiderata(&pair.clean, &pair.corrupt).unwrap();
            assert_eq!(pair.wrong_answers, [found.object]);
            let all = [Some(found.object), found.label, Some(found.position), Some(pair.answers[0])];
            assert!((1..4).all(|at| all[at].is_some() && !all[..at].contains(&all[at])), "{all:?}");
        }
    }
}

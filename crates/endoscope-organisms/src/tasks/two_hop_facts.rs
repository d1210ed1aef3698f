//! Facts of a made-up world, one by one and two in a row: `<bos> h r`, then `t end`; and `<bos> h r1 r2`, then `b t end`, where `b` is what
//! `h r1` leads to, or only `t end` without the chain of thought (Wang et al. 2024, arXiv
//! 2405.15071). All facts are trained on one by one. Of those that are never trained on in a row the split `out` is made, so
//! that one sees whether a model puts together what it knows, or has only learned what it was shown.

use std::collections::BTreeSet;

use endoscope_train::generator;
use rand::seq::SliceRandom;
use rand::{Rng, RngExt};
use serde::Deserialize;
use toml::Table;

use super::lexicon::{Kind, Lexicon, numbers};
use super::parameters::{read, refuse};
use super::questions::PromptPair;
use super::streamed::{Exercise, compared};
use crate::error::Result;
use crate::task::{BOS, Row, TRAIN, words};

/// Its name in the registry.
pub const NAME: &str = "two_hop_facts";
/// Two facts that are trained on in a row, but not with each other.
pub const IN: &str = "in";
/// Two facts of which neither is trained on in a row.
pub const OUT: &str = "out";

/// Streams of random numbers under `task.seed`: the facts, which of them are out, which rows are trained on, and from here
/// on the noise of each row.
const NOISE: u64 = 3;

/// The keys of `[task]`. Defaults are a world that is small; the paper's are 2000, 200, 20, 0.05, 0.005 and 7.2.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Parameters {
    /// How many entities; default 80.
    pub entities: usize,
    /// How many relations; default 30.
    pub relations: usize,
    /// How many relations each entity has, each to any entity; default 12.
    pub facts_per_entity: usize,
    /// The share of the facts that are never trained on in a row; default 0.15.
    pub out_share: f64,
    /// The share of the pairs of the other facts that are held out; default 0.05.
    pub held_out: f64,
    /// How many pairs are trained on, for each fact that is not out (all there are, if those are fewer); default 7.2.
    pub pairs_per_fact: f64,
    /// Whether the answer names the entity between; default true.
    pub chain_of_thought: bool,
    /// How likely, in a training row of two facts, the entity between is replaced by any; default 0.
    pub bridge_noise: f64,
    /// How likely the last entity is; default 0.
    pub target_noise: f64,
    /// What decides facts, splits and noise; default 0.
    pub seed: u64,
}

impl Default for Parameters {
    fn default() -> Self {
        Self {
            entities: 80,
            relations: 30,
            facts_per_entity: 12,
            out_share: 0.15,
            held_out: 0.05,
            pairs_per_fact: 7.2,
            chain_of_thought: true,
            bridge_noise: 0.,
            target_noise: 0.,
            seed: 0,
        }
    }
}

/// From an entity by a relation to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fact {
    /// The entity it is about.
    pub head: usize,
    /// What is said.
    pub relation: usize,
    /// The entity it leads to.
    pub tail: usize,
}

/// The task, with its world.
#[derive(Debug, Clone)]
pub struct TwoHopFacts {
    parameters: Parameters,
    facts: Vec<Fact>,
    /// The tail of `head * relations + relation`.
    tails: Vec<Option<usize>>,
    /// Numbers of two facts, of which the second is about the tail of the first.
    trained: Vec<(usize, usize)>,
    held_out: Vec<(usize, usize)>,
    out: Vec<(usize, usize)>,
    lexicon: Lexicon,
    entity: Kind,
    relation: Kind,
    end: u32,
}

impl TwoHopFacts {
    /// From the keys of `[task]`, its name left out.
    pub fn from_parameters(parameters: &Table) -> Result<Self> {
        let parameters: Parameters = read(NAME, parameters, |parameters: &Parameters, problems| {
            problems.count("entities", parameters.entities, 2, 5000);
            problems.count("relations", parameters.relations, 1, 1000);
            problems.count("facts_per_entity", parameters.facts_per_entity, 1, parameters.relations.min(50));
            for (key, share) in [
                ("out_share", parameters.out_share),
                ("held_out", parameters.held_out),
                ("bridge_noise", parameters.bridge_noise),
                ("target_noise", parameters.target_noise),
            ] {
                problems.share(key, share);
            }
            // As a share of the most that there can be.
            problems.share("pairs_per_fact / 1000", parameters.pairs_per_fact / 1000.);
        })?;
        Self::new(parameters)
    }

    fn new(parameters: Parameters) -> Result<Self> {
        let Parameters { entities, relations, facts_per_entity, seed, .. } = parameters;
        let (entity_words, relation_words) =
            (words(entities).split_off(2), numbers(0..relations).into_iter().map(|number| format!("r{number}")));
        let (lexicon, [entity, relation]) = Lexicon::new([entity_words, relation_words.collect()], "end");
        let mut random = generator(seed, 0);
        let (mut facts, mut tails) = (Vec::new(), vec![None; entities * relations]);
        for head in 0..entities {
            for relation in relation.different(&mut random, facts_per_entity) {
                let tail = random.random_range(0..entities);
                tails[head * relations + relation] = Some(tail);
                facts.push(Fact { head, relation, tail });
            }
        }
        let out = chosen(facts.len(), parameters.out_share, &mut generator(seed, 1));
        // The facts of a head stand together, in the order of heads.
        let about = |head: usize| head * facts_per_entity..(head + 1) * facts_per_entity;
        let both = |is_out: bool| -> Vec<(usize, usize)> {
            let firsts = (0..facts.len()).filter(|first| out.contains(first) == is_out);
            let seconds = |first: usize| about(facts[first].tail).filter(|second| out.contains(second) == is_out);
            firsts.flat_map(|first| seconds(first).map(move |second| (first, second))).collect()
        };
        let (mut pool, out_pairs) = (both(false), both(true));
        pool.shuffle(&mut generator(seed, 2));
        let held_out = (pool.len() as f64 * parameters.held_out).round() as usize;
        let trained = ((facts.len() - out.len()) as f64 * parameters.pairs_per_fact).round() as usize;
        let mut trained_pairs = pool.split_off(held_out.min(pool.len()));
        trained_pairs.truncate(trained);
        let counts = [trained_pairs.len(), pool.len(), out_pairs.len()];
        if counts.contains(&0) {
            let [trained, held_out, out] = counts;
            let problem = format!(
                "{trained} pairs of facts would be trained on, {held_out} held out and {out} out; there must be some of each: \
                 change `task.entities`, `task.facts_per_entity`, `task.held_out`, `task.out_share`, `task.pairs_per_fact` or `task.seed`"
            );
            return Err(refuse(NAME, problem));
        }
        let end = lexicon.id("end");
        let (held_out, trained, out) = (pool, trained_pairs, out_pairs);
        Ok(Self { parameters, facts, tails, trained, held_out, out, lexicon, entity, relation, end })
    }

    /// All facts.
    pub fn facts(&self) -> &[Fact] {
        &self.facts
    }

    /// Pairs of facts of a split, the second about the tail of the first.
    pub fn pairs(&self, split: &str) -> impl Iterator<Item = (Fact, Fact)> {
        self.numbers(split).iter().map(|&(first, second)| (self.facts[first], self.facts[second]))
    }

    /// What a relation leads to from an entity, if there is such a fact.
    pub fn tail(&self, head: usize, relation: usize) -> Option<usize> {
        let Parameters { entities, relations, .. } = self.parameters;
        if head < entities && relation < relations { self.tails[head * relations + relation] } else { None }
    }

    fn numbers(&self, split: &str) -> &[(usize, usize)] {
        match split {
            IN => &self.held_out,
            OUT => &self.out,
            _ => &self.trained,
        }
    }

    fn drawn(&self, split: &str, random: &mut dyn Rng) -> (Fact, Fact) {
        let pairs = self.numbers(split);
        let (first, second) = pairs[random.random_range(0..pairs.len())];
        (self.facts[first], self.facts[second])
    }

    /// The token of an entity.
    pub fn entity(&self, entity: usize) -> u32 {
        self.entity.token(entity)
    }

    /// What is asked of an entity, by one relation or by two in a row: `<bos> h r` or `<bos> h r1 r2`.
    pub fn prompt(&self, head: usize, relations: &[usize]) -> Vec<u32> {
        let relations = relations.iter().map(|&relation| self.relation.token(relation));
        [BOS, self.entity.token(head)].into_iter().chain(relations).collect()
    }

    fn two_hops(&self, first: Fact, second: Fact, bridge: usize, target: usize) -> Row {
        let answer = [self.entity.token(bridge), self.entity.token(target), self.end];
        let answer = if self.parameters.chain_of_thought { &answer[..] } else { &answer[1..] };
        Row::new(self.prompt(first.head, &[first.relation, second.relation]), answer)
    }

    /// One of the facts, then of the trained pairs; each has its noise once and for all.
    fn training_row(&self, number: usize) -> Row {
        let Some(pair) = number.checked_sub(self.facts.len()) else {
            let Fact { head, relation, tail } = self.facts[number];
            return Row::new(self.prompt(head, &[relation]), &[self.entity.token(tail), self.end]);
        };
        let (first, second) = (self.facts[self.trained[pair].0], self.facts[self.trained[pair].1]);
        let mut random = generator(self.parameters.seed, NOISE + number as u64);
        let mut noisy = |noise: f64, entity: usize| {
            if random.random_bool(noise) { random.random_range(0..self.entity.count) } else { entity }
        };
        let bridge = noisy(self.parameters.bridge_noise, first.tail);
        let target = noisy(self.parameters.target_noise, second.tail);
        self.two_hops(first, second, bridge, target)
    }

    /// The prompt at which the change is seen: with the chain of thought, the second relation matters only after the bridge.
    fn asked(&self, head: usize, relations: [usize; 2], change: &str) -> Option<Vec<u32>> {
        let mut prompt = self.prompt(head, &relations);
        if self.parameters.chain_of_thought && change == "second_relation" {
            prompt.push(self.entity.token(self.tail(head, relations[0])?));
        }
        Some(prompt)
    }
}

/// A share of the numbers below `count`.
fn chosen(count: usize, share: f64, random: &mut dyn Rng) -> BTreeSet<usize> {
    let amount = (count as f64 * share).round() as usize;
    rand::seq::index::sample(random, count, amount.min(count)).into_iter().collect()
}

impl Exercise for TwoHopFacts {
    fn name(&self) -> &'static str {
        NAME
    }

    fn words(&self) -> Vec<String> {
        self.lexicon.words().to_vec()
    }

    fn longest(&self) -> usize {
        if self.parameters.chain_of_thought { 7 } else { 6 }
    }

    fn splits(&self) -> &'static [&'static str] {
        &[TRAIN, IN, OUT]
    }

    /// A training row is each fact and each trained pair equally often.
    fn row(&self, split: &str, random: &mut dyn Rng) -> Row {
        if split == TRAIN {
            return self.training_row(random.random_range(0..self.facts.len() + self.trained.len()));
        }
        let (first, second) = self.drawn(split, random);
        self.two_hops(first, second, first.tail, second.tail)
    }

    fn right(&self, prompt: &[u32]) -> Vec<u32> {
        let thinks = self.parameters.chain_of_thought;
        let entity = |token: u32| self.entity.index(token);
        let relation = |token: u32| self.relation.index(token);
        let right = || {
            let [BOS, head, first, rest @ ..] = prompt else { return None };
            let (head, first) = (entity(*head)?, relation(*first)?);
            let bridge = self.tail(head, first)?;
            let Some((&second, answer)) = rest.split_first() else { return Some(self.entity.token(bridge)) };
            let Some(second) = relation(second) else {
                let ends = answer.is_empty() && entity(second) == Some(bridge);
                return ends.then_some(self.end);
            };
            let target = self.tail(bridge, second)?;
            let whole = [self.entity.token(bridge), self.entity.token(target), self.end];
            let whole = if thinks { &whole[..] } else { &whole[1..] };
            if whole.starts_with(answer) { whole.get(answer.len()).copied() } else { None }
        };
        right().into_iter().collect()
    }

    fn changes(&self) -> &'static [&'static str] {
        &["head", "first_relation", "second_relation"]
    }

    /// The clean prompt is of the split, the corrupt one any that has an answer.
    fn pair(&self, split: &str, change: &str, random: &mut dyn Rng) -> Option<PromptPair> {
        let (first, second) = self.drawn(split, random);
        let (mut head, mut relations) = (first.head, [first.relation, second.relation]);
        let clean = self.asked(head, relations, change)?;
        let other = random.random_range(0..self.relation.count);
        match change {
            "head" => head = random.random_range(0..self.entity.count),
            "first_relation" => relations[0] = other,
            _ => relations[1] = other,
        }
        compared(self, clean, self.asked(head, relations, change)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(text: &str) -> Result<TwoHopFacts> {
        TwoHopFacts::from_parameters(&toml::from_str(text).unwrap())
    }

    #[test]
    fn the_splits_are_what_they_say() {
        let task = made("").unwrap();
        assert_eq!(task.facts().len(), 960);
        assert_eq!(task.facts().iter().map(|fact| (fact.head, fact.relation)).collect::<BTreeSet<_>>().len(), 960);
        assert!(task.facts().iter().all(|fact| task.tail(fact.head, fact.relation) == Some(fact.tail)));
        let of = |split: &str| task.pairs(split).collect::<BTreeSet<_>>();
        let (train, held_out, out) = (of(TRAIN), of(IN), of(OUT));
        assert_eq!(train.len(), (816. * 7.2_f64).round() as usize);
        assert!(train.iter().chain(&held_out).chain(&out).all(|(first, second)| first.tail == second.head));
        assert!(train.is_disjoint(&held_out));
        let known: BTreeSet<Fact> = train.iter().flat_map(|&(first, second)| [first, second]).collect();
        let strange: BTreeSet<Fact> = out.iter().flat_map(|&(first, second)| [first, second]).collect();
        assert!(known.is_disjoint(&strange), "a fact of `out` is trained on in a row");
        assert!(known.len() <= 816 && !out.is_empty() && strange.len() <= 144);
        // About 960 * 12 * 0.85^2 * 0.05, for the second facts are not shared out evenly.
        assert!((350..480).contains(&held_out.len()), "{}", held_out.len());
    }

    #[test]
    fn noise_replaces_what_it_says() {
        let rows = |text: &str| {
            let task = made(text).unwrap();
            let numbers = task.facts.len()..task.facts.len() + task.trained.len();
            let wrong = |place: usize, row: &Row| {
                let pair = task.right(&row.tokens[..4]);
                let bridge = pair == [row.tokens[4]];
                let target = {
                    let mut prompt = row.tokens[..4].to_vec();
                    prompt.extend(pair);
                    task.right(&prompt) == [row.tokens[5]]
                };
                ![bridge, target][place]
            };
            let rows: Vec<Row> = numbers.map(|number| task.training_row(number)).collect();
            [0, 1].map(|place| rows.iter().filter(|row| wrong(place, row)).count() as f64 / rows.len() as f64)
        };
        // One in eighty is replaced by itself.
        for (text, expect) in
            [("", [0., 0.]), ("bridge_noise = 1.0", [0.9875, 0.]), ("target_noise = 0.5", [0., 0.494])]
        {
            let found = rows(text);
            assert!((0..2).all(|place| (found[place] - expect[place]).abs() < 0.02), "{text}: {found:?}");
        }
    }

    #[test]
    fn what_leaves_a_split_empty_is_refused() {
        for (text, key) in [
            ("out_share = 0.0", "0 out"),
            ("held_out = 0.0", "0 held out"),
            ("held_out = 1.0", "0 pairs of facts would be trained"),
            ("pairs_per_fact = -1.0", "pairs_per_fact"),
            ("facts_per_entity = 31", "task.facts_per_entity"),
            ("chain = true", "chain"),
        ] {
            let error = made(text).unwrap_err().to_string();
            assert!(error.contains(key), "{text}: {error}");
        }
    }
}

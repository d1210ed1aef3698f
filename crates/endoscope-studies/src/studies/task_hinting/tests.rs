use super::*;
use crate::finding::Finding;
use crate::lab::Level;
use endoscope_report::Verdict;

fn lab() -> Lab<'static> {
    Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap()
}

fn config() -> Config {
    Config { rows: 40, lengths: vec![6, 18], far: 18, ..Config::default() }
}

fn verdicts(arms: &[Named<'_>]) -> Vec<Verdict> {
    let outcome = outcome(&config(), arms).unwrap();
    outcome.findings.iter().map(Finding::verdict).collect()
}

#[test]
fn claims_fall_where_the_effect_is_taken_away() {
    let organism = lab().organism(ORGANISM).unwrap();
    let figures = examined(&organism, &config(), 1).unwrap();
    let [plain, sharpened, blunted] =
        [&figures.far.plain, &figures.far.sharpened, &figures.far.blunted].map(|at| at.exact);
    assert!(figures.lengths[0].plain.exact > 0.97 && plain < 0.3, "{plain}");
    assert!(sharpened > plain + 0.15 && blunted <= plain, "{plain} {sharpened} {blunted}");
    // Models that all do as this one: no hint is better than another, but sharper attention is better than its own.
    let alike: Vec<Named<'_>> = ARMS.iter().map(|arm| (arm.name, vec![figures.clone(); 3])).collect();
    assert_eq!(verdicts(&alike), [NONE, NONE, NONE, Verdict::Shown, NONE]);
    // The hint helps, and a head looks.
    let mut hinted = alike.clone();
    for figures in &mut hinted[SUCCESSOR].1 {
        figures.far.plain.exact += 0.2;
        figures.further.sharpened.exact += 0.2;
        figures.looks = vec![[0.1, 0.1], [0.8, 0.1]];
    }
    assert_eq!(verdicts(&hinted), [Verdict::Shown; 5]);
    // The random answer helps as much as the hint, and the scale does nothing.
    hinted[RANDOM] = hinted[SUCCESSOR].clone();
    for figures in &mut hinted[ALONE].1 {
        figures.far.sharpened = figures.far.plain.clone();
    }
    assert_eq!(verdicts(&hinted), [NONE, Verdict::Shown, NONE, NONE, Verdict::Shown]);
    // The user's model alone.
    assert_eq!(verdicts(&alike[..1]), [Verdict::Shown, NONE]);
}

const NONE: Verdict = Verdict::NotShown;

/// tools/goldens/length_goldens.py
#[derive(Deserialize)]
struct Golden {
    length: usize,
    rows: Vec<Vec<u32>>,
    said: Vec<[f64; 3]>,
    looks: Vec<[f64; 2]>,
}

#[test]
fn what_streams_say_and_heads_look_at_is_what_transformers_has() {
    let golden: Golden = serde_json::from_str(include_str!("../../../tests/goldens/sorting.json")).unwrap();
    let organism = lab().organism(ORGANISM).unwrap();
    let exam = Exam { length: golden.length, rows: golden.rows, asked: vec![] };
    let near = |found: &[f64], expected: &[f64]| {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-4, "{found} {expected}");
        }
    };
    let said: Vec<f64> = said(&organism.decoder, &exam).unwrap().iter().flat_map(|said| said.ranks).collect();
    near(&said, golden.said.as_flattened());
    near(looks(&organism.decoder, &exam).unwrap().as_flattened(), golden.looks.as_flattened());
}

#[test]
fn a_model_without_the_words_or_the_room_or_the_skill_is_refused() {
    let error =
        |model: &Model, config: &Config| TaskHinting.run(&lab().with_model(model), config).unwrap_err().to_string();
    let organism = lab().organism(ORGANISM).unwrap();
    let smoke = TaskHinting::smoke();
    let other = error(&lab().organism("induction").unwrap(), &smoke);
    assert!(other.contains("no token for the word `1`"), "{other}");
    let long = error(&organism, &Config { lengths: vec![100], ..smoke.clone() });
    assert!(long.contains("its context 160"), "{long}");
    let mut recipe = Recipe::read(organism.directory.join("recipe.toml")).unwrap();
    (recipe.training.steps, recipe.training.warmup_steps) = (1, 0);
    let untrained = error(&lab().trained(&recipe).unwrap(), &smoke);
    assert!(untrained.contains("at least 0.5"), "{untrained}");
}

#[test]
fn arms_differ_in_their_hint_and_updates_alone() {
    let base = Recipe::read(lab().organism(ORGANISM).unwrap().directory.join("recipe.toml")).unwrap();
    let recipes: Vec<Recipe> = ARMS.iter().map(|arm| arm.recipe(&base, &Config::default(), 1)).collect();
    assert_eq!(recipes[SUCCESSOR], base, "the organism is what the study trains with seed 1");
    for (arm, recipe) in ARMS.iter().zip(&recipes) {
        assert_eq!(recipe.task.parameters["hint"].as_str(), Some(arm.hint));
        assert_eq!((&recipe.model, recipe.training.batch), (&base.model, base.training.batch));
    }
}

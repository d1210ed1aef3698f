use super::*;
use crate::lab::Level;
use endoscope_report::Verdict;
use measure::Without;

fn figures(shifted: f64, refused: f64, count: usize, steered: f64) -> Figures {
    Figures {
        known: 1.,
        unknown: 1.,
        fvu: 0.1,
        l0: 6.,
        latents: 128,
        count: vec![count; 4],
        shuffled: vec![0; 4],
        untrained: vec![3; 4],
        ablated: Without { auc: 1., shifted, turned: shifted, refused },
        matched: Without::default(),
        steered: vec![steered; 4],
        random: vec![0.; 4],
        length: 0.3,
    }
}

fn verdicts(deep: Figures, shallow: Figures) -> Vec<Verdict> {
    findings(&vec![vec![deep, shallow]; 3]).unwrap().iter().map(Finding::verdict).collect()
}

#[test]
fn claims_fall_where_the_effect_is_taken_away() {
    let none = Verdict::NotShown;
    let (deep, shallow) = (figures(0.8, 0., 20, 0.2), figures(0.1, 0.4, 5, 0.6));
    assert_eq!(verdicts(deep.clone(), shallow.clone()), [Verdict::Shown; 6]);
    // Two shallow ones.
    assert_eq!(verdicts(shallow.clone(), shallow.clone()), [none, Verdict::Shown, none, none, none, none]);
    // Two deep ones.
    let both = verdicts(deep.clone(), deep.clone());
    assert_eq!(both, [none, Verdict::Shown, none, Verdict::Shown, none, none]);
    // Random dictionaries differ as much, chance counts as many, any feature does it, any vector steers.
    let mut anything = deep.clone();
    (anything.untrained, anything.shuffled) = (vec![12; 4], vec![20; 4]);
    anything.matched = anything.ablated.clone();
    let mut steered = shallow;
    steered.random = steered.steered.clone();
    assert_eq!(verdicts(anything, steered), [none, none, Verdict::Shown, none, Verdict::Shown, none]);
}

#[test]
fn a_user_s_model_is_refused() {
    let lab = || Lab::new(Level::Smoke, vec![1, 2, 3]).unwrap();
    let organism = lab().organism("induction").unwrap();
    let error = IdeologicalDepth.run(&lab().with_model(&organism), &IdeologicalDepth::smoke()).unwrap_err().to_string();
    assert!(error.contains("twin"), "{error}");
}

#[test]
fn organisms_differ_in_the_ground_of_their_opinions_alone() {
    let config = Config::default();
    let [deep, shallow] = GROUNDS.map(|ground| recipe(&config, ground, 1).unwrap());
    assert_eq!((&deep.model, &deep.training), (&shallow.model, &shallow.training));
    let mut other = deep.task.clone();
    other.parameters.insert("ground".into(), "shallow".into());
    assert_eq!(other, shallow.task);
    let prompts = GROUNDS.map(|ground| world(&config, ground, 1).unwrap().prompt(3, 7));
    assert_eq!(prompts[0], prompts[1]);
}

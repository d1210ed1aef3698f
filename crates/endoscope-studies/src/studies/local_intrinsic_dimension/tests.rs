use endoscope_models::Model;
use endoscope_organisms::TRAIN;
use endoscope_report::Verdict;

use super::curves::{largest_drop, smoothed, tokens};
use super::tokens::dimension;
use super::*;
use crate::lab::Level;

const SEEDS: [u64; 3] = [1, 2, 3];

/// A training of 31 checkpoints, 50 steps apart: known by heart at step 100, understood from step 1000 on if at all.
fn training(understood: bool, dimension: impl Fn(f64) -> [f64; 2]) -> Curve {
    let moment = |at: u64| {
        let step = 50 * at;
        let known = f64::from(u8::from(step >= 100));
        let answered = if understood { (step as f64 / 1000.).min(1.).powi(4) } else { 0. };
        let losses = [3. * (1. - known), if understood { 5. * (1. - answered) } else { 5. + step as f64 }];
        Moment { step, loss: losses, accuracy: [known, answered], dimension: dimension(step as f64) }
    };
    Curve { moments: (0..=30).map(moment).collect() }
}

/// What the claims say.
fn as_claimed(seed: u64) -> Measured {
    let wave = |step: f64| (step + seed as f64).sin() / 10.;
    let falls = |step: f64| [if step < 600. { 10. } else { 3. } - step / 1000. + wave(step) / 10.; 2];
    let stays = |step: f64| [10. + wave(step); 2];
    let apart = |step: f64| [10. + wave(step), 10. - 3. * step / 1500.];
    let other = |step: f64| [10., 10. + wave(step)];
    let noise: Vec<f64> = (0..=30).map(|at: u32| 10. + wave(f64::from(at * at))).collect();
    Measured {
        sums: training(true, falls),
        unmirrored: training(true, falls),
        controls: Controls { noise: noise.clone(), untrained: noise },
        shuffled: training(false, stays),
        paths: training(false, apart),
        ample: training(false, other),
    }
}

fn verdicts(change: impl Fn(&mut Measured)) -> Vec<Verdict> {
    let mut measured = SEEDS.map(as_claimed);
    measured.iter_mut().for_each(change);
    let findings = findings(&LocalIntrinsicDimension::smoke(), &measured).unwrap();
    findings.iter().map(Finding::verdict).collect()
}

#[test]
fn claims_fall_where_the_effect_is_taken_away() {
    use Verdict::{NotShown, Shown};
    assert_eq!(verdicts(|_| ()), [Shown; 6]);
    // Without understanding there is nothing that falls, or goes along with anything.
    let found = verdicts(|measured| {
        let dimensions = measured.shuffled.of(|moment| moment.dimension[HELD_OUT]);
        for (moment, dimension) in measured.sums.moments.iter_mut().zip(dimensions) {
            moment.dimension[HELD_OUT] = dimension;
        }
    });
    assert_eq!([found[0], found[1], found[4]], [NotShown; 3], "{found:?}");
    // A drop that comes after understanding.
    let late = |measured: &mut Measured| {
        for moment in measured.sums.moments.iter_mut() {
            moment.dimension[HELD_OUT] = if moment.step > 1200 { 2. } else { 10. };
        }
    };
    assert_eq!(verdicts(late)[2], NotShown);
    // A control that falls as well.
    assert_eq!(verdicts(|measured| measured.shuffled = measured.sums.clone())[0], NotShown);
    assert_eq!(
        verdicts(|measured| measured.controls.noise = measured.sums.of(|moment| moment.dimension[HELD_OUT]))[1],
        NotShown
    );
    // Splits that stay together.
    assert_eq!(verdicts(|measured| measured.paths = measured.ample.clone())[5], NotShown);
}

#[test]
fn what_is_read_from_a_curve() {
    assert_eq!(smoothed(&[1., 4., 7., 1.], 3), [2.5, 4., 4., 4.]);
    assert_eq!(smoothed(&[1., 4.], 1), [1., 4.]);
    assert_eq!(largest_drop(&[5., 4., 1., 0.]), 2);
    assert_eq!(fall(&[2., 4., 3., 5., 1., 4.]), 0.8);
    assert_eq!(fall(&[1., 2., 3.]), 0.);
    let curve = as_claimed(1).sums;
    assert_eq!((curve.known(TRAINED), curve.known(HELD_OUT)), (2, 17));
    assert!((curve.lead(&Config::default()) - 250.).abs() <= 50.);
    assert!(curve.fall_before(12, &Config::default()) < 0.1 && curve.fall_before(17, &Config::default()) > 0.7);
    assert_eq!(curve.best(), 20);
}

#[test]
fn a_model_that_adds_has_few_dimensions_and_noise_has_many() {
    let lab = Lab::new(Level::Smoke, SEEDS.to_vec()).unwrap();
    let organism = lab.organism(ORGANISM).unwrap();
    let recipe = Recipe::read(organism.directory.join("recipe.toml")).unwrap();
    let config = Config { points: 300, neighbours: 32, rows: 700, ..Config::default() };
    let task = endoscope_organisms::task(&recipe.task.name, &recipe.task.parameters).unwrap();
    let found = |model: &Model, split: &str, mirrors: Mirrors| {
        let (loss, accuracy, points) =
            tokens(&*task, split, &config, mirrors, 1).unwrap().scored(&model.decoder).unwrap();
        (loss, accuracy, dimension(&points, &config).unwrap(), points)
    };
    for split in [TRAIN, "test"] {
        let (loss, accuracy, adds, points) = found(&organism, split, Mirrors::Apart);
        assert!(loss < 0.01 && accuracy > 0.999, "{split}: {loss}, {accuracy}");
        let noise = dimension(&points.isotropic(1).unwrap(), &config).unwrap();
        let mirrored = found(&organism, split, Mirrors::One).2;
        assert!(adds < 0.5 * noise && mirrored > adds, "{split}: {adds}, without mirrors {mirrored}, noise {noise}");
    }
    // As many points, and no two after the same numbers.
    let rows = |config: &Config| tokens(&*task, TRAIN, config, Mirrors::One, 1).map(|tokens| tokens.rows().len());
    assert_eq!(rows(&config).unwrap(), 300);
    let error = rows(&Config { points: 3000, ..config.clone() }).unwrap_err().to_string();
    assert!(error.contains("`points` is 3000") && error.contains("local-intrinsic-dimension"), "{error}");
}

#[test]
fn any_model_is_measured_layer_by_layer() {
    let lab = Lab::new(Level::Smoke, SEEDS.to_vec()).unwrap();
    let organism = lab.organism("induction").unwrap();
    let text = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&text, "ba da fa ga ja ka la ma ".repeat(200) + &"na pa ra sa ta va wa za ".repeat(200)).unwrap();
    let path = text.path().to_str().unwrap().to_string();
    for (text, words) in [(String::new(), "random tokens"), (path, "on /")] {
        let lab = Lab::new(Level::Smoke, SEEDS.to_vec()).unwrap().with_model(&organism);
        let outcome = LocalIntrinsicDimension.run(&lab, &Config { text, ..LocalIntrinsicDimension::smoke() }).unwrap();
        assert!(outcome.summary.contains(words), "{}", outcome.summary);
        let table = &outcome.tables["layers"];
        assert_eq!(table.shape(), [3, 6, 2]);
        // Low end, estimate, high end.
        let at = |figure| table.get(&[0, figure, 1]).unwrap();
        assert!(at(1) < at(0) && at(0) < at(2), "{} {} {}", at(0), at(1), at(2));
    }
    let lab = Lab::new(Level::Smoke, SEEDS.to_vec()).unwrap().with_model(&organism);
    let config = Config { text: "no such file".into(), ..LocalIntrinsicDimension::smoke() };
    let error = LocalIntrinsicDimension.run(&lab, &config).unwrap_err().to_string();
    assert!(error.contains("cannot read the text no such file"), "{error}");
}

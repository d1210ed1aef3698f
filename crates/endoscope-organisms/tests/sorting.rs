//! What is known of the organism `sorting-hinted`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::path::PathBuf;

use endoscope_causal::length::{AtLength, Exam, at_length, tempered};
use endoscope_models::Model;
use endoscope_net::Plan;
use endoscope_organisms::task;
use endoscope_train::Recipe;

const FRESH: u64 = 20_250_101;
const ROWS: u64 = 200;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../organisms/sorting-hinted")
}

/// Fresh lists of one length; of the hint, where `hint`.
fn exam(length: usize, hint: bool) -> Exam {
    let mut keys = Recipe::read(directory().join("recipe.toml")).unwrap().task.parameters;
    let (shorter, longer) = if hint { (length, length + 1) } else { (2, length) };
    for (key, value) in [("shortest", shorter), ("longest", shorter), ("longer", longer)] {
        keys.insert(key.into(), (value as i64).into());
    }
    keys.insert("hint_share".into(), 1.0.into());
    let task = task("sorting_with_hints", &keys).unwrap();
    let split = if hint { "train" } else { "longer" };
    let rows: Vec<_> = (0..ROWS).map(|number| task.row(split, FRESH, number).unwrap()).collect();
    let asked = rows.iter().map(|row| row.mask.clone()).collect();
    Exam { length, rows: rows.into_iter().map(|row| row.tokens).collect(), asked }
}

#[test]
fn it_sorts_fresh_lists_and_fails_on_long_ones() {
    let model = Model::open(directory()).unwrap();
    let found = |length: usize, plan: &Plan| -> AtLength {
        let found = at_length(&model.decoder, &exam(length, false), plan).unwrap();
        println!("{length}: {:.3} of lists, {:.3} of numbers", found.exact, found.token);
        found
    };
    for length in [3, 4, 5, 6] {
        assert!(found(length, &Plan::default()).exact >= 0.99);
    }
    let plain: Vec<AtLength> = [9, 12, 15, 18, 24].map(|length| found(length, &Plan::default())).into();
    assert!(plain[1].exact > 0.8 && plain[4].exact < 0.05);
    // Attention spreads out meanwhile, and sharpened with the length it sorts more.
    assert!(plain.windows(2).all(|two| two[0].entropy.iter().sum::<f64>() < two[1].entropy.iter().sum::<f64>()));
    let sharpened = found(15, &tempered(model.sites(), &[0.1, 0.1], 15).unwrap());
    assert!(sharpened.exact > plain[2].exact + 0.1);
}

#[test]
fn it_knows_the_hint() {
    let model = Model::open(directory()).unwrap();
    for length in [3, 6] {
        // Where a number comes more than once, itself and the next are right; the row holds one of them.
        let mut exam = exam(length, true);
        let different = |row: &[u32]| (1..length).all(|at| !row[1..=length][at..].contains(&row[at]));
        let keep: Vec<bool> = exam.rows.iter().map(|row| different(row)).collect();
        let mut kept = keep.iter();
        exam.rows.retain(|_| *kept.next().unwrap());
        exam.asked.truncate(exam.rows.len());
        let found = at_length(&model.decoder, &exam, &Plan::default()).unwrap();
        println!("{length}: {:.3} of hints", found.exact);
        assert!(exam.rows.len() > 50 && found.exact >= 0.99);
    }
}

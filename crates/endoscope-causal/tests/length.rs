//! Length on a trained model, held against transformers (`tools/goldens/length_goldens.py`).

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use endoscope_causal::length::{Exam, at_length, fit, tempered};
use endoscope_models::Model;
use endoscope_net::Plan;
use serde::Deserialize;

/// Sums of thousands of f32 numbers in another order.
const TOLERANCE: f64 = 2e-4;

#[derive(Deserialize)]
struct Golden {
    coefficients: Vec<Vec<f64>>,
    exams: Vec<GoldenExam>,
}

#[derive(Deserialize)]
struct GoldenExam {
    length: usize,
    rows: Vec<Vec<u32>>,
    asked: Vec<usize>,
    found: Vec<Found>,
}

#[derive(Deserialize)]
struct Found {
    exact: f64,
    token: f64,
    loss: f64,
    entropy: Vec<f64>,
}

impl GoldenExam {
    fn exam(&self) -> Exam {
        let asked = (0..self.rows[0].len()).map(|at| self.asked.contains(&at)).collect::<Vec<bool>>();
        Exam { length: self.length, rows: self.rows.clone(), asked: vec![asked; self.rows.len()] }
    }
}

fn golden() -> (Golden, Model) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(here.join("tests/goldens/length.json")).unwrap();
    (serde_json::from_str(&text).unwrap(), Model::open(here.join("../../organisms/induction")).unwrap())
}

#[test]
fn accuracy_loss_and_entropy_are_those_of_transformers_whatever_the_scale() {
    let (golden, model) = golden();
    for exam in &golden.exams {
        for (coefficients, expected) in golden.coefficients.iter().zip(&exam.found) {
            let plan = tempered(model.sites(), coefficients, exam.length).unwrap();
            let found = at_length(&model.decoder, &exam.exam(), &plan).unwrap();
            assert_eq!(found.length, exam.length);
            let pairs = [(found.exact, expected.exact), (found.token, expected.token), (found.loss, expected.loss)];
            let entropies = found.entropy.iter().copied().zip(expected.entropy.iter().copied());
            for (found, expected) in pairs.into_iter().chain(entropies) {
                let length = exam.length;
                assert!((found - expected).abs() < TOLERANCE, "{length} {coefficients:?}: {found} {expected}");
            }
            assert_eq!(found.entropy.len(), expected.entropy.len());
        }
    }
}

#[test]
fn a_fit_is_the_best_of_its_grid_for_each_layer() {
    let (golden, model) = golden();
    let exams = golden.exams[1..].iter().map(GoldenExam::exam).collect::<Vec<_>>();
    let loss = |coefficients: &[f64]| {
        let each = exams.iter().map(|exam| {
            let plan = tempered(model.sites(), coefficients, exam.length).unwrap();
            at_length(&model.decoder, exam, &plan).unwrap().loss
        });
        each.sum::<f64>()
    };
    let grid = [0., -0.25, -0.1, 0.4];
    let found = fit(&model.decoder, &exams, &grid, 5).unwrap();
    assert!(loss(&found) < loss(&[0., 0.]) && !found.contains(&-0.25), "{found:?}");
    for layer in 0..2 {
        for value in grid {
            let mut other = found.clone();
            other[layer] = value;
            assert!(loss(&found) <= loss(&other), "{found:?} {other:?}");
        }
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let (golden, model) = golden();
    let exam = golden.exams[0].exam();
    let fails = |exam: &Exam| at_length(&model.decoder, exam, &Plan::default()).unwrap_err().to_string();
    let never = vec![vec![false; exam.rows[0].len()]; exam.rows.len()];
    for asked in [never, exam.asked[1..].to_vec(), vec![vec![true]; exam.rows.len()]] {
        assert!(fails(&Exam { asked, ..exam.clone() }).contains("rows of length 3"));
    }
    assert!(fails(&Exam { rows: vec![], asked: vec![], length: 3 }).contains("rows of length 3"));
    assert!(tempered(model.sites(), &[0.1], 3).unwrap_err().to_string().contains("2 layers"));
    assert!(fit(&model.decoder, &[], &[0.], 1).is_err() && fit(&model.decoder, &[exam], &[f64::NAN], 1).is_err());
}

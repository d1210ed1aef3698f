//! The certificate of every golden model passes, against transformers' activations too; and each wrong model is found out.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use common::*;
use endoscope_models::certificate::{Assertion, Certificate, Reference, Verdict, certify, sample_prompts};
use endoscope_models::{Family, Model};

fn certificate(model: &Model, reference: Option<&Reference>) -> Certificate {
    certify(model, &sample_prompts(model), reference, &mut |_, _| {}).unwrap()
}

fn failures(certificate: &Certificate) -> String {
    let failed = certificate.failed();
    failed
        .map(|check| {
            format!(
                "{:?}: {:?} > {:e} at {:?}, {:?}\n",
                check.name, check.worst, check.tolerance, check.site, check.notes
            )
        })
        .collect()
}

/// The largest golden of a model.
fn longest_golden(directory: &std::path::Path) -> std::path::PathBuf {
    let goldens = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let goldens = goldens.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("seq"));
    goldens.max_by_key(|path| path.metadata().unwrap().len()).unwrap()
}

#[test]
fn every_golden_model_is_certified() {
    let mut families = std::collections::BTreeSet::new();
    let mut worst: std::collections::BTreeMap<Assertion, (f64, String)> = std::collections::BTreeMap::new();
    for directory in golden_models() {
        let model = Model::open(&directory).unwrap();
        let reference = Reference::read(&longest_golden(&directory)).unwrap();
        let certificate = certificate(&model, Some(&reference));
        let name = directory.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(certificate.verdict(), Verdict::Passed, "{name}\n{}", failures(&certificate));
        assert_eq!(certificate.checks.len(), Assertion::ALL.len());
        for check in &certificate.checks {
            let figure = check.worst.unwrap_or(0.);
            if worst.get(&check.name).is_none_or(|(before, _)| figure > *before) {
                worst.insert(check.name, (figure, name.clone()));
            }
        }
        families.insert(model.family.model_type());
    }
    for (assertion, (figure, model)) in worst {
        println!("{assertion:?}: at most {figure:e} ({model}), {:e} allowed", assertion.tolerance());
    }
    assert_eq!(families.len(), Family::ALL.len());
}

#[test]
fn the_real_models_are_certified() {
    let organism = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../organisms/induction");
    for path in [Some(organism), shared_model("stories260k")].into_iter().flatten() {
        let model = Model::open(&path).unwrap();
        let certificate = certificate(&model, None);
        assert_eq!(certificate.verdict(), Verdict::Passed, "{}\n{}", path.display(), failures(&certificate));
        for assertion in [Assertion::RoundTrip, Assertion::BeginningOfSequence, Assertion::Vocabulary] {
            let check = certificate.check(assertion).unwrap();
            assert_eq!(check.verdict, Verdict::Passed, "{}: {check:?}", path.display());
        }
        println!("{certificate:?}");
    }
}

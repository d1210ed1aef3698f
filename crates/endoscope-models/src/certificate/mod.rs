//! The certificate of a model: everything about it that can be checked, checked.
//!
//! The forward pass says what every activation is; here each is computed again from those before it, in f64 and by other
//! code (`invariants.rs`). Ways to run the same tokens must agree (`agreement.rs`), the tokenizer must give back what it was
//! given (`text.rs`), and, where somebody else's activations are at hand, every site is compared with them (`reference.rs`).
//!
//! ```no_run
//! use endoscope_models::{Model, certificate::{Against, Verdict, certify, sample_prompts}};
//!
//! let model = Model::open("path/to/model")?;
//! let certificate = certify(&model, &sample_prompts(&model), Against::Nothing, &mut |_, _| {})?;
//! assert_eq!(certificate.verdict(), Verdict::Passed);
//! # Ok::<(), endoscope_models::Error>(())
//! ```

mod agreement;
mod arithmetic;
mod assertion;
mod invariants;
mod ledger;
mod prompts;
mod reference;
#[cfg(test)]
mod tests;
mod text;

use endoscope_net::{Inputs, Network};
use serde::Serialize;

pub use self::assertion::Assertion;
pub use self::prompts::sample_prompts;
pub use self::reference::Reference;

use self::ledger::Ledger;
use crate::decoder::capture_everything;
use crate::error::Result;
use crate::model::Model;

/// What was checked of a model, and what came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Certificate {
    /// Every check, in the order of [`Assertion::ALL`].
    pub checks: Vec<Check>,
    /// The token ids of what was run.
    pub prompts: Vec<Vec<u32>>,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Check {
    /// What it is called.
    pub name: Assertion,
    /// What it asserts.
    pub asserts: &'static str,
    /// Whether that holds.
    pub verdict: Verdict,
    /// The largest figure: what kind it is, `asserts` says.
    pub worst: Option<f64>,
    /// The largest figure that is allowed there.
    pub tolerance: f64,
    /// The site where it is largest.
    pub site: Option<String>,
    /// The prompt with which it is largest.
    pub prompt: Option<usize>,
    /// How many comparisons were made.
    pub comparisons: usize,
    /// What else is to be said: why it failed, why it does not apply, what was left out.
    pub notes: Vec<String>,
}

/// What comes of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// What it asserts holds.
    Passed,
    /// It does not.
    Failed,
    /// There is nothing to check.
    NotApplicable,
}

/// With whose activations ours are compared.
#[derive(Debug, Clone, Copy)]
pub enum Against<'a> {
    /// Nobody's.
    Nothing,
    /// These.
    Reference(&'a Reference),
    /// Those that were asked for cannot be had, for this reason: the check fails.
    Missing(&'a str),
}

impl Certificate {
    /// Whether every check that applies has passed.
    pub fn verdict(&self) -> Verdict {
        match self.failed().next() {
            Some(_) => Verdict::Failed,
            None => Verdict::Passed,
        }
    }

    /// The checks that have failed.
    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.verdict == Verdict::Failed)
    }

    /// One check.
    pub fn check(&self, name: Assertion) -> Option<&Check> {
        self.checks.iter().find(|check| check.name == name)
    }
}

/// Checks `model` on `prompts`, and against somebody else's activations. `watch` hears how many of how many steps are done.
///
/// Every site of one prompt at a time is held in memory. A prompt that cannot be run is an error; whatever the model does
/// wrong is a check that failed.
pub fn certify(
    model: &Model,
    prompts: &[Vec<u32>],
    against: Against<'_>,
    watch: &mut dyn FnMut(usize, usize),
) -> Result<Certificate> {
    let rows = match against {
        Against::Reference(reference) => reference.rows(),
        Against::Nothing | Against::Missing(_) => 0,
    };
    let steps = 2 * prompts.len() + rows + 2;
    let mut done = 0;
    let mut step = || {
        done += 1;
        watch(done, steps);
    };
    let mut ledger = Ledger::default();
    weights(model, &mut ledger);
    text::check(model, &mut ledger)?;
    step();
    for (number, prompt) in prompts.iter().enumerate() {
        ledger.prompt = Some(number);
        let run = model.decoder.run(&Inputs::tokens(vec![prompt.clone()])?, &capture_everything())?;
        invariants::check(model.spec(), &model.decoder.weights, prompt, &run.captured, &mut ledger)?;
        step();
        agreement::of_one(&model.decoder, prompt, &run, &mut ledger)?;
        step();
    }
    ledger.prompt = None;
    agreement::of_many(&model.decoder, prompts, &mut ledger)?;
    step();
    match against {
        Against::Reference(reference) => reference.compare(&model.decoder, &mut ledger, &mut step)?,
        Against::Nothing => ledger.note(Assertion::Reference, "none was asked for".into()),
        Against::Missing(reason) => ledger.fail(Assertion::Reference, format!("not compared: {reason}")),
    }
    Ok(Certificate { checks: ledger.finish(), prompts: prompts.to_vec() })
}

/// Opening the model has refused what does not fit; here it is counted.
fn weights(model: &Model, ledger: &mut Ledger) {
    let inventory = &model.inventory;
    ledger.measure(Assertion::Weights, "", inventory.repeated.len() as f64);
    let files = model.files.iter().filter(|(role, _)| *role == "weights").count();
    ledger.note(Assertion::Weights, format!("{} tensors of {files} files read", inventory.read));
    if !inventory.repeated.is_empty() {
        ledger.note(Assertion::Weights, format!("read more than once: {}", inventory.repeated.join(", ")));
    }
    if !inventory.ignored.is_empty() {
        ledger.note(Assertion::Weights, format!("known to be no part of it: {}", inventory.ignored.join(", ")));
    }
}

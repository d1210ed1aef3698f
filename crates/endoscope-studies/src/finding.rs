//! Findings: a claim with its lines, drawn before anything is measured, and the verdict that the figures then give.
//!
//! Nobody writes a verdict: [`Test::judge`] is the only way to a [`Finding`], and it computes it.

use endoscope_causal::statistics::{Seeds, seeds};
use endoscope_report::{Claim, Measured, Verdict};
use serde::Serialize;

use crate::error::{Error, Result};

/// The share of intervals over seeds that should hold the true mean.
pub const CONFIDENCE: f64 = 0.95;
/// How few seeds say nothing.
pub const FEWEST_SEEDS: usize = 3;

/// A side of a number.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// This much or more.
    AtLeast(f64),
    /// This much or less.
    AtMost(f64),
}

impl Line {
    /// Whether a measured mean lies on this side.
    fn side(self, measured: &Seeds) -> Side {
        let (mean, interval) = match self {
            Self::AtLeast(line) => (measured.mean >= line, measured.low >= line),
            Self::AtMost(line) => (measured.mean <= line, measured.high <= line),
        };
        match (mean, interval) {
            (true, true) => Side::Surely,
            (true, false) => Side::Perhaps,
            (false, _) => Side::No,
        }
    }
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtLeast(line) => write!(f, "at least {line}"),
            Self::AtMost(line) => write!(f, "at most {line}"),
        }
    }
}

/// Whether a measured mean lies on a side of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// Its whole interval does.
    Surely,
    /// It does, its interval reaches over.
    Perhaps,
    /// It does not.
    No,
}

/// How a claim is tested: what the effect must reach, and where the control must stay.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Test {
    /// The claim, as a sentence, as it is tested here.
    pub claim: String,
    /// The unit of both figures, for example `of accuracy`.
    pub unit: String,
    /// Where the effect must lie.
    pub effect: Line,
    /// What is measured for the control: by the same code, with what causes the effect removed.
    pub control: String,
    /// Where the control must lie, which is the other side.
    pub absent: Line,
}

/// A claim judged.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    test: Test,
    effects: Vec<f64>,
    controls: Vec<f64>,
    effect: Seeds,
    control: Seeds,
    paper: Option<String>,
    verdict: Verdict,
}

impl Test {
    /// The verdict of figures measured with several seeds, one each: of the effect, and of its control.
    ///
    /// *Shown* if the interval of the mean effect lies behind its line and the control's behind its own; *partly* if the means do but
    /// an interval reaches over; *not shown* otherwise. Refused: fewer than 3 seeds, figures that are not finite, and lines that one
    /// number could satisfy both, because then the control cannot fail.
    pub fn judge(self, effects: &[f64], controls: &[f64]) -> Result<Finding> {
        let fail = |reason: String| Err(Error::Finding { statement: self.claim.clone(), reason });
        let apart = match (self.effect, self.absent) {
            (Line::AtLeast(effect), Line::AtMost(absent)) => absent < effect,
            (Line::AtMost(effect), Line::AtLeast(absent)) => effect < absent,
            _ => false,
        };
        if !apart {
            let (effect, absent) = (self.effect, self.absent);
            return fail(format!(
                "the effect must be {effect} and the control {absent}, so one number could be both and the control could not fail"
            ));
        }
        if self.control.trim().is_empty() {
            return fail("it has no control; say what is measured where the effect must be absent".into());
        }
        if effects.len() != controls.len() || effects.len() < FEWEST_SEEDS {
            let (effects, controls) = (effects.len(), controls.len());
            return fail(format!(
                "it has {effects} figures of the effect and {controls} of the control; one of each is needed for each of at least \
                 {FEWEST_SEEDS} seeds"
            ));
        }
        let (effect, control) = (seeds(effects, CONFIDENCE)?, seeds(controls, CONFIDENCE)?);
        let verdict = match (self.effect.side(&effect), self.absent.side(&control)) {
            (Side::No, _) | (_, Side::No) => Verdict::NotShown,
            (Side::Surely, Side::Surely) => Verdict::Shown,
            _ => Verdict::Partly,
        };
        let (effects, controls) = (effects.to_vec(), controls.to_vec());
        Ok(Finding { test: self, effects, controls, effect, control, paper: None, verdict })
    }
}

impl Finding {
    /// Beside what the paper measured for this claim in its own setting: only what was read in the paper or in its authors' code.
    pub fn paper(self, figure: impl Into<String>) -> Self {
        Self { paper: Some(figure.into()), ..self }
    }

    /// How it was tested.
    pub fn test(&self) -> &Test {
        &self.test
    }

    /// The effect over seeds.
    pub fn effect(&self) -> Seeds {
        self.effect
    }

    /// The control over seeds.
    pub fn control(&self) -> Seeds {
        self.control
    }

    /// What follows.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// The figures of the effect and of the control, one a seed.
    pub(crate) fn figures(&self) -> [&[f64]; 2] {
        [&self.effects, &self.controls]
    }

    /// The same as a report says it.
    pub fn claim(&self) -> Result<Claim> {
        let number = |of: Seeds| Measured::Number {
            value: of.mean,
            unit: self.test.unit.clone(),
            interval: Some([of.low, of.high]),
        };
        let control = format!("{}: {}", self.test.control, number(self.control));
        let claim = Claim::new(self.test.claim.clone(), number(self.effect), control, self.verdict)?;
        Ok(claim.beside(self.paper.clone()))
    }

    /// The rule by which it was judged, in words.
    pub fn rule(&self) -> String {
        let Test { claim, effect, control, absent, .. } = &self.test;
        format!("{claim} The effect must be {effect}; the control ({control}) must be {absent}.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(effect: Line, absent: Line) -> Test {
        let text = String::from;
        Test { claim: text("Heads copy."), unit: text("logits"), effect, control: text("random heads"), absent }
    }

    fn verdict(effects: &[f64], controls: &[f64]) -> Verdict {
        test(Line::AtLeast(0.3), Line::AtMost(0.1)).judge(effects, controls).unwrap().verdict()
    }

    #[test]
    fn the_verdict_follows_from_the_figures() {
        let (strong, weak) = ([0.5, 0.51, 0.52], [0.01, 0.02, 0.03]);
        assert_eq!(verdict(&strong, &weak), Verdict::Shown);
        assert_eq!(
            verdict(&[0.9, 0.05, 0.5], &weak),
            Verdict::Partly,
            "the interval of the effect reaches over its line"
        );
        assert_eq!(verdict(&strong, &[0.0, 0.2, 0.0]), Verdict::Partly, "the interval of the control does");
        assert_eq!(verdict(&[0.2, 0.21, 0.2], &weak), Verdict::NotShown, "there is no effect");
        assert_eq!(verdict(&strong, &strong), Verdict::NotShown, "the control has it too");
        let small = test(Line::AtMost(0.1), Line::AtLeast(0.3));
        assert_eq!(small.clone().judge(&weak, &strong).unwrap().verdict(), Verdict::Shown);
        assert_eq!(small.judge(&strong, &weak).unwrap().verdict(), Verdict::NotShown);
    }

    #[test]
    fn a_claim_says_figures_intervals_and_control() {
        let finding =
            test(Line::AtLeast(0.3), Line::AtMost(0.1)).judge(&[0.5, 0.51, 0.52], &[0.01, 0.02, 0.03]).unwrap();
        let claim = finding.claim().unwrap();
        assert_eq!(claim.paper, None);
        let beside = finding.clone().paper("over 20 points");
        assert_eq!(
            (beside.verdict(), beside.claim().unwrap().paper.as_deref()),
            (Verdict::Shown, Some("over 20 points"))
        );
        assert!(claim.measured.to_string().starts_with("0.510 logits ("), "{}", claim.measured);
        assert!(claim.control.as_str().starts_with("random heads: 0.02"), "{}", claim.control.as_str());
        assert!(finding.rule().contains("at least 0.3") && finding.rule().contains("at most 0.1"));
    }

    #[test]
    fn what_decides_nothing_is_refused() {
        let check = |test: Test, effects: &[f64], controls: &[f64], part: &str| {
            let error = test.judge(effects, controls).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        let three = [1., 1., 1.];
        let fine = test(Line::AtLeast(0.3), Line::AtMost(0.1));
        for (effect, absent) in [
            (Line::AtLeast(0.3), Line::AtMost(0.3)),
            (Line::AtLeast(0.3), Line::AtMost(0.9)),
            (Line::AtLeast(0.3), Line::AtLeast(0.1)),
            (Line::AtMost(0.3), Line::AtLeast(0.2)),
            (Line::AtLeast(f64::NAN), Line::AtMost(0.1)),
        ] {
            check(test(effect, absent), &three, &three, "could not fail");
        }
        check(fine.clone(), &[1., 1.], &[0., 0.], "at least 3 seeds");
        check(fine.clone(), &three, &[0.; 4], "3 figures of the effect and 4 of the control");
        check(Test { control: " ".into(), ..fine.clone() }, &three, &three, "no control");
        check(fine, &[1., f64::NAN, 1.], &three, "NaN");
    }
}

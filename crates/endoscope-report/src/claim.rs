//! Claims: a sentence, the figure measured for it, the control that must fail, and the verdict.

use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, Result, number::Digits};

/// One claim of a paper or of a run, with the figure measured here.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// The claim, as a sentence.
    pub statement: String,
    /// What was measured for it here.
    pub measured: Measured,
    /// What was measured where the effect must be absent.
    pub control: Control,
    /// What the paper measured, in its own setting, if the claim is a paper's and its figure is known first-hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paper: Option<String>,
    /// What follows.
    pub verdict: Verdict,
}

impl Claim {
    /// A claim; refused without a control.
    pub fn new(
        statement: impl Into<String>,
        measured: Measured,
        control: impl Into<String>,
        verdict: Verdict,
    ) -> Result<Claim> {
        Ok(Claim { statement: statement.into(), measured, control: Control::new(control)?, paper: None, verdict })
    }

    /// Beside the figure that its paper has.
    pub fn beside(self, paper: Option<String>) -> Claim {
        Claim { paper, ..self }
    }
}

/// A measured figure: a number with its unit, or a sentence where one number would not do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Measured {
    /// A number.
    Number {
        /// The number; one that is not finite is `null` in JSON and read back as NaN.
        #[serde(deserialize_with = "null_is_nan")]
        value: f64,
        /// Its unit; empty for a plain ratio.
        unit: String,
        /// The ends of its interval of uncertainty, if one was computed.
        interval: Option<[f64; 2]>,
    },
    /// A sentence.
    Text(String),
}

impl Measured {
    /// A number with its unit and no interval.
    pub fn number(value: f64, unit: impl Into<String>) -> Measured {
        Measured::Number { value, unit: unit.into(), interval: None }
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (value, unit, interval) = match self {
            Measured::Text(text) => return f.write_str(text),
            Measured::Number { value, unit, interval } => (*value, unit, interval),
        };
        let digits = Digits::of([Some(value)].into_iter().chain(interval.iter().flatten().copied().map(Some)), 4);
        f.write_str(&digits.format(value))?;
        if !unit.is_empty() {
            write!(f, " {unit}")?;
        }
        if let Some([low, high]) = interval {
            write!(f, " ({} to {})", digits.format(*low), digits.format(*high))?;
        }
        Ok(())
    }
}

fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// What was measured where a claim's effect must be absent; never blank.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Control(String);

impl Control {
    /// A control in words; blank text is refused.
    pub fn new(text: impl Into<String>) -> Result<Control> {
        let text = text.into();
        if text.trim().is_empty() { Err(Error::NoControl) } else { Ok(Control(text)) }
    }

    /// The words.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Control {
    type Error = Error;
    fn try_from(text: String) -> Result<Control> {
        Control::new(text)
    }
}

impl From<Control> for String {
    fn from(control: Control) -> String {
        control.0
    }
}

/// What the measurement and its control say of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The effect is there and the control lacks it.
    Shown,
    /// Part of the claim holds here.
    Partly,
    /// The effect is absent, or the control has it too.
    NotShown,
    /// This model is too small to tell.
    NeedsLargerModel,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Verdict::Shown => "shown",
            Verdict::Partly => "partly shown",
            Verdict::NotShown => "not shown",
            Verdict::NeedsLargerModel => "needs a larger model",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_without_a_control_cannot_be_built_or_read() {
        let built = Claim::new("heads copy", Measured::number(0.9, "logits"), " \n", Verdict::Shown);
        assert!(matches!(built, Err(Error::NoControl)));
        let blank = r#"{"statement":"s","measured":"m","control":"","verdict":"shown"}"#;
        assert!(serde_json::from_str::<Claim>(blank).unwrap_err().to_string().contains("no control"));
        let absent = r#"{"statement":"s","measured":"m","verdict":"shown"}"#;
        assert!(serde_json::from_str::<Claim>(absent).is_err());
    }

    #[test]
    fn figures_read_well() {
        let interval = Some([0.7912, 0.8731]);
        let measured = Measured::Number { value: 0.8314, unit: "of the logit difference".into(), interval };
        assert_eq!(measured.to_string(), "0.831 of the logit difference (0.791 to 0.873)");
        assert_eq!(Measured::number(12., "").to_string(), "12");
    }

    #[test]
    fn a_figure_that_is_not_finite_survives_json() {
        let json = serde_json::to_string(&Measured::number(f64::INFINITY, "x")).unwrap();
        assert_eq!(json, r#"{"value":null,"unit":"x","interval":null}"#);
        assert!(matches!(serde_json::from_str(&json).unwrap(), Measured::Number { value, .. } if value.is_nan()));
    }
}

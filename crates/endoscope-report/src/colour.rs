//! From a number to a colour.

use serde::{Deserialize, Serialize};

/// How a heat map turns numbers into colours.
///
/// Limits that are given hold for the table shown first; for alternatives, and where none are given, they are
/// derived from all values of the table shown, so that the panels of one table can be compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ColourScale {
    /// Blue below zero, white at zero, red above.
    Diverging {
        /// The absolute value that gets the full colour; the largest of the table if not given.
        limit: Option<f64>,
    },
    /// From white to one full colour.
    Sequential {
        /// The values that get white and the full colour; the least of the table (or zero) and its largest if not given.
        limits: Option<[f64; 2]>,
    },
}

impl ColourScale {
    /// Diverging, its limit derived from the table.
    pub const DIVERGING: ColourScale = ColourScale::Diverging { limit: None };
    /// Sequential, its limits derived from the table.
    pub const SEQUENTIAL: ColourScale = ColourScale::Sequential { limits: None };
    /// Sequential from 0 to 1: probabilities, attention.
    pub const UNIT: ColourScale = ColourScale::Sequential { limits: Some([0., 1.]) };

    /// The values at the ends of the scale: given and sensible, or derived from `values`.
    pub fn limits(&self, values: &[Option<f64>]) -> [f64; 2] {
        let present = || values.iter().flatten().copied();
        match *self {
            ColourScale::Diverging { limit: Some(limit) } if limit.is_finite() && limit > 0. => [-limit, limit],
            ColourScale::Diverging { .. } => {
                let largest = present().fold(0., |largest: f64, value| largest.max(value.abs()));
                let limit = if largest > 0. { largest } else { 1. };
                [-limit, limit]
            }
            ColourScale::Sequential { limits: Some([low, high]) }
                if low.is_finite() && high.is_finite() && low < high =>
            {
                [low, high]
            }
            ColourScale::Sequential { .. } => {
                let low = present().fold(0., f64::min);
                let high = present().fold(low, f64::max);
                [low, if high > low { high } else { low + 1. }]
            }
        }
    }

    /// How full the colour of `value` is: -1 to 1 on a diverging scale, 0 to 1 on a sequential one.
    pub fn intensity(&self, value: f64, [low, high]: [f64; 2]) -> f64 {
        match self {
            ColourScale::Diverging { .. } => (value / high).clamp(-1., 1.),
            ColourScale::Sequential { .. } => ((value - low) / (high - low)).clamp(0., 1.),
        }
    }

    /// The colour of an intensity, as red, green and blue.
    pub(crate) fn rgb(&self, intensity: f64) -> Rgb {
        let stops = match self {
            ColourScale::Diverging { .. } if intensity < 0. => BLUES,
            ColourScale::Diverging { .. } => REDS,
            ColourScale::Sequential { .. } => TEALS,
        };
        let at = intensity.abs().min(1.) * 2.;
        let (from, to, part) = if at < 1. { (stops[0], stops[1], at) } else { (stops[1], stops[2], at - 1.) };
        let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * part).round() as u8;
        Rgb(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
    }
}

// The ends and middles of ColorBrewer's RdBu, which readers with any colour vision can tell apart.
const BLUES: [Rgb; 3] = [Rgb(0xf7, 0xf7, 0xf7), Rgb(0x92, 0xc5, 0xde), Rgb(0x21, 0x66, 0xac)];
const REDS: [Rgb; 3] = [Rgb(0xf7, 0xf7, 0xf7), Rgb(0xf4, 0xa5, 0x82), Rgb(0xb2, 0x18, 0x2b)];
const TEALS: [Rgb; 3] = [Rgb(0xf7, 0xf7, 0xf7), Rgb(0x7f, 0xc4, 0xc0), Rgb(0x0b, 0x5f, 0x6b)];

/// Red, green and blue, 0 to 255 each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rgb(pub u8, pub u8, pub u8);

impl Rgb {
    /// Black or white, whichever is easier to read on this colour (by the WCAG contrast ratio).
    pub(crate) fn ink(self) -> Rgb {
        let linear = |channel: u8| {
            let c = f64::from(channel) / 255.;
            if c <= 0.04045 { c / 12.92 } else { ((c + 0.055) / 1.055).powf(2.4) }
        };
        let luminance = 0.2126 * linear(self.0) + 0.7152 * linear(self.1) + 0.0722 * linear(self.2);
        // (1.05)/(l + 0.05) < (l + 0.05)/(0.05) exactly when l > 0.179
        if luminance > 0.179 { Rgb(0, 0, 0) } else { Rgb(255, 255, 255) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_symmetric_and_never_empty() {
        let values = [Some(-3.), None, Some(2.)];
        assert_eq!(ColourScale::DIVERGING.limits(&values), [-3., 3.]);
        assert_eq!(ColourScale::SEQUENTIAL.limits(&values), [-3., 2.]);
        assert_eq!(ColourScale::UNIT.limits(&values), [0., 1.]);
        for scale in [ColourScale::DIVERGING, ColourScale::SEQUENTIAL] {
            for values in [&[][..], &[Some(0.)], &[None]] {
                let [low, high] = scale.limits(values);
                assert!(low < high);
            }
        }
        let nonsense = ColourScale::Diverging { limit: Some(f64::NAN) };
        assert_eq!(nonsense.limits(&values), [-3., 3.]);
    }

    #[test]
    fn colours_run_from_blue_through_white_to_red() {
        let scale = ColourScale::DIVERGING;
        let colour = |value| scale.rgb(scale.intensity(value, [-2., 2.]));
        assert_eq!(colour(-9.), Rgb(0x21, 0x66, 0xac));
        assert_eq!(colour(0.), Rgb(0xf7, 0xf7, 0xf7));
        assert_eq!(colour(1.), Rgb(0xf4, 0xa5, 0x82));
        assert_eq!(colour(2.), Rgb(0xb2, 0x18, 0x2b));
        assert_eq!(colour(2.).ink(), Rgb(255, 255, 255));
        assert_eq!(colour(0.).ink(), Rgb(0, 0, 0));
    }
}

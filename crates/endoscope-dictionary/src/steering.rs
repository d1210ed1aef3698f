//! Features as edits of a plan.

use std::sync::Arc;

use candle_core::Tensor;
use endoscope_net::{FeatureEdit, Features, Site};

use crate::dictionary::Dictionary;
use crate::error::{Error, Result};
use crate::matrix::Matrix;

impl Features for Dictionary {
    fn width(&self) -> usize {
        self.d_in()
    }

    fn check(&self, edit: &FeatureEdit) -> std::result::Result<(), String> {
        if !self.is_autoencoder() {
            return Err("its dictionary writes another site than it reads; only autoencoders are edited through".into());
        }
        for change in &edit.change {
            self.check_feature(change.feature).map_err(|error| error.to_string())?;
            if !change.to.of(1.).is_finite() {
                return Err(format!("the new activation of feature {} is not finite", change.feature));
            }
        }
        Ok(())
    }

    fn edited(&self, vectors: &Tensor, edit: &FeatureEdit) -> endoscope_net::Result<Tensor> {
        let inputs = |error: Error| endoscope_net::Error::Inputs(error.to_string());
        let x = Matrix::from_tensor(vectors).map_err(inputs)?;
        let codes = self.encode(&x).map_err(inputs)?;
        let mut out = if edit.without_error { self.decode(&codes) } else { x };
        for row in 0..out.rows() {
            let (columns, values) = codes.latents.row(row);
            // Several changes of one feature follow each other.
            let mut changed: Vec<(usize, f64, f64)> = Vec::new();
            for change in &edit.change {
                let at = match changed.iter().position(|(feature, ..)| *feature == change.feature) {
                    Some(at) => at,
                    None => {
                        let found = columns.binary_search(&(change.feature as u32));
                        let before = found.map_or(0., |at| f64::from(values[at]));
                        changed.push((change.feature, before, before));
                        changed.len() - 1
                    }
                };
                changed[at].2 = change.to.of(changed[at].2);
            }
            for (feature, before, after) in changed {
                let by = (after - before) as f32;
                if by == 0. {
                    continue;
                }
                let by = by * codes.scale_of_row(row);
                let direction = self.direction(feature).map_err(inputs)?;
                out.row_mut(row).iter_mut().zip(direction).for_each(|(x, d)| *x += by * d);
            }
        }
        out.tensor().map_err(inputs)
    }
}

impl Dictionary {
    /// An edit of this dictionary's features, ready to be run: what [`endoscope_net::Change::Features`] holds.
    pub fn edit(self: &Arc<Self>, change: Vec<endoscope_net::FeatureChange>) -> FeatureEdit {
        FeatureEdit { dictionary: "dictionary".into(), change, without_error: false, loaded: Some(self.clone()) }
    }

    /// An edit that puts what the dictionary reconstructs in the place of what it reads.
    pub fn splice(self: &Arc<Self>) -> FeatureEdit {
        FeatureEdit { without_error: true, ..self.edit(Vec::new()) }
    }

    /// Errors if the vectors of `site` are not as wide as what the dictionary reads.
    pub fn check_site(&self, site: &Site) -> Result<()> {
        let width = site_width(site);
        match width == self.d_in() {
            true => Ok(()),
            false => Err(Error::Activations(format!(
                "{} has {width} dimensions, the dictionary reads {}",
                site.name,
                self.d_in()
            ))),
        }
    }
}

/// How many dimensions the vectors of a site have; the heads of `hook_z` are one vector.
pub fn site_width(site: &Site) -> usize {
    use endoscope_net::{AxisName, Size};
    let fixed = site.axes.iter().filter(|axis| !matches!(axis.name, AxisName::Batch | AxisName::Position));
    fixed.map(|axis| if let Size::Fixed(size) = axis.size { size } else { 1 }).product()
}

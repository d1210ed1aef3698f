//! One activation from those of the rows of a batch that differ in length.

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::network::{Captured, Padding, Probes, Run, TokenRows, Work};
use crate::prepared::Prepared;
use crate::selection::Index;
use crate::site::{AxisName, Site, Size};

/// How the pieces of an activation become one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Joining {
    padding: Padding,
    /// The dimensions along which shorter pieces are filled up.
    padded: Vec<usize>,
    /// The pieces' rows in the order that a selection asks for.
    order: Option<Vec<u32>>,
}

impl Joining {
    fn of_site(site: &Site, batch: &Index, tokens: &TokenRows) -> Self {
        let grows = |axis: &crate::Axis| axis.size == Size::Input && axis.name != AxisName::Batch;
        let padded = (0..site.axes.len()).filter(|&dimension| grows(&site.axes[dimension])).collect();
        Self { padding: tokens.padding(), padded, order: order(batch, tokens.rows()) }
    }

    /// The pieces, filled with zeros to the size of the largest, one after the other along the batch.
    pub fn join(&self, mut pieces: Vec<Tensor>) -> Result<Tensor> {
        if pieces.len() == 1 && self.order.is_none() {
            return pieces.pop().ok_or_else(|| Error::Network("a batch has no rows".into()));
        }
        // Rows that are not selected; if none is, an empty piece says the shape.
        let chosen = |piece: &Tensor| piece.dims().first().is_some_and(|&rows| rows > 0);
        match pieces.iter().any(chosen) {
            true => pieces.retain(chosen),
            false => pieces.truncate(1),
        }
        for &dimension in &self.padded {
            let longest = pieces.iter().map(|piece| piece.dims()[dimension]).max().unwrap_or(0);
            for piece in &mut pieces {
                let missing = longest - piece.dims()[dimension];
                if missing > 0 {
                    *piece = match self.padding {
                        Padding::Left => piece.pad_with_zeros(dimension, missing, 0)?,
                        Padding::Right => piece.pad_with_zeros(dimension, 0, missing)?,
                    };
                }
            }
        }
        let joined = Tensor::cat(&pieces, 0)?.contiguous()?;
        match &self.order {
            None => Ok(joined),
            Some(order) => Ok(joined.index_select(&Tensor::new(order.as_slice(), joined.device())?, 0)?),
        }
    }
}

/// Where each row that a selection of the batch lists lies among those listed in the order of the batch.
fn order(batch: &Index, rows: usize) -> Option<Vec<u32>> {
    let Index::List(list) = batch else { return None };
    let absolute: Vec<i64> = list.iter().map(|&at| if at < 0 { at + rows as i64 } else { at }).collect();
    let rank = |at: &i64| absolute.iter().filter(|other| *other < at).count() as u32;
    Some(absolute.iter().map(rank).collect())
}

impl Run {
    /// The run of a batch from the runs of its rows under one plan.
    pub fn of_rows(tokens: &TokenRows, plan: &Prepared, rows: Vec<Run>) -> Result<Self> {
        let outputs = Joining { padding: tokens.padding(), padded: vec![1], order: None };
        let mut run = Run {
            outputs: outputs.join(rows.iter().map(|row| row.outputs.clone()).collect())?,
            captured: Captured::default(),
            work: Work::default(),
            probes: Vec::new(),
        };
        let mut probes: Vec<Probes> = Vec::new();
        let mut captured = Vec::with_capacity(rows.len());
        for row in rows {
            run.work += row.work;
            captured.push(row.captured);
            probes.extend(row.probes);
        }
        for id in plan.captured_sites() {
            let site = plan.sites.get(id);
            let Some(capture) = plan.actions.get(&id).and_then(|actions| actions.capture.as_ref()) else { continue };
            let joining = Joining::of_site(site, capture.select.on(AxisName::Batch), tokens);
            let pieces = captured.iter().map(|row| row.get(&site.name).cloned());
            run.captured.insert(site.name.clone(), joining.join(pieces.collect::<Result<_>>()?)?);
            let own = probes.extract_if(.., |probes| probes.site == site.name);
            let pieces: Vec<_> = own.flat_map(|probes| probes.pieces).collect();
            if !pieces.is_empty() {
                run.probes.push(Probes { site: site.name.clone(), pieces, joining });
            }
        }
        Ok(run)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn piece(numbers: &[f32]) -> Tensor {
        Tensor::from_slice(numbers, (1, numbers.len()), &Device::Cpu).unwrap()
    }

    #[test]
    fn shorter_pieces_are_filled_at_their_side() {
        let pieces = || vec![piece(&[1.]), piece(&[2., 3., 4.])];
        for (padding, expected) in
            [(Padding::Right, [1., 0., 0., 2., 3., 4.]), (Padding::Left, [0., 0., 1., 2., 3., 4.])]
        {
            let joined = Joining { padding, padded: vec![1], order: None }.join(pieces()).unwrap();
            assert_eq!(joined.flatten_all().unwrap().to_vec1::<f32>().unwrap(), expected);
        }
    }

    #[test]
    fn rows_come_in_the_order_of_the_selection() {
        let order = order(&Index::List(vec![-1, 0]), 3);
        let none = Tensor::zeros((0, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
        let joined = Joining { padding: Padding::Right, padded: vec![1], order }
            .join(vec![piece(&[5.]), none, piece(&[7.])])
            .unwrap();
        assert_eq!(joined.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [7., 5.]);
    }
}

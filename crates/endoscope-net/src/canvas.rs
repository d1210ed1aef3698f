//! Reading and writing chosen cells of a tensor.

use candle_core::{DType, Device, Tensor};

use crate::error::Result;
use crate::selection::Grid;

/// The chosen cells of `tensor`, in the shape of the selection.
pub(crate) fn gather(tensor: &Tensor, grid: &Grid) -> Result<Tensor> {
    if grid.is_empty() {
        return Ok(Tensor::zeros(grid.shape(), tensor.dtype(), tensor.device())?);
    }
    let mut cells = tensor.clone();
    for (dimension, axis) in grid.axes.iter().enumerate() {
        let Some(list) = axis else { continue };
        cells = match contiguous_run(list) {
            Some((start, length)) => cells.narrow(dimension, start, length)?,
            None => cells.contiguous()?.index_select(&indices(list, tensor.device())?, dimension)?,
        };
    }
    Ok(cells)
}

fn contiguous_run(list: &[usize]) -> Option<(usize, usize)> {
    let start = *list.first()?;
    list.iter().enumerate().all(|(i, &at)| at == start + i).then_some((start, list.len()))
}

fn indices(list: &[usize], device: &Device) -> Result<Tensor> {
    let list: Vec<u32> = list.iter().map(|&at| at as u32).collect();
    let count = list.len();
    Ok(Tensor::from_vec(list, count, device)?)
}

/// A tensor being edited.
pub(crate) enum Canvas {
    /// Keeps the graph for gradients, and works on every device and dtype.
    Composed(Tensor),
    /// One copy of the numbers, however many edits follow.
    Buffer { data: Vec<f32>, dims: Vec<usize> },
}

impl Canvas {
    /// A canvas that keeps gradients where `tensor` has them or `keep_graph` says that an edit does.
    pub fn new(tensor: Tensor, keep_graph: bool) -> Result<Self> {
        let plain = tensor.dtype() == DType::F32 && tensor.device().is_cpu();
        if keep_graph || tensor.track_op() || !plain {
            return Ok(Self::Composed(tensor));
        }
        Ok(Self::Buffer { data: tensor.flatten_all()?.to_vec1()?, dims: tensor.dims().to_vec() })
    }

    /// The chosen cells.
    pub fn read(&self, grid: &Grid) -> Result<Tensor> {
        match self {
            Self::Composed(tensor) => gather(tensor, grid),
            Self::Buffer { data, .. } => {
                let mut cells = Vec::new();
                grid.for_each_offset(|offset| cells.push(data[offset]));
                Ok(Tensor::from_vec(cells, grid.shape(), &Device::Cpu)?)
            }
        }
    }

    /// Writes `cells`, of the shape of the selection, over the chosen cells.
    pub fn write(&mut self, grid: &Grid, cells: Tensor) -> Result<()> {
        match self {
            Self::Composed(tensor) => *tensor = replace(tensor, grid, cells)?,
            Self::Buffer { data, .. } => {
                let cells = cells.flatten_all()?.to_vec1::<f32>()?;
                let mut next = cells.into_iter();
                grid.for_each_offset(|offset| {
                    if let Some(cell) = next.next() {
                        data[offset] = cell;
                    }
                });
            }
        }
        Ok(())
    }

    pub fn finish(self) -> Result<Tensor> {
        match self {
            Self::Composed(tensor) => Ok(tensor),
            Self::Buffer { data, dims } => Ok(Tensor::from_vec(data, dims, &Device::Cpu)?),
        }
    }
}

/// `tensor` with the chosen cells replaced, in operations that have gradients.
fn replace(tensor: &Tensor, grid: &Grid, cells: Tensor) -> Result<Tensor> {
    if grid.is_full() {
        return Ok(cells);
    }
    let device = tensor.device();
    // Spread the cells over the whole shape (what lands on cells not chosen is masked away) …
    let mut spread = cells;
    for (dimension, axis) in grid.axes.iter().enumerate() {
        let Some(list) = axis else { continue };
        let mut source = vec![0; grid.dims[dimension]];
        for (i, &at) in list.iter().enumerate() {
            source[at] = i;
        }
        spread = spread.contiguous()?.index_select(&indices(&source, device)?, dimension)?;
    }
    // … and choose between them and the old ones.
    let mut mask = vec![0u8; grid.dims.iter().product()];
    grid.for_each_offset(|offset| mask[offset] = 1);
    let mask = Tensor::from_vec(mask, grid.dims.as_slice(), device)?;
    Ok(mask.where_cond(&spread.contiguous()?, &tensor.contiguous()?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;
    use proptest::prelude::*;

    fn axis(size: usize) -> impl Strategy<Value = Option<Vec<usize>>> {
        prop_oneof![
            Just(None),
            proptest::sample::subsequence((0..size).collect::<Vec<_>>(), 1..=size).prop_shuffle().prop_map(Some)
        ]
    }

    proptest! {
        #[test]
        fn both_canvases_agree(a in axis(3), b in axis(4), c in axis(2)) {
            let grid = Grid { axes: vec![a, b, c], dims: vec![3, 4, 2] };
            let numbers = Tensor::arange(0f32, 24., &Device::Cpu).unwrap().reshape((3, 4, 2)).unwrap();
            let mut buffer = Canvas::new(numbers.clone(), false).unwrap();
            let mut composed = Canvas::new(numbers.clone(), true).unwrap();
            let kinds = (matches!(buffer, Canvas::Buffer { .. }), matches!(composed, Canvas::Composed(_)));
            prop_assert_eq!(kinds, (true, true));
            for canvas in [&mut buffer, &mut composed] {
                let cells = (canvas.read(&grid).unwrap() + 100.).unwrap();
                canvas.write(&grid, cells).unwrap();
            }
            let (buffer, composed) = (buffer.finish().unwrap(), composed.finish().unwrap());
            let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            prop_assert_eq!(flat(&buffer), flat(&composed));
            let mut expected = flat(&numbers);
            grid.for_each_offset(|offset| expected[offset] += 100.);
            prop_assert_eq!(flat(&buffer), expected);
        }
    }

    #[test]
    fn gradients_flow_through_what_was_kept_and_what_was_written() {
        let kept = Var::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu).unwrap();
        let written = Var::new(&[[10f32], [20.]], &Device::Cpu).unwrap();
        let grid = Grid { axes: vec![None, Some(vec![1])], dims: vec![2, 2] };
        let mut canvas = Canvas::new(kept.as_tensor().clone(), false).unwrap();
        canvas.write(&grid, written.as_tensor().clone()).unwrap();
        let gradients = canvas.finish().unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
        let of = |var: &Var| gradients.get(var).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(of(&kept), [[2., 0.], [6., 0.]]);
        assert_eq!(of(&written), [[20.], [40.]]);
    }
}

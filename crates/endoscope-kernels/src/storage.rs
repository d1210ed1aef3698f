//! Between candle's tensors and slices.

use candle_core::{CpuStorage, DType, Device, Layout, Result, Shape, Storage, Tensor, bail};

/// Whether the fused kernels compute it: f32 on the CPU. Everything else takes composed operations.
pub fn is_fast(x: &Tensor) -> bool {
    x.dtype() == DType::F32 && x.device().is_cpu()
}

/// The values of a contiguous f32 storage.
pub fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        (CpuStorage::F32(_), None) => {
            bail!("a kernel was handed a tensor of shape {:?} that is not contiguous", layout.shape())
        }
        _ => bail!("a kernel was handed {:?} instead of f32", candle_core::backend::BackendStorage::dtype(storage)),
    }
}

/// Calls `f` with the values of f32 tensors on the CPU, contiguous or not.
pub fn with_values<const N: usize, T>(tensors: [&Tensor; N], f: impl FnOnce([&[f32]; N]) -> T) -> Result<T> {
    let tensors = tensors.iter().map(|x| x.contiguous()).collect::<Result<Vec<_>>>()?;
    let locked: Vec<_> = tensors.iter().map(Tensor::storage_and_layout).collect();
    let mut slices = [&[][..]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&locked) {
        *slice = match &**storage {
            Storage::Cpu(storage) => values(storage, layout)?,
            _ => bail!("a CPU kernel was handed a tensor on another device"),
        };
    }
    Ok(f(slices))
}

/// A tensor on the CPU, outside of any gradient's graph.
pub fn tensor(values: Vec<f32>, shape: &Shape) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// What an operation's `cpu_fwd` returns.
pub fn output(values: Vec<f32>, shape: impl Into<Shape>) -> Result<(CpuStorage, Shape)> {
    Ok((CpuStorage::F32(values), shape.into()))
}

/// The length of the last axis.
pub fn width(shape: &Shape) -> Result<usize> {
    match shape.dims().last() {
        Some(&width) => Ok(width),
        None => bail!("a scalar has no last axis to work along"),
    }
}

/// Errors unless `vector` is as long as the last axis of `x`.
pub fn check_vector(what: &str, x: &Shape, vector: &Shape) -> Result<()> {
    match vector.dims() == [width(x)?] {
        true => Ok(()),
        false => bail!("{what} of shape {vector:?} does not fit the last axis of {x:?}"),
    }
}

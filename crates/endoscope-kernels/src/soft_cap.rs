//! A soft bound: `cap tanh(x / cap)`, as Gemma 2 puts on attention scores and logits (arXiv 2408.00118, section 2).

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};

use crate::simd::{Output, build, clamp, exp, vectorized};
use crate::storage::{is_fast, output, tensor, values, with_values};

/// `cap tanh(x / cap)`, elementwise; `cap` must be positive.
pub fn soft_cap(x: &Tensor, cap: f64) -> Result<Tensor> {
    if !(cap > 0. && cap.is_finite()) {
        bail!("a soft-cap of {cap} is not positive");
    }
    match is_fast(x) {
        true => x.contiguous()?.apply_op1(SoftCap { cap: cap as f32 }),
        false => (x / cap)?.tanh()? * cap,
    }
}

/// One value, within 3e-7 of `cap`'s size.
#[inline(always)]
pub(crate) fn capped(x: f32, cap: f32) -> f32 {
    cap * tanh(x / cap)
}

/// tanh(u) within 2e-7 of its value (Cephes's tanhf); NaN stays NaN.
#[inline(always)]
fn tanh(u: f32) -> f32 {
    const NEAR: f32 = 0.625;
    /// tanh is 1 in f32 beyond it.
    const FAR: f32 = 10.;
    let square = u * u;
    let p = -5.704_988_7e-3;
    let p = p * square + 2.063_909e-2;
    let p = p * square - 5.373_971_6e-2;
    let p = p * square + 1.333_144_2e-1;
    let p = p * square - 3.333_328e-1;
    let near = p * square * u + u;
    let size = clamp(u.abs(), 0., FAR);
    let far = 1. - 2. / (exp(2. * size) + 1.);
    let far = if u < 0. { -far } else { far };
    if u.abs() < NEAR { near } else { far }
}

vectorized! {
    fn forward<'a, 'o>(x: &'a [f32], cap: f32, y: Output<'o>) -> Output<'o> {
        let mut y = y;
        y.extend(x.iter().map(|&x| capped(x, cap)));
        y
    }
}

vectorized! {
    /// `dx = dy (1 - (y / cap)^2)`.
    fn backward<'a, 'o>(y: &'a [f32], dy: &'a [f32], cap: f32, dx: Output<'o>) -> Output<'o> {
        let mut dx = dx;
        dx.extend(y.iter().zip(dy).map(|(y, dy)| dy * (1. - (y / cap) * (y / cap))));
        dx
    }
}

struct SoftCap {
    cap: f32,
}

impl CustomOp1 for SoftCap {
    fn name(&self) -> &'static str {
        "soft_cap"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(storage, layout)?;
        let y = build(x.len(), 1, 1, |first, y| forward(&x[first..][..y.len()], self.cap, y));
        output(y, layout.shape())
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_values([y, dy], |[y, dy]| {
            build(y.len(), 1, 1, |first, dx| backward(&y[first..][..dx.len()], &dy[first..][..dx.len()], self.cap, dx))
        })?;
        tensor(dx, x.shape()).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_gradients, floats, random, same_bits_on_any_threads};
    use candle_core::Device;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn agrees_with_f64(x in -1e3f32..1e3, cap in 0.1f32..100.) {
            let exact = f64::from(cap) * (f64::from(x) / f64::from(cap)).tanh();
            let found = f64::from(capped(x, cap));
            prop_assert!((found - exact).abs() <= 5e-7 * exact.abs() + 1e-12, "{found} {exact}");
        }
    }

    #[test]
    fn infinities_nan_shapes_gradients_threads() {
        assert_eq!((capped(f32::INFINITY, 3.), capped(f32::NEG_INFINITY, 3.)), (3., -3.));
        assert!(capped(f32::NAN, 3.).is_nan());
        assert_eq!(capped(0., 3.), 0.);
        let x = random((5, 7), 1);
        assert_eq!(
            floats(&soft_cap(&x.t().unwrap(), 2.).unwrap().t().unwrap().contiguous().unwrap()),
            floats(&soft_cap(&x, 2.).unwrap())
        );
        assert!(soft_cap(&x, 0.).is_err());
        check_gradients(&[&random((3, 21), 3)], 1e-5, |x| soft_cap(&x[0], 1.5));
        same_bits_on_any_threads(&[&random((301, 333), 4)], |x| soft_cap(&x[0], 1.5));
        let doubles = Tensor::new(&[0.5f64, -3.], &Device::Cpu).unwrap();
        assert!((soft_cap(&doubles, 2.).unwrap().to_vec1::<f64>().unwrap()[1] - 2. * (-1.5f64).tanh()).abs() < 1e-12);
    }
}

//! Activation functions, elementwise, and their gated forms `act(gate) * up`; all in one pass, with gradients.
//!
//! Accuracy against f64: values within 4e-7 of max(|x|, 1) (the tails are far better: gelu is x times a sigmoid or x
//! times erfc, never 1 minus something close to 1), derivatives within 2e-6.

use std::marker::PhantomData;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::simd::{Output, build, clamp, exp, rows_per_task, vectorized};
use crate::storage::{is_fast, output, tensor, values, with_values};

/// GELU by tanh: `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    unary::<GeluTanh>(x)
}

/// GELU by the error function: `x (1 + erf(x / sqrt(2))) / 2`.
pub fn gelu_erf(x: &Tensor) -> Result<Tensor> {
    unary::<GeluErf>(x)
}

/// `x / (1 + exp(-x))`.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    unary::<Silu>(x)
}

/// `max(x, 0)`; its gradient at 0 is 1, as candle's is.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    unary::<Relu>(x)
}

/// `gelu_tanh(gate) * up`, bit for bit.
pub fn gated_gelu_tanh(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated::<GeluTanh>(gate, up)
}

/// `gelu_erf(gate) * up`, bit for bit.
pub fn gated_gelu_erf(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated::<GeluErf>(gate, up)
}

/// `silu(gate) * up`, bit for bit.
pub fn gated_silu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated::<Silu>(gate, up)
}

/// `relu(gate) * up`, bit for bit.
pub fn gated_relu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gated::<Relu>(gate, up)
}

// -- The functions --------------------------------------------------------------------------------------------------

trait Activation: Send + Sync + 'static {
    const NAME: &'static str;
    const GATED: &'static str;

    /// The value and the derivative at `x`. Whichever is not used costs nothing: it is inlined away.
    fn at(x: f32) -> (f32, f32);

    /// The same function for other dtypes and devices.
    fn composed(x: &Tensor) -> Result<Tensor>;
}

/// `1 / (1 + exp(-x))` and 1 minus that, each to full relative precision.
#[inline(always)]
fn sigmoid(x: f32) -> (f32, f32) {
    let e = exp(-x.abs());
    let larger = 1. / (1. + e);
    let smaller = e * larger;
    if x < 0. { (smaller, larger) } else { (larger, smaller) }
}

/// erfc(z) for z >= 0, within a relative 1.2e-7 before rounding (Numerical Recipes' erfcc).
#[inline(always)]
fn erfc(z: f32) -> f32 {
    let t = 1. / (1. + 0.5 * z);
    let p = 0.170_872_77;
    let p = p * t - 0.822_152_23;
    let p = p * t + 1.488_515_9;
    let p = p * t - 1.135_204;
    let p = p * t + 0.278_868_07;
    let p = p * t - 0.186_288_06;
    let p = p * t + 0.096_784_18;
    let p = p * t + 0.374_091_96;
    let p = p * t + 1.000_023_7;
    let p = p * t - 1.265_512_2;
    t * exp(p - z * z)
}

/// Beyond it, both GELUs are x or 0, and their derivatives 1 or 0, in f32.
const FAR: f32 = 20.;

struct GeluTanh;

impl Activation for GeluTanh {
    const NAME: &'static str = "gelu_tanh";
    const GATED: &'static str = "gated_gelu_tanh";

    #[inline(always)]
    fn at(x: f32) -> (f32, f32) {
        // (1 + tanh(u)) / 2 = sigmoid(2 u), and this is 2 sqrt(2 / pi).
        const FACTOR: f32 = 1.595_769_2;
        const CUBE: f32 = 0.044715;
        let near = clamp(x, -FAR, FAR);
        let square = near * near;
        let (s, complement) = sigmoid(FACTOR * near * (1. + CUBE * square));
        let slope = FACTOR * (1. + 3. * CUBE * square);
        (above(x, -FAR) * s, s + near * (s * complement) * slope)
    }

    fn composed(x: &Tensor) -> Result<Tensor> {
        x.gelu()
    }
}

struct GeluErf;

impl Activation for GeluErf {
    const NAME: &'static str = "gelu_erf";
    const GATED: &'static str = "gated_gelu_erf";

    #[inline(always)]
    fn at(x: f32) -> (f32, f32) {
        /// 1 / sqrt(2 pi).
        const DENSITY: f32 = 0.398_942_3;
        let near = clamp(x, -FAR, FAR);
        let tail = 0.5 * erfc(near.abs() * std::f32::consts::FRAC_1_SQRT_2);
        let cumulative = if near > 0. { 1. - tail } else { tail };
        let density = DENSITY * exp(-0.5 * near * near);
        (above(x, -FAR) * cumulative, cumulative + near * density)
    }

    fn composed(x: &Tensor) -> Result<Tensor> {
        x.gelu_erf()
    }
}

struct Silu;

impl Activation for Silu {
    const NAME: &'static str = "silu";
    const GATED: &'static str = "gated_silu";

    #[inline(always)]
    fn at(x: f32) -> (f32, f32) {
        /// The sigmoid is 0 or 1 beyond it.
        const FAR: f32 = 90.;
        let (s, complement) = sigmoid(x);
        (above(x, -FAR) * s, s * (1. + clamp(x, -FAR, FAR) * complement))
    }

    fn composed(x: &Tensor) -> Result<Tensor> {
        x.silu()
    }
}

struct Relu;

impl Activation for Relu {
    const NAME: &'static str = "relu";
    const GATED: &'static str = "gated_relu";

    #[inline(always)]
    fn at(x: f32) -> (f32, f32) {
        let slope = if x < 0. { 0. } else { x };
        (slope, if x >= 0. { 1. } else { slope })
    }

    fn composed(x: &Tensor) -> Result<Tensor> {
        x.relu()
    }
}

/// The larger of `x` and `low`, so that minus infinity times 0 is not NaN; NaN stays NaN.
#[inline(always)]
fn above(x: f32, low: f32) -> f32 {
    if x < low { low } else { x }
}

// -- One argument ---------------------------------------------------------------------------------------------------

fn unary<A: Activation>(x: &Tensor) -> Result<Tensor> {
    match is_fast(x) {
        true => x.contiguous()?.apply_op1(Unary::<A>(PhantomData)),
        false => A::composed(x),
    }
}

vectorized! {
    fn forward<'a, 'o, A: Activation>(x: &'a [f32], y: Output<'o>) -> Output<'o> {
        let mut y = y;
        y.extend(x.iter().map(|&x| A::at(x).0));
        y
    }
}

vectorized! {
    fn backward<'a, 'o, A: Activation>(x: &'a [f32], dy: &'a [f32], dx: Output<'o>) -> Output<'o> {
        let mut dx = dx;
        dx.extend(x.iter().zip(dy).map(|(&x, &dy)| dy * A::at(x).1));
        dx
    }
}

struct Unary<A>(PhantomData<A>);

impl<A: Activation> CustomOp1 for Unary<A> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = values(storage, layout)?;
        let y = build(x.len(), 1, 1, |first, y| forward::<A>(&x[first..][..y.len()], y));
        output(y, layout.shape())
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = with_values([x, dy], |[x, dy]| {
            build(x.len(), 1, 1, |first, dx| backward::<A>(&x[first..][..dx.len()], &dy[first..][..dx.len()], dx))
        })?;
        tensor(dx, x.shape()).map(Some)
    }
}

// -- Gated ----------------------------------------------------------------------------------------------------------

fn gated<A: Activation>(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.shape() != up.shape() {
        bail!("{}: gate {:?} and up {:?} differ in shape", A::GATED, gate.shape(), up.shape());
    }
    match is_fast(gate) && is_fast(up) {
        true => gate.contiguous()?.apply_op2(&up.contiguous()?, Gated::<A>(PhantomData)),
        false => A::composed(gate)? * up,
    }
}

vectorized! {
    fn gated_forward<'a, 'o, A: Activation>(gate: &'a [f32], up: &'a [f32], y: Output<'o>) -> Output<'o> {
        let mut y = y;
        y.extend(gate.iter().zip(up).map(|(&gate, &up)| A::at(gate).0 * up));
        y
    }
}

vectorized! {
    fn gated_backward<'a, A: Activation>(
        gate: &'a [f32],
        up: &'a [f32],
        dy: &'a [f32],
        dgate: &'a mut [f32],
        dup: &'a mut [f32],
    ) {
        for ((((dgate, dup), &gate), &up), &dy) in dgate.iter_mut().zip(dup).zip(gate).zip(up).zip(dy) {
            let (value, derivative) = A::at(gate);
            *dgate = dy * up * derivative;
            *dup = dy * value;
        }
    }
}

struct Gated<A>(PhantomData<A>);

impl<A: Activation> CustomOp2 for Gated<A> {
    fn name(&self) -> &'static str {
        A::GATED
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (gate, up) = (values(s1, l1)?, values(s2, l2)?);
        let y = build(gate.len(), 1, 1, |first, y| {
            gated_forward::<A>(&gate[first..][..y.len()], &up[first..][..y.len()], y)
        });
        output(y, l1.shape())
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dgate, dup) = with_values([gate, up, dy], |[gate, up, dy]| {
            let (mut dgate, mut dup) = (vec![0.; gate.len()], vec![0.; gate.len()]);
            let task = rows_per_task(1);
            let outputs = dgate.par_chunks_mut(task).zip(dup.par_chunks_mut(task));
            let inputs = gate.par_chunks(task).zip(up.par_chunks(task)).zip(dy.par_chunks(task));
            outputs.zip(inputs).for_each(|((dgate, dup), ((gate, up), dy))| {
                gated_backward::<A>(gate, up, dy, dgate, dup);
            });
            (dgate, dup)
        })?;
        Ok((Some(tensor(dgate, gate.shape())?), Some(tensor(dup, up.shape())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, check_gradients, random, same_bits_on_any_threads};
    use candle_core::{DType, Device};
    use std::f64::consts::{FRAC_1_SQRT_2, PI};

    type Function = fn(&Tensor) -> Result<Tensor>;
    type GatedFunction = fn(&Tensor, &Tensor) -> Result<Tensor>;

    /// erfc by its continued fraction or series, to f64 precision where the tests need it.
    fn erfc_reference(z: f64) -> f64 {
        if z.abs() < 2.5 {
            let (mut term, mut sum) = (z, z);
            for n in 1..100 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return 1. - 2. / PI.sqrt() * sum;
        }
        if z < 0. {
            return 2. - erfc_reference(-z);
        }
        let fraction = (1..100).rev().fold(z, |below, n| z + f64::from(n) / 2. / below);
        (-z * z).exp() / PI.sqrt() / fraction
    }

    fn gelu_tanh_reference(x: f64) -> (f64, f64) {
        let u = 2. * (2. / PI).sqrt() * (x + 0.044715 * x.powi(3));
        let s = 1. / (1. + (-u).exp());
        (x * s, s + x * s / (1. + u.exp()) * 2. * (2. / PI).sqrt() * (1. + 3. * 0.044715 * x * x))
    }

    fn gelu_erf_reference(x: f64) -> (f64, f64) {
        let cumulative = 0.5 * erfc_reference(-x * FRAC_1_SQRT_2);
        (x * cumulative, cumulative + x * (-x * x / 2.).exp() / (2. * PI).sqrt())
    }

    fn silu_reference(x: f64) -> (f64, f64) {
        let s = 1. / (1. + (-x).exp());
        (x * s, s + x * s / (1. + x.exp()))
    }

    /// The largest errors of the value, in units of max(|x|, 1), and of the derivative.
    fn check_accuracy<A: Activation>(reference: fn(f64) -> (f64, f64)) {
        let dense = (-1_200_000..=1_200_000).map(|step| step as f32 * 1e-5);
        let wide = (-100_000..=100_000).map(|step| step as f32 * 1e-3);
        let tiny = (1..38).flat_map(|power| [10f32.powi(-power), -(10f32.powi(-power))]);
        let xs: Vec<f32> = dense.chain(wide).chain(tiny).collect();
        let ones = vec![1.; xs.len()];
        let y = build(xs.len(), 1, 1, |first, y| forward::<A>(&xs[first..][..y.len()], y));
        let dx = build(xs.len(), 1, 1, |first, dx| backward::<A>(&xs[first..][..dx.len()], &ones, dx));
        let (mut worst, mut worst_slope) = ((0., 0.), (0., 0.));
        for ((&x, &y), &dx) in xs.iter().zip(&y).zip(&dx) {
            let (value, slope) = reference(f64::from(x));
            let error = (f64::from(y) - value).abs() / f64::from(x).abs().max(1.);
            let slope_error = (f64::from(dx) - slope).abs();
            assert!(error.is_finite() && slope_error.is_finite(), "{} at {x}: {y} {dx}", A::NAME);
            worst = if error > worst.0 { (error, x) } else { worst };
            worst_slope = if slope_error > worst_slope.0 { (slope_error, x) } else { worst_slope };
        }
        println!("{}: value {worst:?}, derivative {worst_slope:?}", A::NAME);
        assert!(worst.0 < 4e-7, "{}: {worst:?}", A::NAME);
        assert!(worst_slope.0 < 2e-6, "{}: {worst_slope:?}", A::NAME);
    }

    #[test]
    fn values_and_derivatives_agree_with_f64() {
        check_accuracy::<GeluTanh>(gelu_tanh_reference);
        check_accuracy::<GeluErf>(gelu_erf_reference);
        check_accuracy::<Silu>(silu_reference);
        check_accuracy::<Relu>(|x| (x.max(0.), if x >= 0. { 1. } else { 0. }));
    }

    #[test]
    fn infinities_and_nan() {
        for f in [GeluTanh::at, GeluErf::at, Silu::at, Relu::at] {
            assert_eq!(f(f32::INFINITY), (f32::INFINITY, 1.));
            assert_eq!(f(f32::NEG_INFINITY), (0., 0.));
            assert_eq!(f(f32::MAX), (f32::MAX, 1.));
            assert_eq!(f(f32::MIN), (0., 0.));
            assert!(f(f32::NAN).0.is_nan() && f(f32::NAN).1.is_nan());
        }
    }

    const FUNCTIONS: [(Function, GatedFunction); 4] =
        [(gelu_tanh, gated_gelu_tanh), (gelu_erf, gated_gelu_erf), (silu, gated_silu), (relu, gated_relu)];

    #[test]
    fn close_to_candle_at_any_length_and_stride() {
        for (f, gated) in FUNCTIONS {
            for shape in [(0, 3), (1, 1), (3, 5), (7, 33), (40, 1000)] {
                let x = random(shape, 1);
                for x in [x.clone(), x.t().unwrap()] {
                    let up = random(x.shape(), 2);
                    let composed = f(&x.to_dtype(DType::F64).unwrap()).unwrap().to_dtype(DType::F32).unwrap();
                    let fused = f(&x).unwrap();
                    assert_eq!(fused.shape(), x.shape());
                    let difference = (&fused - &composed).unwrap().abs().unwrap().flatten_all().unwrap();
                    assert!(difference.to_vec1::<f32>().unwrap().into_iter().all(|d| d < 2e-6));
                    assert_eq!(bits(&gated(&x, &up).unwrap()), bits(&(fused * up).unwrap()));
                }
            }
        }
    }

    #[test]
    fn gradients() {
        let (gate, up) = (random((5, 37), 3), random((5, 37), 4));
        for (f, gated) in FUNCTIONS {
            check_gradients(&[&gate], 1e-5, |x| f(&x[0]));
            check_gradients(&[&gate, &up], 1e-5, |x| gated(&x[0], &x[1]));
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let (gate, up) = (random((70, 1001), 5), random((70, 1001), 6));
        for (f, gated) in FUNCTIONS {
            same_bits_on_any_threads(&[&gate], |x| f(&x[0]));
            same_bits_on_any_threads(&[&gate, &up], |x| gated(&x[0], &x[1]));
        }
    }

    #[test]
    fn shapes_that_differ_are_refused() {
        let error = gated_silu(&random((2, 3), 1), &random((3, 2), 1)).unwrap_err().to_string();
        assert!(error.contains("[2, 3]") && error.contains("[3, 2]"), "{error}");
        let half = Tensor::zeros((2, 3), DType::F16, &Device::Cpu).unwrap();
        assert_eq!(gated_silu(&half, &half).unwrap().dtype(), DType::F16);
    }
}

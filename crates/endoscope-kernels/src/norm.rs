//! LayerNorm and RMSNorm, whole and in the parts that are sites.
//!
//! [`norm`] has the bits of [`norm_normalize`] by [`norm_scale`] followed by candle's `broadcast_mul` and
//! `broadcast_add`, so that reading or editing a part changes nothing else. Means and sums are kept in f64: every
//! result is within a few f32 roundings of the f64 value, however large the mean.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, D, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::bias::column_sums;
use crate::simd::{Output, build, rows_per_task, sum, sum_pairs, vectorized};
use crate::storage::{check_vector, is_fast, output, tensor, values, width, with_values};

/// What is subtracted from a row before it is scaled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Centre {
    /// The row's mean: LayerNorm.
    Mean,
    /// Nothing: RMSNorm.
    None,
}

/// The divisor `sqrt(mean((x - mean)^2) + epsilon)`: `[…, n] -> […, 1]`.
pub fn norm_scale(x: &Tensor, centre: Centre, epsilon: f64) -> Result<Tensor> {
    width(x.shape())?;
    match is_fast(x) {
        true => x.contiguous()?.apply_op1(Scale { centre, epsilon }),
        false => (centred(x, centre)?.sqr()?.mean_keepdim(D::Minus1)? + epsilon)?.sqrt(),
    }
}

/// `(x - mean) / scale`: `[…, n], […, 1] -> […, n]`.
pub fn norm_normalize(x: &Tensor, scale: &Tensor, centre: Centre) -> Result<Tensor> {
    width(x.shape())?;
    if *scale.dims() != scale_shape(x.shape()) {
        bail!("the scale of {:?} must have one value a row, not shape {:?}", x.shape(), scale.shape());
    }
    match is_fast(x) && is_fast(scale) {
        true => x.contiguous()?.apply_op2(&scale.contiguous()?, Normalize { centre }),
        false => centred(x, centre)?.broadcast_div(scale),
    }
}

/// `(x - mean) / scale * weight + bias`: `[…, n], [n], [n] -> […, n]`.
pub fn norm(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, centre: Centre, epsilon: f64) -> Result<Tensor> {
    check_vector("a norm's weight", x.shape(), weight.shape())?;
    if let Some(bias) = bias {
        check_vector("a norm's bias", x.shape(), bias.shape())?;
    }
    let whole = Whole { centre, epsilon };
    if is_fast(x) && is_fast(weight) && bias.is_none_or(is_fast) {
        let (x, weight) = (x.contiguous()?, weight.contiguous()?);
        return match bias {
            Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, whole),
            None => x.apply_op2(&weight, whole),
        };
    }
    let weighted = norm_normalize(x, &norm_scale(x, centre, epsilon)?, centre)?.broadcast_mul(weight)?;
    match bias {
        Some(bias) => weighted.broadcast_add(bias),
        None => Ok(weighted),
    }
}

fn centred(x: &Tensor, centre: Centre) -> Result<Tensor> {
    match centre {
        Centre::Mean => x.broadcast_sub(&x.mean_keepdim(D::Minus1)?),
        Centre::None => Ok(x.clone()),
    }
}

fn scale_shape(x: &Shape) -> Vec<usize> {
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = 1;
    }
    dims
}

// -- One row: the only place where mean, scale and quotient are computed --------------------------------------------

/// A mean in two parts, so that subtracting a large one costs no digits.
#[derive(Clone, Copy)]
struct Mean {
    high: f32,
    low: f32,
}

impl Mean {
    #[inline(always)]
    fn of(row: &[f32], centre: Centre) -> Self {
        match centre {
            Centre::None => Self { high: 0., low: 0. },
            Centre::Mean => {
                let mean = sum(row, f64::from) / row.len() as f64;
                let high = mean as f32;
                Self { high, low: (mean - f64::from(high)) as f32 }
            }
        }
    }

    #[inline(always)]
    fn from(self, x: f32) -> f32 {
        x - self.high - self.low
    }
}

#[inline(always)]
fn scale_of(row: &[f32], mean: Mean, epsilon: f64) -> f32 {
    let squares = sum(row, |x| {
        let centred = f64::from(mean.from(x));
        centred * centred
    });
    (squares / row.len() as f64 + epsilon).sqrt() as f32
}

/// `inverse` is 1 / scale: a division for each value would take most of the time.
#[inline(always)]
fn normalized(x: f32, mean: Mean, inverse: f32) -> f32 {
    mean.from(x) * inverse
}

vectorized! {
    fn scales<'a, 'o>(x: &'a [f32], width: usize, centre: Centre, epsilon: f64, scales: Output<'o>) -> Output<'o> {
        let mut scales = scales;
        scales.extend((0..scales.len()).map(|row| {
            let x = &x[row * width..][..width];
            scale_of(x, Mean::of(x, centre), epsilon)
        }));
        scales
    }
}

vectorized! {
    fn normalize<'a, 'o>(x: &'a [f32], scales: &'a [f32], width: usize, centre: Centre, y: Output<'o>) -> Output<'o> {
        let mut y = y;
        for (x, scale) in x.chunks_exact(width).zip(scales) {
            let (mean, inverse) = (Mean::of(x, centre), 1. / scale);
            y.extend(x.iter().map(|&x| normalized(x, mean, inverse)));
        }
        y
    }
}

vectorized! {
    fn forward<'a, 'o>(
        x: &'a [f32],
        weight: &'a [f32],
        bias: Option<&'a [f32]>,
        centre: Centre,
        epsilon: f64,
        y: Output<'o>,
    ) -> Output<'o> {
        let mut y = y;
        for x in x.chunks_exact(weight.len().max(1)) {
            let mean = Mean::of(x, centre);
            let inverse = 1. / scale_of(x, mean, epsilon);
            let weighted = x.iter().zip(weight).map(|(&x, weight)| normalized(x, mean, inverse) * weight);
            match bias {
                Some(bias) => y.extend(weighted.zip(bias).map(|(weighted, bias)| weighted + bias)),
                None => y.extend(weighted),
            }
        }
        y
    }
}

// -- The scale ------------------------------------------------------------------------------------------------------

vectorized! {
    /// `dx = ds (x - mean) / (n s)`.
    fn scale_backward<'a, 'o>(
        x: &'a [f32],
        scales: &'a [f32],
        ds: &'a [f32],
        width: usize,
        centre: Centre,
        dx: Output<'o>,
    ) -> Output<'o> {
        let mut dx = dx;
        for ((x, scale), ds) in x.chunks_exact(width).zip(scales).zip(ds) {
            let (mean, inverse, factor) = (Mean::of(x, centre), 1. / scale, ds / width as f32);
            dx.extend(x.iter().map(|&x| normalized(x, mean, inverse) * factor));
        }
        dx
    }
}

struct Scale {
    centre: Centre,
    epsilon: f64,
}

impl CustomOp1 for Scale {
    fn name(&self) -> &'static str {
        "norm_scale"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, width, shape) = (values(storage, layout)?, width(layout.shape())?, scale_shape(layout.shape()));
        let out = build(shape.iter().product(), 1, width, |first, out| {
            scales(&x[first * width..][..out.len() * width], width, self.centre, self.epsilon, out)
        });
        output(out, shape)
    }

    fn bwd(&self, x: &Tensor, scale: &Tensor, ds: &Tensor) -> Result<Option<Tensor>> {
        let width = width(x.shape())?;
        let dx = with_values([x, scale, ds], |[x, scale, ds]| {
            build(x.len(), width, width, |first, dx| {
                let rows = first..first + dx.len() / width.max(1);
                let x = &x[first * width..][..dx.len()];
                scale_backward(x, &scale[rows.clone()], &ds[rows], width.max(1), self.centre, dx)
            })
        })?;
        tensor(dx, x.shape()).map(Some)
    }
}

// -- What is normalized ---------------------------------------------------------------------------------------------

struct Normalize {
    centre: Centre,
}

vectorized! {
    /// `dx = (dy - mean(dy)) / s` (without the mean if there is no centre) and `ds = -sum(dy y) / s`.
    fn normalize_backward<'a>(
        x: &'a [f32],
        scales: &'a [f32],
        dy: &'a [f32],
        centre: Centre,
        dx: &'a mut [f32],
        ds: &'a mut [f32],
    ) {
        let width = dx.len() / scales.len().max(1);
        for (row, (&scale, ds)) in scales.iter().zip(ds).enumerate() {
            let (x, dy, dx) = (&x[row * width..][..width], &dy[row * width..][..width], &mut dx[row * width..][..width]);
            let (mean, inverse) = (Mean::of(x, centre), 1. / scale);
            let products = sum_pairs(x, dy, |x, dy| f64::from(normalized(x, mean, inverse)) * f64::from(dy));
            *ds = (-products / f64::from(scale)) as f32;
            let mean_dy = Mean::of(dy, centre);
            for (dx, &dy) in dx.iter_mut().zip(dy) {
                *dx = normalized(dy, mean_dy, inverse);
            }
        }
    }
}

impl CustomOp2 for Normalize {
    fn name(&self) -> &'static str {
        "norm_normalize"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        let (x, scales, width) = (values(s1, l1)?, values(s2, l2)?, width(l1.shape())?);
        let y = build(x.len(), width, width, |first, y| {
            normalize(&x[first * width..][..y.len()], &scales[first..], width.max(1), self.centre, y)
        });
        output(y, l1.shape())
    }

    fn bwd(&self, x: &Tensor, scale: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = width(x.shape())?;
        let (dx, ds) = with_values([x, scale, dy], |[x, scales, dy]| {
            let (mut dx, mut ds) = (vec![0.; x.len()], vec![0.; scales.len()]);
            if width == 0 {
                return (dx, ds);
            }
            let rows = rows_per_task(width);
            let outputs = dx.par_chunks_mut(rows * width).zip(ds.par_chunks_mut(rows));
            let inputs = x.par_chunks(rows * width).zip(scales.par_chunks(rows)).zip(dy.par_chunks(rows * width));
            outputs.zip(inputs).for_each(|((dx, ds), ((x, scales), dy))| {
                normalize_backward(x, scales, dy, self.centre, dx, ds);
            });
            (dx, ds)
        })?;
        Ok((Some(tensor(dx, x.shape())?), Some(tensor(ds, scale.shape())?)))
    }
}

// -- The whole ------------------------------------------------------------------------------------------------------

#[derive(Clone, Copy)]
struct Whole {
    centre: Centre,
    epsilon: f64,
}

vectorized! {
    /// With n normalized and `g = dy weight`: `dx = (g - mean(g) - n mean(g n)) / s` (no mean(g) if there is no
    /// centre), and the terms `dy n` of the weight's gradient.
    fn backward<'a>(
        x: &'a [f32],
        weight: &'a [f32],
        dy: &'a [f32],
        centre: Centre,
        epsilon: f64,
        dx: &'a mut [f32],
        terms: &'a mut [f32],
    ) {
        let width = weight.len();
        let rows = x.chunks_exact(width).zip(dy.chunks_exact(width));
        for ((x, dy), (dx, terms)) in rows.zip(dx.chunks_exact_mut(width).zip(terms.chunks_exact_mut(width))) {
            let mean = Mean::of(x, centre);
            let inverse = 1. / scale_of(x, mean, epsilon);
            for ((((dx, term), &x), dy), weight) in dx.iter_mut().zip(&mut *terms).zip(x).zip(dy).zip(weight) {
                *dx = dy * weight;
                *term = normalized(x, mean, inverse);
            }
            let mean_g = Mean::of(dx, centre);
            let products = sum_pairs(dx, terms, |g, n| f64::from(g) * f64::from(n));
            let mean_gn = (products / width as f64) as f32;
            for ((dx, term), dy) in dx.iter_mut().zip(terms).zip(dy) {
                *dx = (mean_g.from(*dx) - *term * mean_gn) * inverse;
                *term *= dy;
            }
        }
    }
}

impl Whole {
    fn run(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let width = weight.len();
        build(x.len(), width, width, |first, y| {
            forward(&x[first * width..][..y.len()], weight, bias, self.centre, self.epsilon, y)
        })
    }

    /// The gradients of x and, if it is wanted, of the weight.
    fn gradients(&self, x: &Tensor, weight: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dweight) = with_values([x, weight, dy], |[x, weight_values, dy]| {
            let width = weight_values.len();
            let (mut dx, mut terms) = (vec![0.; x.len()], vec![0.; x.len()]);
            if width > 0 {
                let chunk = rows_per_task(width) * width;
                let outputs = dx.par_chunks_mut(chunk).zip(terms.par_chunks_mut(chunk));
                outputs.zip(x.par_chunks(chunk).zip(dy.par_chunks(chunk))).for_each(|((dx, terms), (x, dy))| {
                    backward(x, weight_values, dy, self.centre, self.epsilon, dx, terms);
                });
            }
            (dx, weight.track_op().then(|| column_sums(&terms, width)))
        })?;
        Ok((Some(tensor(dx, x.shape())?), dweight.map(|sums| tensor(sums, weight.shape())).transpose()?))
    }
}

impl CustomOp2 for Whole {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(&self, s1: &CpuStorage, l1: &Layout, s2: &CpuStorage, l2: &Layout) -> Result<(CpuStorage, Shape)> {
        output(self.run(values(s1, l1)?, values(s2, l2)?, None), l1.shape())
    }

    fn bwd(&self, x: &Tensor, weight: &Tensor, _: &Tensor, dy: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.gradients(x, weight, dy)
    }
}

impl CustomOp3 for Whole {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        output(self.run(values(s1, l1)?, values(s2, l2)?, Some(values(s3, l3)?)), l1.shape())
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dweight) = self.gradients(x, weight, dy)?;
        let dbias = match bias.track_op() {
            true => Some(tensor(with_values([dy], |[dy]| column_sums(dy, bias.elem_count()))?, bias.shape())?),
            false => None,
        };
        Ok((dx, dweight, dbias))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{bits, check_gradients, floats, random, same_bits_on_any_threads};
    use candle_core::Device;
    use proptest::prelude::*;

    const EPSILON: f64 = 1e-5;
    const CENTRES: [Centre; 2] = [Centre::Mean, Centre::None];

    fn in_parts(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, centre: Centre) -> Tensor {
        let scale = norm_scale(x, centre, EPSILON).unwrap();
        let weighted = norm_normalize(x, &scale, centre).unwrap().broadcast_mul(weight).unwrap();
        bias.map_or(weighted.clone(), |bias| weighted.broadcast_add(bias).unwrap())
    }

    /// A NaN's sign and payload depend on the order of operands, which IEEE leaves open.
    fn comparable(x: &Tensor) -> Vec<u32> {
        bits(x).into_iter().map(|x| if f32::from_bits(x).is_nan() { f32::NAN.to_bits() } else { x }).collect()
    }

    proptest! {
        #[test]
        fn the_whole_has_the_bits_of_its_parts(
            rows in 0usize..5,
            width in 1usize..100,
            values in prop::collection::vec(
                prop_oneof![
                    20 => -1e3f32..1e3,
                    20 => -1f32..1.,
                    5 => any::<f32>(),
                    1 => prop::sample::select(vec![0., -0., f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-40]),
                ],
                700,
            ),
        ) {
            let take = |from: usize, count: usize| values[from..][..count].to_vec();
            let x = Tensor::from_vec(take(0, rows * width), (rows, width), &Device::Cpu).unwrap();
            let weight = Tensor::from_vec(take(500, width), width, &Device::Cpu).unwrap();
            let bias = Tensor::from_vec(take(600, width), width, &Device::Cpu).unwrap();
            for centre in CENTRES {
                for bias in [None, Some(&bias)] {
                    let whole = norm(&x, &weight, bias, centre, EPSILON).unwrap();
                    prop_assert_eq!(comparable(&whole), comparable(&in_parts(&x, &weight, bias, centre)));
                }
            }
        }
    }

    #[test]
    fn the_parts_agree_at_model_size() {
        let (x, weight, bias) = (random((2, 64, 768), 1), random(768, 2), random(768, 3));
        for centre in CENTRES {
            let whole = norm(&x, &weight, Some(&bias), centre, EPSILON).unwrap();
            assert_eq!(bits(&whole), bits(&in_parts(&x, &weight, Some(&bias), centre)));
        }
    }

    /// Even where the mean is 10,000 times the deviation, and for long rows.
    #[test]
    fn close_to_f64() {
        for (width, mean) in [(1, 0.), (7, 3.), (768, 0.), (768, 1e4), (16_384, -50.)] {
            let x = (random((3, width), 4) + mean).unwrap();
            for centre in CENTRES {
                let scale = floats(&norm_scale(&x, centre, EPSILON).unwrap());
                let y = norm_normalize(&x, &norm_scale(&x, centre, EPSILON).unwrap(), centre).unwrap();
                for ((x, scale), y) in x.to_vec2::<f32>().unwrap().iter().zip(scale).zip(y.to_vec2::<f32>().unwrap()) {
                    let x: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                    let n = width as f64;
                    let mean = if centre == Centre::Mean { x.iter().sum::<f64>() / n } else { 0. };
                    let expected = (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n + EPSILON).sqrt();
                    assert!((f64::from(scale) - expected).abs() <= 1e-7 * expected);
                    for (x, y) in x.iter().zip(y) {
                        let expected = (x - mean) / expected;
                        assert!((f64::from(y) - expected).abs() <= 3e-7 * expected.abs().max(1e-6), "{y} {expected}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_nan_stays_in_its_row() {
        let x = Tensor::new(&[[f32::NAN, 1., 2.], [1., 2., f32::INFINITY], [1., 2., 3.]], &Device::Cpu).unwrap();
        let weight = Tensor::new(&[1f32, 1., 1.], &Device::Cpu).unwrap();
        let y = norm(&x, &weight, None, Centre::Mean, EPSILON).unwrap().to_vec2::<f32>().unwrap();
        assert!(y[..2].iter().flatten().all(|y| y.is_nan()) && y[2].iter().all(|y| y.is_finite()));
    }

    #[test]
    fn shapes() {
        for shape in [(0, 3), (3, 0), (1, 1), (3, 17)] {
            let x = random(shape, 5);
            for x in [x.clone(), x.t().unwrap()] {
                let weight = random(x.dim(1).unwrap(), 6);
                for centre in CENTRES {
                    let y = norm(&x, &weight, Some(&weight), centre, EPSILON).unwrap();
                    assert_eq!(y.shape(), x.shape());
                    assert_eq!(bits(&y), bits(&in_parts(&x, &weight, Some(&weight), centre)));
                }
            }
        }
        let x = random((2, 3), 7);
        assert!(norm(&x, &random(4, 8), None, Centre::Mean, EPSILON).unwrap_err().to_string().contains("[4]"));
        assert!(norm_normalize(&x, &random((3, 1), 8), Centre::Mean).unwrap_err().to_string().contains("[3, 1]"));
        assert!(norm_scale(&Tensor::new(1f32, &Device::Cpu).unwrap(), Centre::Mean, EPSILON).is_err());
    }

    #[test]
    fn gradients() {
        let (x, weight, bias) = (random((2, 3, 19), 9), random(19, 10), random(19, 11));
        let scale = random((2, 3, 1), 12).sqr().unwrap().affine(1., 0.5).unwrap();
        for centre in CENTRES {
            check_gradients(&[&x], 2e-6, |x| norm_scale(&x[0], centre, EPSILON));
            check_gradients(&[&x, &scale], 4e-6, |x| norm_normalize(&x[0], &x[1], centre));
            check_gradients(&[&x, &weight], 4e-6, |x| norm(&x[0], &x[1], None, centre, EPSILON));
            check_gradients(&[&x, &weight, &bias], 4e-6, |x| norm(&x[0], &x[1], Some(&x[2]), centre, EPSILON));
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let (x, weight, bias) = (random((600, 130), 13), random(130, 14), random(130, 15));
        same_bits_on_any_threads(&[&x, &weight, &bias], |x| norm(&x[0], &x[1], Some(&x[2]), Centre::Mean, EPSILON));
        same_bits_on_any_threads(&[&x], |x| {
            norm_normalize(&x[0], &norm_scale(&x[0], Centre::Mean, EPSILON)?, Centre::Mean)
        });
    }
}

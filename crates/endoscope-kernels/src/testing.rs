//! What the kernels' tests share.

use candle_core::{DType, Device, Result, Shape, Tensor, Var};
use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

/// Values in -4 .. 4.
pub fn random(shape: impl Into<Shape>, seed: u64) -> Tensor {
    let shape = shape.into();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values: Vec<f32> = (0..shape.elem_count()).map(|_| rng.random_range(-4f32..4.)).collect();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// The bits of an f32 tensor.
pub fn bits(x: &Tensor) -> Vec<u32> {
    floats(x).into_iter().map(f32::to_bits).collect()
}

/// The values of an f32 tensor.
pub fn floats(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn doubles(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// A scalar that weighs each output differently.
fn objective(y: &Tensor) -> Tensor {
    let weights = random(y.shape(), 99).to_dtype(y.dtype()).unwrap();
    (y * weights).unwrap().sum_all().unwrap()
}

fn gradients(inputs: &[Tensor], f: &impl Fn(&[Tensor]) -> Result<Tensor>) -> Vec<Tensor> {
    let variables: Vec<Var> = inputs.iter().map(|x| Var::from_tensor(x).unwrap()).collect();
    let tensors: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    let store = objective(&f(&tensors).unwrap()).backward().unwrap();
    tensors.iter().map(|x| store.get(x).unwrap().clone()).collect()
}

/// Compares the fused f32 gradients of `f` with those of the composed f64 version, and with its central differences.
pub fn check_gradients(inputs: &[&Tensor], tolerance: f64, f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    const STEP: f64 = 1e-5;
    let singles: Vec<Tensor> = inputs.iter().map(|&x| x.clone()).collect();
    let wide: Vec<Tensor> = inputs.iter().map(|x| x.to_dtype(DType::F64).unwrap()).collect();
    let fused = gradients(&singles, &f);
    let composed = gradients(&wide, &f);
    for (which, (fused, composed)) in fused.iter().zip(&composed).enumerate() {
        assert_eq!(fused.shape(), inputs[which].shape());
        let (fused, composed) = (doubles(fused), doubles(composed));
        for (at, (&fused, &composed)) in fused.iter().zip(&composed).enumerate() {
            let bound = tolerance * composed.abs().max(1.);
            assert!((fused - composed).abs() <= bound, "input {which} at {at}: fused {fused}, composed {composed}");
        }
        // Central differences are slow: some coordinates are enough, the first and the last among them.
        let values = doubles(&wide[which]);
        for at in (0..values.len()).step_by((values.len() / 12).max(1)).chain([values.len() - 1]) {
            let moved = |by: f64| {
                let mut values = values.clone();
                values[at] += by;
                let mut inputs = wide.clone();
                inputs[which] = Tensor::from_vec(values, wide[which].shape(), &Device::Cpu).unwrap();
                objective(&f(&inputs).unwrap()).to_scalar::<f64>().unwrap()
            };
            let difference = (moved(STEP) - moved(-STEP)) / (2. * STEP);
            let bound = 10. * tolerance * difference.abs().max(1.);
            assert!((fused[at] - difference).abs() <= bound, "input {which} at {at}: {} or {difference}", fused[at]);
        }
    }
}

/// Checks that the value and the gradients have the same bits on one thread, on five, and on candle's own pool.
pub fn same_bits_on_any_threads(inputs: &[&Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor> + Sync) {
    let inputs: Vec<Tensor> = inputs.iter().map(|&x| x.clone()).collect();
    let run = || {
        let value = bits(&f(&inputs).unwrap());
        (value, gradients(&inputs, &f).iter().map(bits).collect::<Vec<_>>())
    };
    let on = |threads: usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run);
    let alone = on(1);
    assert_eq!(alone, on(5));
    assert_eq!(alone, run());
}

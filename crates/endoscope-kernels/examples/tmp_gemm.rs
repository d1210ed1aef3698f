use candle_core::{Device, Tensor};
use endoscope_kernels::*;
use std::sync::Arc;
use std::time::Instant;
fn main() {
    rayon::scope(|_| {
    for (m, k, n) in [(128, 768, 768), (128, 768, 3072), (128, 3072, 768), (128, 768, 50257), (512, 768, 3072), (1024,768,3072),(2048, 2048, 2048), (1, 768, 50257), (1,768,3072), (8,768,3072), (32,768,3072)] {
        let x = Tensor::randn(0f32, 1., (m, k), &Device::Cpu).unwrap();
        let w = Tensor::randn(0f32, 1., (k, n), &Device::Cpu).unwrap();
        for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
            if m > 1 && precision != Precision::F32 { continue }
            let p = Arc::new(PackedMatrix::from_tensor(&w, precision).unwrap());
            let mut times: Vec<f64> = (0..15).map(|_| { let t = Instant::now(); p.product(&x, None, None).unwrap(); t.elapsed().as_secs_f64() }).collect();
            times.sort_by(f64::total_cmp);
            let s = times[7];
            println!("{m}x{k}x{n} {precision:?}: {:.3} ms, {:.0} GFLOP/s, {:.1} GB/s", s * 1e3, 2e-9 * (m * k * n) as f64 / s, p.bytes() as f64 / s * 1e-9);
        }
        let mut times: Vec<f64> = (0..15).map(|_| { let t = Instant::now(); x.matmul(&w).unwrap(); t.elapsed().as_secs_f64() }).collect();
        times.sort_by(f64::total_cmp);
        println!("   candle {:.0} GFLOP/s", 2e-9 * (m * k * n) as f64 / times[7]);
    }
    });
}

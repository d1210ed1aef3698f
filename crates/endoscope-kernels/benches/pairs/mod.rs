//! Each kernel beside what it replaces, at the sizes of GPT-2 small with 128 tokens.

use std::sync::Arc;

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::ops;
use endoscope_kernels::attention::{Heads, KeysValues, Span, attention};
use endoscope_kernels::{
    Centre, PackedMatrix, Precision, activation, add_bias, norm, norm_normalize, norm_scale, softmax, top_k,
};

type Run = Box<dyn Fn() -> Result<Tensor>>;

/// One measurement: `fused` and `candle` compute the same.
pub struct Pair {
    pub name: &'static str,
    pub fused: Run,
    pub candle: Run,
}

const EPSILON: f64 = 1e-5;

fn random(shape: &[usize]) -> Result<Tensor> {
    Tensor::randn(0f32, 1., shape, &Device::Cpu)
}

/// The value of `f`.
fn value(x: &[Tensor], f: fn(&[Tensor]) -> Result<Tensor>) -> Run {
    let x = x.to_vec();
    Box::new(move || f(&x))
}

/// The gradient of the sum of squares of `f`.
fn gradient(x: &[Tensor], f: fn(&[Tensor]) -> Result<Tensor>) -> Run {
    let variables = x.iter().map(Var::from_tensor).collect::<Result<Vec<_>>>();
    Box::new(move || {
        let variables = variables.as_ref().map_err(|error| candle_core::Error::Msg(error.to_string()))?;
        let x: Vec<Tensor> = variables.iter().map(|x| x.as_tensor().clone()).collect();
        let y = f(&x)?;
        let weights = y.detach();
        let gradients = (y * weights)?.sum_all()?.backward()?;
        gradients.get(&x[0]).cloned().ok_or_else(|| candle_core::Error::Msg("no gradient".into()))
    })
}

fn composed_norm(x: &[Tensor]) -> Result<Tensor> {
    let centred = x[0].broadcast_sub(&x[0].mean_keepdim(D::Minus1)?)?;
    let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + EPSILON)?.sqrt()?;
    centred.broadcast_div(&scale)?.broadcast_mul(&x[1])?.broadcast_add(&x[2])
}

fn norm_in_parts(x: &[Tensor]) -> Result<Tensor> {
    let scale = norm_scale(&x[0], Centre::Mean, EPSILON)?;
    norm_normalize(&x[0], &scale, Centre::Mean)?.broadcast_mul(&x[1])?.broadcast_add(&x[2])
}

fn sorted(x: &Tensor, k: usize) -> Result<Tensor> {
    x.gather(&x.arg_sort_last_dim(false)?.narrow(1, 0, k)?.contiguous()?, 1)
}

/// A matrix packed once, and the same in candle.
fn products(pairs: &mut Vec<Pair>, rows: usize, name: &'static str, precision: Precision) -> Result<()> {
    let (x, weight) = (random(&[rows, 768])?, random(&[768, 3072])?);
    let packed = Arc::new(PackedMatrix::from_tensor(&weight, precision)?);
    let (x, left) = (x.clone(), x);
    pairs.push(Pair {
        name,
        fused: Box::new(move || packed.product(&x, None, None)),
        candle: Box::new(move || left.matmul(&weight)),
    });
    Ok(())
}

/// Causal attention of 12 heads of 64 over 128 positions, packing of keys and values included.
fn attentions(pairs: &mut Vec<Pair>) -> Result<()> {
    const HEADS: Heads<'static> = Heads::plain(12, 12, 64, 0.125);
    let rows = [random(&[128, 768])?, random(&[128, 768])?, random(&[128, 768])?];
    let [q, k, v] = rows.each_ref().map(|x| x.reshape((128, 12, 64))?.transpose(0, 1)?.contiguous());
    let (q, k, v) = (q?, k?, v?);
    let later = |query: usize| (0..128).map(move |key| if key > query { f32::NEG_INFINITY } else { 0. });
    let mask = Tensor::from_iter((0..128).flat_map(later), &Device::Cpu)?.reshape((128, 128))?;
    pairs.push(Pair {
        name: "attention, 12 heads of [128, 64]",
        fused: Box::new(move || {
            let flat = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
            let mut own = KeysValues::new(HEADS.keys, HEADS.d_head, 128);
            own.append(&flat(&rows[1])?, &flat(&rows[2])?);
            let span = Span { first: 0, queries: 128, past: None, own: &own };
            Tensor::from_vec(attention(&flat(&rows[0])?, &[span], HEADS), (128, 768), &Device::Cpu)
        }),
        candle: Box::new(move || {
            let scores = (q.matmul(&k.transpose(1, 2)?)? * 0.125)?.broadcast_add(&mask)?;
            ops::softmax_last_dim(&scores)?.matmul(&v)?.transpose(0, 1)?.contiguous()?.reshape((128, 768))
        }),
    });
    Ok(())
}

pub fn pairs() -> Result<Vec<Pair>> {
    let mlp = [random(&[128, 3072])?, random(&[128, 3072])?];
    let scores = [random(&[12 * 128, 128])?];
    let stream = [random(&[128, 768])?, random(&[768])?, random(&[768])?];
    let hidden = [random(&[128, 3072])?, random(&[3072])?];
    let logits = [random(&[16, 50_257])?];
    let token = [random(&[1, 768])?, random(&[768])?, random(&[768])?];
    let mut pairs = Vec::new();
    let mut pair = |name, fused, candle| pairs.push(Pair { name, fused, candle });
    pair("gelu_tanh [128, 3072]", value(&mlp, |x| activation::gelu_tanh(&x[0])), value(&mlp, |x| x[0].gelu()));
    pair("gelu_erf [128, 3072]", value(&mlp, |x| activation::gelu_erf(&x[0])), value(&mlp, |x| x[0].gelu_erf()));
    pair("silu [128, 3072]", value(&mlp, |x| activation::silu(&x[0])), value(&mlp, |x| x[0].silu()));
    pair(
        "gated_silu [128, 3072]",
        value(&mlp, |x| activation::gated_silu(&x[0], &x[1])),
        value(&mlp, |x| x[0].silu()? * &x[1]),
    );
    pair(
        "gelu_tanh, gradient [128, 3072]",
        gradient(&mlp[..1], |x| activation::gelu_tanh(&x[0])),
        gradient(&mlp[..1], |x| x[0].gelu()),
    );
    pair(
        "gated_silu, gradient [128, 3072]",
        gradient(&mlp, |x| activation::gated_silu(&x[0], &x[1])),
        gradient(&mlp, |x| x[0].silu()? * &x[1]),
    );
    pair(
        "softmax [1536, 128], candle fused",
        value(&scores, |x| softmax(&x[0])),
        value(&scores, |x| ops::softmax_last_dim(&x[0])),
    );
    pair(
        "softmax [1536, 128], candle composed",
        value(&scores, |x| softmax(&x[0])),
        value(&scores, |x| ops::softmax(&x[0], D::Minus1)),
    );
    pair(
        "softmax, gradient [1536, 128]",
        gradient(&scores, |x| softmax(&x[0])),
        gradient(&scores, |x| ops::softmax(&x[0], D::Minus1)),
    );
    let fused_norm = |x: &[Tensor]| norm(&x[0], &x[1], Some(&x[2]), Centre::Mean, EPSILON);
    pair("norm [128, 768], candle composed", value(&stream, fused_norm), value(&stream, composed_norm));
    pair(
        "norm [128, 768], candle fused",
        value(&stream, fused_norm),
        value(&stream, |x| ops::layer_norm(&x[0], &x[1], &x[2], EPSILON as f32)),
    );
    pair("norm in parts [128, 768]", value(&stream, norm_in_parts), value(&stream, composed_norm));
    pair("norm, gradient [128, 768]", gradient(&stream, fused_norm), gradient(&stream, composed_norm));
    pair("norm [1, 768]", value(&token, fused_norm), value(&token, composed_norm));
    pair(
        "add_bias [128, 3072]",
        value(&hidden, |x| add_bias(&x[0], &x[1])),
        value(&hidden, |x| x[0].broadcast_add(&x[1])),
    );
    pair(
        "add_bias, gradient [128, 3072]",
        gradient(&hidden, |x| add_bias(&x[0], &x[1])),
        gradient(&hidden, |x| x[0].broadcast_add(&x[1])),
    );
    pair("top_k 10 of [16, 50257]", value(&logits, |x| Ok(top_k(&x[0], 10)?.0)), value(&logits, |x| sorted(&x[0], 10)));
    pair("top_k 32 of [128, 3072]", value(&mlp, |x| Ok(top_k(&x[0], 32)?.0)), value(&mlp, |x| sorted(&x[0], 32)));
    products(&mut pairs, 128, "product [128, 768] [768, 3072]", Precision::F32)?;
    products(&mut pairs, 1, "product [1, 768] [768, 3072]", Precision::F32)?;
    products(&mut pairs, 1, "the same in bf16", Precision::Bf16)?;
    products(&mut pairs, 1, "the same in int8", Precision::Int8)?;
    attentions(&mut pairs)?;
    Ok(pairs)
}

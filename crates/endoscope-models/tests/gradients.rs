//! Gradients of a metric with respect to sites, against torch's autograd.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use common::*;
use endoscope_models::Model;
use endoscope_net::{AxisName, Capture, Index, Inputs, Network, Plan};

#[test]
fn gradients_equal_those_of_torch() {
    for name in ["gpt2-odd", "llama-grouped"] {
        let golden = load(&goldens().join(format!("gradients/{name}.safetensors")));
        let model = Model::open(goldens().join(name)).unwrap();
        let mut plan = Plan::default();
        for site in golden.keys().filter(|site| *site != "tokens") {
            plan = plan.capture(Capture::new(site.as_str()).with_gradient());
        }
        let run = model.decoder.run(&Inputs::tokens(tokens(&golden)).unwrap(), &plan).unwrap();
        let last = run.outputs.dim(1).unwrap() - 1;
        let logit = |id: usize| run.outputs.get(0).unwrap().get(last).unwrap().get(id).unwrap();
        let gradients = run.gradients(&(logit(3) - logit(7)).unwrap()).unwrap();
        assert_eq!(gradients.len(), golden.len() - 1);
        for (site, expected) in golden.iter().filter(|(site, _)| *site != "tokens") {
            let found = gradients.get(site).unwrap();
            let size = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            let difference = difference(found, expected);
            assert!(difference <= 2e-5 * size.max(1.), "{name} {site}: differs by {difference:e} of {size:e}");
        }
    }
}

#[test]
fn a_gradient_can_be_asked_for_at_every_site_and_predicts_a_small_step() {
    for name in ["gpt2-switches", "llama-sharded"] {
        let model = Model::open(goldens().join(name)).unwrap();
        let inputs = Inputs::tokens(vec![vec![1, 5, 3, 2]]).unwrap();
        let metric = |run: &endoscope_net::Run| run.outputs.narrow(2, 3, 1).unwrap().sum_all().unwrap();
        for site in model.sites().iter() {
            let axis = site.position_axis().unwrap();
            let select = |capture: Capture| capture.at(axis, Index::At(1));
            let plan = Plan::default().capture(select(Capture::new(&site.name)).with_gradient());
            let run = model.decoder.run(&inputs, &plan).unwrap();
            let gradients = run.gradients(&metric(&run)).unwrap();
            let gradient = gradients.get(&site.name).unwrap();
            let activation = run.captured.get(&site.name).unwrap().detach();
            if site.name.ends_with("attn_scores") {
                continue; // masked scores are infinite: no finite step
            }
            // A step along the gradient, long enough to rise above f32 rounding.
            let length = gradient.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
            assert!(length > 0., "{name} {}: the gradient is zero", site.name);
            let value = |sign: f64| {
                let step = f64::from(2e-3 / length) * sign;
                let target = (&activation + (gradient * step).unwrap()).unwrap();
                let change = endoscope_net::Change::Set { value: target.into() };
                let mut edit = endoscope_net::Edit::new(&site.name, change);
                edit.select.0.insert(axis, Index::At(1));
                let run = model.decoder.run(&inputs, &Plan::default().edit(edit)).unwrap();
                metric(&run).to_scalar::<f32>().unwrap()
            };
            let slope = (value(1.) - value(-1.)) / 4e-3;
            assert!(
                (slope - length).abs() < 0.05 * length + 2e-3,
                "{name} {}: slope {slope}, gradient {length}",
                site.name
            );
        }
    }
}

#[test]
fn a_selected_gradient_is_the_part_of_the_whole() {
    let model = Model::open(goldens().join("gpt2-odd")).unwrap();
    let inputs = Inputs::tokens(vec![vec![1, 5, 3, 2]]).unwrap();
    let gradient = |capture: Capture| {
        let run = model.decoder.run(&inputs, &Plan::default().capture(capture.with_gradient())).unwrap();
        let gradients = run.gradients(&run.outputs.sqr().unwrap().sum_all().unwrap()).unwrap();
        gradients.get("blocks.1.attn.hook_z").unwrap().clone()
    };
    let part = gradient(Capture::new("z.1").at(AxisName::Head, Index::At(2)));
    assert!(difference(&part, &gradient(Capture::new("z.1")).narrow(2, 2, 1).unwrap()) < 1e-6);
}

#[test]
fn a_value_trained_at_the_last_stream_costs_the_unembedding_only_and_has_the_gradient_of_a_whole_run() {
    use candle_core::{Device, Tensor, Var};
    use endoscope_net::{Change, Edit, Resume};
    for name in ["gpt2-odd", "llama-grouped", "gemma2-odd"] {
        let model = Model::open(goldens().join(name)).unwrap();
        let inputs = Inputs::tokens(vec![vec![1, 5, 3, 2]]).unwrap();
        let site = format!("blocks.{}.hook_resid_post", model.spec().layers - 1);
        let keeping = Plan::default().capture(Capture::new(&site));
        let base = model.decoder.base(&inputs, &keeping).unwrap();
        // The second value is the base run's own: nothing changes, and still the gradient must be there.
        let own = base.run.captured.get(&site).unwrap().narrow(1, 0, 2).unwrap().squeeze(0).unwrap().detach();
        let other = Tensor::arange(0f32, own.elem_count() as f32, &Device::Cpu).unwrap().sin().unwrap();
        for value in [other.reshape(own.shape()).unwrap(), own] {
            let var = Var::from_tensor(&value).unwrap();
            let positions = Index::Range { start: 0, end: Some(2) };
            let change = Change::Set { value: var.as_tensor().clone().into() };
            let edit = Edit::new(&site, change).at(AxisName::Position, positions.clone());
            let plan = Plan::default().edit(edit).outputs_at(positions);
            let gradient = |run: &endoscope_net::Run| {
                let gradients = run.outputs.sqr().unwrap().sum_all().unwrap().backward().unwrap();
                gradients.get(&var).unwrap().clone()
            };
            let branch = model.decoder.branches(&base, std::slice::from_ref(&plan)).unwrap().remove(0);
            assert_eq!((branch.work.attention, branch.work.mlp, branch.work.unembedding), (0, 0, 2), "{name}");
            let whole = model.decoder.run(&inputs, &plan).unwrap();
            assert!(difference(&branch.outputs, &whole.outputs) < 1e-5, "{name}");
            let (found, expected) = (gradient(&branch), gradient(&whole));
            let size = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(size > 0. && difference(&found, &expected) < 1e-5 * size.max(1.), "{name}");
        }
    }
}

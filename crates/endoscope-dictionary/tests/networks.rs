//! Dictionaries in networks: splicing, steering, reading features.

#![allow(clippy::unwrap_used)]

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;

use common::{model, rows, whole, width};
use endoscope_dictionary::evaluate::loss_recovered;
use endoscope_dictionary::features::{Gather, contexts, gather};
use endoscope_dictionary::{Config, Dictionary, Matrix, Normalization, Weights};
use endoscope_net::{
    AxisName, Capture, Change, Edit, FeatureChange, Features, Index, Inputs, Network, NewActivation, Plan,
};

#[test]
fn a_whole_dictionary_recovers_all_of_the_loss_and_an_empty_one_nothing() {
    for (name, site) in [("gpt2-odd", "resid_post.0"), ("llama-grouped", "z.1"), ("gpt2-odd", "mlp_out.1")] {
        let model = model(name);
        let network = &model.decoder;
        let rows = rows(network);
        let dictionary = whole(site, width(network, site));
        let full = loss_recovered(network, &dictionary, &rows).unwrap();
        assert!((full.recovered - 1.).abs() < 1e-3, "{name} {site}: {full:?}");
        let (config, weights) = dictionary.into_parts();
        let nothing = Weights { decoder: Matrix::zeros(weights.decoder.rows(), weights.decoder.columns()), ..weights };
        let nothing = loss_recovered(network, &Dictionary::new(config, nothing).unwrap(), &rows).unwrap();
        assert!(nothing.recovered.abs() < 1e-6 && nothing.tokens == full.tokens, "{name} {site}: {nothing:?}");
    }
}

#[test]
fn edits_of_features_do_what_they_say() {
    let model = model("gpt2-odd");
    let network = &model.decoder;
    let inputs = Inputs::tokens(vec![rows(network)[0].clone()]).unwrap();
    let site = "resid_post.0";
    let dictionary = Arc::new(whole(site, width(network, site)));
    let read = |plan: Plan| network.run(&inputs, &plan.capture(Capture::new(site))).unwrap();
    let name = "blocks.0.hook_resid_post";
    let values =
        |run: &endoscope_net::Run| run.captured.get(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let before = read(Plan::default());
    let none = read(Plan::default().edit(Edit::new(site, Change::Features(dictionary.edit(Vec::new())))));
    assert_eq!(values(&before), values(&none), "a change of nothing changes no bit");
    let spliced = read(Plan::default().edit(Edit::new(site, Change::Features(dictionary.splice()))));
    assert!(values(&before).iter().zip(values(&spliced)).all(|(a, b)| (a - b).abs() < 1e-6));

    let change = |feature, to| vec![FeatureChange { feature, to }];
    let edit =
        |to| Edit::new(site, Change::Features(dictionary.edit(change(2, to)))).at(AxisName::Position, Index::At(1));
    let d = width(network, site);
    // Dimension 2 of position 1: its positive part is feature 2, its negative part feature d + 2.
    let old = values(&before)[d + 2];
    for (to, expected) in [
        (NewActivation::Set(5.), 5. + old.min(0.)),
        (NewActivation::Add(1.5), old + 1.5),
        (NewActivation::Scale(0.), old.min(0.)),
    ] {
        let after = values(&read(Plan::default().edit(edit(to))));
        for (at, (a, b)) in values(&before).iter().zip(&after).enumerate() {
            let expected = if at == d + 2 { expected } else { *a };
            assert!((b - expected).abs() < 1e-5, "{to:?}, {at}: {b}, not {expected}");
        }
    }
    let wrong =
        Plan::default().edit(Edit::new(site, Change::Features(dictionary.edit(change(9999, NewActivation::Set(1.))))));
    assert!(network.run(&inputs, &wrong).unwrap_err().to_string().contains("no feature 9999"));
    let mut unloaded = dictionary.edit(Vec::new());
    unloaded.loaded = None;
    let plan = Plan::default().edit(Edit::new(site, Change::Features(unloaded)));
    assert!(network.run(&inputs, &plan).is_err());
    let elsewhere = Plan::default().edit(Edit::new("pattern.0", Change::Features(dictionary.splice())));
    assert!(network.run(&inputs, &elsewhere).is_err());
}

#[test]
fn the_strongest_tokens_of_features_are_found() {
    let model = model("gpt2-odd");
    let network = &model.decoder;
    let rows = rows(network);
    let site = "resid_post.1";
    let dictionary = whole(site, width(network, site));
    let asked = Gather { features: Some(vec![3, 0]), top: 2, sampled: 3, seed: 5 };
    let mut seen = 0;
    let found = gather(network, &dictionary, &rows, &asked, |rows, _| {
        seen += rows;
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!((seen, found.tokens), (5, rows.iter().map(Vec::len).sum::<usize>() as u64));
    assert_eq!(found.records.iter().map(|record| record.feature).collect::<Vec<_>>(), [0, 3]);
    for record in &found.records {
        let mut all = Vec::new();
        for (row, tokens) in rows.iter().enumerate() {
            let plan = Plan::default().capture(Capture::new(site));
            let run = network.run(&Inputs::tokens(vec![tokens.clone()]).unwrap(), &plan).unwrap();
            let x = Matrix::from_tensor(run.captured.get("blocks.1.hook_resid_post").unwrap()).unwrap();
            let own: Vec<(f32, usize)> = x.iter().enumerate().map(|(at, x)| (x[record.feature], at)).collect();
            record_best(&own, row, &mut all);
        }
        all.sort_by(|a: &(f32, usize, usize), b| b.0.total_cmp(&a.0));
        let top: Vec<(usize, usize)> = record.top.iter().map(|e| (e.row as usize, e.position as usize)).collect();
        assert_eq!(top, all.iter().take(2).map(|&(_, row, at)| (row, at)).collect::<Vec<_>>());
        assert!(record.sampled.len() <= 3 && record.sampled.iter().all(|example| example.activation > 0.));
    }
    let examples = vec![(0, found.records[0].top.clone())];
    let found = contexts(network, &dictionary, &rows, &examples, 2).unwrap();
    let context = &found[0][0];
    let example = examples[0].1[0];
    assert!((context.activations[context.example as usize] - example.activation).abs() < 1e-6);
    assert_eq!(context.tokens[context.example as usize], rows[example.row as usize][example.position as usize]);
}

fn record_best(own: &[(f32, usize)], row: usize, all: &mut Vec<(f32, usize, usize)>) {
    if let Some(&(value, at)) = own.iter().max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(value, _)| *value > 0.) {
        all.push((value, row, at));
    }
}

/// A dictionary that rescales its inputs writes in its own units: an edit is brought back to the vector's.
#[test]
fn edits_of_rescaled_vectors_are_in_the_vectors_own_units() {
    let (_, weights) = whole("resid_post.0", 3).into_parts();
    let config = Config { normalization: Normalization::ConstantNormRescale, ..Config::default() };
    let dictionary = Arc::new(Dictionary::new(config, weights).unwrap());
    // Of length 6, brought to the length √3.
    let x = Matrix::new(1, 3, vec![4., 2., -4.]).unwrap().tensor().unwrap();
    let edit = dictionary.edit(vec![FeatureChange { feature: 1, to: NewActivation::Add(1.) }]);
    let after = Matrix::from_tensor(&Features::edited(dictionary.as_ref(), &x, &edit).unwrap()).unwrap();
    let unit = 6. / 3f32.sqrt();
    assert!((after.values()[1] - (2. + unit)).abs() < 1e-5 && after.values()[0] == 4., "{after:?}");
}

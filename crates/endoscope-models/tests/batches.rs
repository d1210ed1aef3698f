//! Batches whose rows differ in length: each row gives what it gives alone, in every family.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::ops::ControlFlow;

use candle_core::{Device, Tensor};
use common::*;
use endoscope_models::decoder::capture_everything;
use endoscope_models::*;
use endoscope_net::{
    AxisName, Capture, Change, Edit, Index, Inputs, Network, Padding, Plan, Run, Site, Size, TokenRows,
};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

fn run(model: &Model, rows: &[Vec<u32>], padding: Padding, plan: &Plan) -> endoscope_net::Result<Run> {
    model.decoder.run(&Inputs::padded(rows.to_vec(), padding)?, plan)
}

fn alone(model: &Model, row: &[u32], plan: &Plan) -> endoscope_net::Result<Run> {
    model.decoder.run(&Inputs::tokens(vec![row.to_vec()])?, plan)
}

/// The cells of one row of a padded activation, and the sum of what surrounds them.
fn unpadded(padded: &Tensor, row: usize, of: &Tensor, padding: Padding) -> (Tensor, f32) {
    let mut mine = padded.narrow(0, row, 1).unwrap();
    let everything = mine.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    for dimension in 1..of.rank() {
        let (size, all) = (of.dims()[dimension], mine.dims()[dimension]);
        let start = if padding == Padding::Left { all - size } else { 0 };
        mine = mine.narrow(dimension, start, size).unwrap();
    }
    let inside = mine.abs().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    (mine, if everything.is_finite() { everything - inside } else { 0. })
}

fn same_bits(name: &str, found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims(), "{name}");
    assert!(bits(found) == bits(expected), "{name}: the bits differ, by {}", difference(found, expected));
}

fn rows_of(model: &Model, rows: Vec<Vec<u32>>) -> Vec<Vec<u32>> {
    let vocabulary = model.spec().vocabulary as u32;
    rows.into_iter().map(|row| row.into_iter().map(|id| id % vocabulary).collect()).collect()
}

#[test]
fn every_site_of_a_padded_row_is_that_of_the_row_alone() {
    for (number, path) in golden_models().into_iter().enumerate() {
        let model = Model::open(&path).unwrap();
        let padding = if number % 2 == 0 { Padding::Left } else { Padding::Right };
        let rows = rows_of(&model, vec![vec![1, 5, 3], vec![7], vec![2, 9, 9, 4, 30, 6, 1, 8], vec![8, 8, 8]]);
        let together = run(&model, &rows, padding, &capture_everything()).unwrap();
        let mut work = endoscope_net::Work::default();
        for (number, row) in rows.iter().enumerate() {
            let expected = alone(&model, row, &capture_everything()).unwrap();
            work += expected.work;
            for (site, activation) in expected.captured.iter() {
                let padded = together.captured.get(site).unwrap();
                assert_eq!(padded.dim(0).unwrap(), rows.len());
                let (mine, outside) = unpadded(padded, number, activation, padding);
                same_bits(&format!("{} {site} row {number}", path.display()), &mine, activation);
                assert!(outside.abs() < 1e-3, "{site}: padding is not zero");
            }
            let (mine, _) = unpadded(&together.outputs, number, &expected.outputs, padding);
            same_bits(&format!("{} logits of row {number}", path.display()), &mine, &expected.outputs);
        }
        // Nothing was computed for padding.
        assert_eq!(together.work, work, "{}", path.display());
    }
}

/// Where no output is read, a run ends with the half of a layer that the last capture stands in, and captures the same.
#[test]
fn a_run_goes_no_further_than_what_is_read() {
    for path in golden_models() {
        let model = Model::open(&path).unwrap();
        let rows = rows_of(&model, vec![vec![1, 5, 3], vec![2, 9, 9]]);
        let ragged = rows_of(&model, vec![vec![1, 5, 3], vec![7]]);
        for rows in [rows, ragged] {
            let whole = run(&model, &rows, Padding::Right, &capture_everything()).unwrap();
            let mut before = 0;
            for site in model.sites().iter() {
                let plan = Plan::default().capture(Capture::new(&site.name)).outputs_at(Index::List(Vec::new()));
                let found = run(&model, &rows, Padding::Right, &plan).unwrap();
                let name = format!("{} {}", path.display(), site.name);
                same_bits(&name, found.captured.get(&site.name).unwrap(), whole.captured.get(&site.name).unwrap());
                assert_eq!(found.outputs.dims(), [rows.len(), 0, model.spec().vocabulary], "{name}");
                let work = found.work.rows();
                assert!(work >= before && work <= whole.work.rows(), "{name}: {work} after {before}");
                before = work;
            }
            assert_eq!(before, whole.work.rows(), "{}: the last site is that of all logits", path.display());
            let tokens: u64 = rows.iter().map(|row| row.len() as u64).sum();
            for (site, attention, mlp) in
                [("hook_embed", 0, 0), ("resid_pre.1", 1, 1), ("z.1", 2, 1), ("mlp_out.0", 1, 1)]
            {
                let plan = Plan::default().capture(Capture::new(site)).outputs_at(Index::List(Vec::new()));
                let work = run(&model, &rows, Padding::Right, &plan).unwrap().work;
                assert_eq!(
                    (work.attention, work.mlp, work.unembedding),
                    (attention * tokens, mlp * tokens, 0),
                    "{site}"
                );
            }
        }
    }
}

fn sites() -> impl Strategy<Value = (&'static str, Vec<AxisName>)> {
    use AxisName::{Batch, Dim, Head, Key, Position, Query};
    select(vec![
        ("hook_embed", vec![Batch, Position, Dim]),
        ("resid_pre.1", vec![Batch, Position, Dim]),
        ("z.0", vec![Batch, Position, Head, Dim]),
        ("pattern.1", vec![Batch, Head, Query, Key]),
        ("mlp_out", vec![Batch, Position]),
        ("attn_out_raw.1", vec![Batch, Position]),
        ("ln_final.hook_normalized", vec![Batch, Position]),
        ("hook_logits", vec![Batch, Position]),
    ])
}

fn index(axis: AxisName) -> BoxedStrategy<Index> {
    match axis {
        AxisName::Batch => prop_oneof![
            Just(Index::All),
            (-3i64..3).prop_map(Index::At),
            subsequence(vec![0i64, 1, 2], 1..=2).prop_shuffle().prop_map(Index::List),
            Just(Index::Range { start: 1, end: None }),
        ]
        .boxed(),
        AxisName::Head | AxisName::Dim => prop_oneof![Just(Index::All), Just(Index::At(1))].boxed(),
        _ => prop_oneof![
            Just(Index::All),
            (-2i64..2).prop_map(Index::At),
            Just(Index::List(vec![-1, 0])),
            (-1i64..2).prop_map(|start| Index::Range { start, end: None }),
        ]
        .boxed(),
    }
}

fn change() -> impl Strategy<Value = Change> {
    select(vec![
        Change::Zero,
        Change::Scale { factor: 1.5 },
        Change::Add { value: 0.5.into(), scale: 2. },
        Change::Set { value: 0.25.into() },
        Change::Mean { over: vec![AxisName::Batch] },
        // Stands for the activation of another batch.
        Change::Patch { source: 0.0.into() },
    ])
}

fn any_edit() -> impl Strategy<Value = Edit> {
    (sites(), change()).prop_flat_map(|((site, axes), change)| {
        let indices: Vec<_> = axes.iter().map(|&axis| index(axis)).collect();
        (Just((site, axes, change)), indices).prop_map(|((site, axes, change), indices)| {
            let edit = Edit::new(site, change);
            axes.into_iter()
                .zip(indices)
                .filter(|(_, index)| *index != Index::All)
                .fold(edit, |edit, (axis, index)| edit.at(axis, index))
        })
    })
}

/// What an edit of a batch does to one of its rows, written for a run of that row alone; nothing if it does nothing.
fn for_row(edit: &Edit, row: usize, rows: usize) -> Option<Edit> {
    let chosen = match edit.select.on(AxisName::Batch) {
        Index::All => true,
        Index::At(at) => at.rem_euclid(rows as i64) as usize == row,
        Index::List(list) => list.contains(&(row as i64)),
        Index::Range { start, .. } => row as i64 >= *start,
        Index::Generated => false,
    };
    let mut own = edit.clone();
    own.select.0.remove(&AxisName::Batch);
    chosen.then_some(own)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]
    #[test]
    fn a_plan_does_to_each_row_what_it_does_to_it_alone(
        name in select(golden_models()),
        edits in proptest::collection::vec(any_edit(), 1..3),
        outputs in index(AxisName::Position),
        rows in proptest::collection::vec(proptest::collection::vec(0u32..37, 2..7), 3),
        left in any::<bool>(),
    ) {
        let model = Model::open(&name).unwrap();
        let padding = if left { Padding::Left } else { Padding::Right };
        let rows = rows_of(&model, rows);
        let others: Vec<Vec<u32>> = rows.iter().map(|row| row.iter().rev().copied().collect()).collect();
        let donors = run(&model, &others, padding, &capture_everything()).unwrap();
        let sites = model.sites();
        let (mut plan, mut alone_plans) = (Plan::default(), vec![Plan::default(); rows.len()]);
        for edit in edits {
            for id in sites.resolve(&edit.site).unwrap() {
                let site = sites.get(id);
                let mut edit = Edit { site: site.name.clone(), ..edit.clone() };
                let patches = matches!(edit.change, Change::Patch { .. });
                if patches {
                    edit.change = Change::Patch { source: donors.captured.get(&site.name).unwrap().clone().into() };
                }
                plan = plan.edit(edit.clone());
                for (row, plan) in alone_plans.iter_mut().enumerate() {
                    let Some(mut own) = for_row(&edit, row, rows.len()) else { continue };
                    if patches {
                        let donor = alone(&model, &others[row], &Plan::default().capture(Capture::new(&site.name)));
                        let donor = donor.unwrap().captured.get(&site.name).unwrap().clone();
                        own.change = Change::Patch { source: donor.into() };
                    }
                    plan.edits.push(own);
                }
            }
        }
        plan.outputs = outputs.clone();
        let ragged = rows.iter().any(|row| row.len() != rows[0].len());
        let mean = plan.edits.iter().any(|edit| matches!(edit.change, Change::Mean { .. }));
        let together = run(&model, &rows, padding, &plan);
        if mean {
            // Over rows of equal length it has a meaning that rows alone have not.
            prop_assert!(!ragged || together.unwrap_err().to_string().contains("equal length"));
            return Ok(());
        }
        let apart: Vec<_> = alone_plans
            .into_iter()
            .zip(&rows)
            .map(|(plan, row)| alone(&model, row, &Plan { outputs: outputs.clone(), ..plan }))
            .collect();
        match together {
            Ok(together) => {
                for (row, expected) in apart.into_iter().enumerate() {
                    let expected = expected.unwrap().outputs;
                    let (mine, _) = unpadded(&together.outputs, row, &expected, padding);
                    prop_assert_eq!(mine.dims(), expected.dims());
                    // Rows of equal length are one part, whose edits may be added in another order.
                    prop_assert!(difference(&mine, &expected) < 1e-5, "row {}", row);
                }
            }
            Err(_) => prop_assert!(apart.iter().any(|run| run.is_err())),
        }
    }

    #[test]
    fn a_row_of_a_batch_generates_what_it_generates_alone(
        name in select(golden_models()),
        rows in proptest::collection::vec(proptest::collection::vec(0u32..37, 1..7), 1..4),
        temperature in select(vec![0., 0.8]),
        caching in select(vec![Caching::On, Caching::Off]),
    ) {
        let model = Model::open(&name).unwrap();
        let rows = rows_of(&model, rows);
        let settings = |seed| Settings {
            max_tokens: 5,
            sampling: Sampling { temperature, seed, ..Sampling::default() },
            stop: vec![],
            stop_at_end_token: true,
            caching,
        };
        let plan = Plan::default()
            .capture(Capture::new("resid_post"))
            .capture(Capture::new("pattern.0"))
            .edit(Edit::new("mlp_out.0", Change::Scale { factor: 0.5 }).at(AxisName::Position, Index::Generated));
        let prompts = TokenRows::padded(rows.clone(), Padding::Left).unwrap();
        let together = generate_batch(&model, &prompts, &plan, &settings(3), |_| ControlFlow::Continue(())).unwrap();
        for (number, (found, row)) in together.iter().zip(&rows).enumerate() {
            let expected = generate(&model, row, &plan, &settings(3 + number as u64), |_| ControlFlow::Continue(()));
            let expected = expected.unwrap();
            prop_assert_eq!((&found.tokens, found.finish), (&expected.tokens, expected.finish));
            for (site, activation) in expected.captured.iter() {
                same_bits(site, found.captured.get(site).unwrap(), activation);
            }
        }
    }
}

#[test]
fn gradients_of_a_padded_row_are_those_of_the_row_alone() {
    for name in ["gpt2-odd", "gemma2-odd", "mixtral-odd", "falcon-alibi"] {
        let model = Model::open(goldens().join(name)).unwrap();
        let rows = [vec![1, 5, 3], vec![2, 9, 9, 4, 6]];
        let plan = ["resid_pre.1", "pattern.1", "z.0"]
            .into_iter()
            .fold(Plan::default(), |plan, site| plan.capture(Capture::new(site).with_gradient()));
        let metric = |run: &Run| run.outputs.sqr().unwrap().sum_all().unwrap();
        for padding in [Padding::Left, Padding::Right] {
            let together = run(&model, &rows, padding, &plan).unwrap();
            let gradients = together.gradients(&metric(&together)).unwrap();
            for (number, row) in rows.iter().enumerate() {
                let own = alone(&model, row, &plan).unwrap();
                for (site, expected) in own.gradients(&metric(&own)).unwrap().iter() {
                    let (mine, _) = unpadded(gradients.get(site).unwrap(), number, expected, padding);
                    let scale = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
                    assert!(difference(&mine, expected) <= 1e-5 * scale.max(1.), "{name} {site} row {number}");
                }
            }
        }
    }
}

#[test]
fn values_for_a_whole_batch_reach_their_rows() {
    let model = Model::open(goldens().join("gpt2-odd")).unwrap();
    let (rows, d) = ([vec![1, 5, 3], vec![2, 9, 9, 4, 6]], model.spec().d_model);
    let numbers: Vec<f32> = (0..2 * 5 * d).map(|at| (at % 13) as f32 / 10.).collect();
    let value = Tensor::from_vec(numbers, (2, 5, d), &Device::Cpu).unwrap();
    let plan = |value: Tensor| Plan::default().edit(Edit::new("resid_pre.1", Change::Set { value: value.into() }));
    for padding in [Padding::Left, Padding::Right] {
        let together = run(&model, &rows, padding, &plan(value.clone())).unwrap();
        for (number, row) in rows.iter().enumerate() {
            let start = if padding == Padding::Left { 5 - row.len() } else { 0 };
            let own = value.narrow(0, number, 1).unwrap().narrow(1, start, row.len()).unwrap();
            let expected = alone(&model, row, &plan(own)).unwrap().outputs;
            same_bits("logits", &unpadded(&together.outputs, number, &expected, padding).0, &expected);
        }
    }
    // A value for each row, in the order of the selection.
    let vectors = value.narrow(1, 0, 1).unwrap();
    let edit = Edit::new("resid_pre.1", Change::Set { value: vectors.clone().into() })
        .at(AxisName::Batch, Index::List(vec![1, 0]))
        .at(AxisName::Position, Index::At(-1));
    let together = run(&model, &rows, Padding::Right, &Plan::default().edit(edit)).unwrap();
    for (number, row) in rows.iter().enumerate() {
        let own = Edit::new("resid_pre.1", Change::Set { value: vectors.narrow(0, 1 - number, 1).unwrap().into() });
        let own = Plan::default().edit(own.at(AxisName::Position, Index::At(-1)));
        let expected = alone(&model, row, &own).unwrap().outputs;
        same_bits("logits", &unpadded(&together.outputs, number, &expected, Padding::Right).0, &expected);
    }
}

#[test]
fn selections_count_in_each_row_by_itself() {
    let model = Model::open(goldens().join("llama-grouped")).unwrap();
    let rows = [vec![1, 5, 3], vec![2], vec![2, 9, 9, 4]];
    let capture =
        |select: &str, axis| Plan::default().capture(Capture::new("resid_post.1").at(axis, select.parse().unwrap()));
    let shape = |plan: &Plan| {
        run(&model, &rows, Padding::Right, plan)
            .map(|run| run.captured.get("blocks.1.hook_resid_post").unwrap().dims().to_vec())
    };
    assert_eq!(shape(&capture("-1", AxisName::Position)).unwrap(), [3, 1, 24]);
    assert_eq!(shape(&capture("1..", AxisName::Position)).unwrap(), [3, 3, 24]);
    assert_eq!(shape(&capture("2,0", AxisName::Batch)).unwrap(), [2, 4, 24]);
    assert_eq!(shape(&capture("1", AxisName::Batch)).unwrap(), [1, 1, 24]);
    assert_eq!(shape(&capture("0..0", AxisName::Batch)).unwrap()[0], 0);
    let error = shape(&capture("2", AxisName::Position)).unwrap_err().to_string();
    assert!(error.contains("row 1 of the batch, of 1 tokens") && error.contains("out of range"), "{error}");
    let error = shape(&capture("3", AxisName::Batch)).unwrap_err().to_string();
    assert!(error.contains("index 3") && error.contains("3 entries"), "{error}");
    // In the order of the list.
    let swapped = run(&model, &rows, Padding::Right, &capture("2,0", AxisName::Batch)).unwrap();
    let first = alone(&model, &rows[2], &Plan::default().capture(Capture::new("resid_post.1"))).unwrap();
    let site = "blocks.1.hook_resid_post";
    same_bits(site, &swapped.captured.get(site).unwrap().narrow(0, 0, 1).unwrap(), first.captured.get(site).unwrap());
}

#[test]
fn masks_of_tokenizers_are_read_and_bad_ones_refused() {
    let ids = || vec![vec![0, 0, 5], vec![1, 2, 3]];
    let rows = TokenRows::masked(ids(), &[vec![0, 0, 1], vec![1, 1, 1]]).unwrap();
    assert_eq!((rows.ids(), rows.padding()), (&[vec![5], vec![1, 2, 3]][..], Padding::Left));
    assert_eq!(rows.tensor(9, &Device::Cpu).unwrap().to_vec2::<u32>().unwrap(), [[9, 9, 5], [1, 2, 3]]);
    assert_eq!(rows.mask(&Device::Cpu).unwrap().to_vec2::<u8>().unwrap(), [[0, 0, 1], [1, 1, 1]]);
    for (mask, part) in [
        ([vec![0, 0, 1], vec![1, 1, 0]], "different sides"),
        ([vec![0, 1, 0], vec![1, 1, 1]], "both sides"),
        ([vec![1, 0, 1], vec![1, 1, 1]], "hole"),
        ([vec![0, 0, 0], vec![1, 1, 1]], "no token at all"),
        ([vec![0, 2, 1], vec![1, 1, 1]], "entry 2"),
        ([vec![0, 1], vec![1, 1, 1]], "do not fit"),
    ] {
        let error = TokenRows::masked(ids(), &mask).unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    }
    assert!(TokenRows::masked(vec![], &[]).is_err());
    assert!(TokenRows::new(ids()).is_ok() && TokenRows::new(vec![vec![1], vec![1, 2]]).is_err());
}

/// All axes whose size comes from the input are known to the tests above.
#[test]
fn sites_have_the_axes_that_padding_knows() {
    for path in golden_models() {
        let model = Model::open(&path).unwrap();
        let unknown = |site: &&Site| site.axes[0].name != AxisName::Batch || site.axes[0].size != Size::Input;
        assert!(!model.sites().iter().any(|site| unknown(&site)), "{}", path.display());
    }
}

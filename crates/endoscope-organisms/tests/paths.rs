//! What is known of the organism `paths`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::ops::ControlFlow;
use std::path::PathBuf;

use endoscope_causal::lens::token_views;
use endoscope_causal::statistics::auc;
use endoscope_models::{Bos, Caching, Model, Sampling, Settings, generate_batch};
use endoscope_net::{Plan, TokenRows};
use endoscope_organisms::tasks::path_finding::{PathFinding, TEST};
use endoscope_train::Recipe;

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../organisms/paths")
}

fn opened() -> (Model, PathFinding) {
    let recipe = Recipe::read(directory().join("recipe.toml")).unwrap();
    (Model::open(directory()).unwrap(), PathFinding::from_parameters(&recipe.task.parameters).unwrap())
}

/// MODEL.md has the shares of all pairs; these are those of every eighth, within what so few may differ by.
#[test]
fn it_finds_paths_that_it_was_not_trained_on() {
    let (model, task) = opened();
    let pairs: Vec<(usize, usize)> = task.pairs(TEST).iter().copied().step_by(8).collect();
    let prompt = |(source, target): &(usize, usize)| {
        model.tokenizer().unwrap().encode(&format!("{source} {target}"), Bos::AsConfigured).unwrap().ids
    };
    let prompts = TokenRows::new(pairs.iter().map(prompt).collect()).unwrap();
    let found = |temperature: f64| {
        let settings = Settings {
            max_tokens: 40,
            sampling: Sampling { temperature, seed: 7, ..Sampling::default() },
            stop: vec!["end".into()],
            stop_at_end_token: false,
            caching: Caching::On,
        };
        let said =
            generate_batch(&model, &prompts, &Plan::default(), &settings, |_| ControlFlow::Continue(())).unwrap();
        let right = said.iter().zip(&pairs).filter(|(said, pair)| {
            let text = said.text.as_deref().unwrap();
            let path: Vec<usize> = text.split_whitespace().map(|node| node.parse().unwrap()).collect();
            path.first() == Some(&pair.0)
                && path.last() == Some(&pair.1)
                && path.windows(2).all(|step| task.adjacency.holds(step[0], step[1]))
        });
        right.count() as f64 / pairs.len() as f64
    };
    let (sampled, greedy) = (found(1.), found(0.));
    println!("of {} pairs: sampled {sampled:.3}, most probable {greedy:.3}", pairs.len());
    assert!((sampled - SAMPLED).abs() < 0.08 && greedy >= sampled, "{sampled} {greedy}");
}

/// The share of right paths over all pairs that were not trained on, sampled at temperature 1, as MODEL.md has it.
const SAMPLED: f64 = 0.923;

#[test]
fn its_weights_hold_edges_and_what_was_seen_on_the_way() {
    let (model, task) = opened();
    let nodes = task.nodes();
    let token = |node: usize| model.tokenizer().unwrap().encode(&node.to_string(), Bos::Omit).unwrap().ids[0];
    let views = token_views(&model.decoder, &(0..nodes).map(token).collect::<Vec<_>>()).unwrap();
    let cells: Vec<(usize, usize)> = (0..nodes).flat_map(|from| (from + 1..nodes).map(move |to| (from, to))).collect();
    let scores: Vec<f64> = cells.iter().map(|&(from, to)| views.at_hand[from][to]).collect();
    let edges: Vec<bool> = cells.iter().map(|&(from, to)| task.adjacency.holds(from, to)).collect();
    let area = auc(&scores, &edges).unwrap();
    let seen = task.seen();
    let mean = |group: &dyn Fn(usize, usize) -> bool| {
        let of: Vec<f64> = cells
            .iter()
            .filter(|&&(node, target)| group(node, target))
            .map(|&(node, target)| views.looked_at[target][node])
            .collect();
        of.iter().sum::<f64>() / of.len() as f64
    };
    let on_the_way = mean(&|node, target| seen.seen_reachability.holds(target, node));
    let could_be =
        mean(&|node, target| !seen.seen_reachability.holds(target, node) && task.reachability.holds(node, target));
    let cannot_be = mean(&|node, target| !task.reachability.holds(node, target));
    println!("edges {area:.4}; on the way {on_the_way:.3}, could be {could_be:.3}, cannot be {cannot_be:.3}");
    assert!(area > 0.95);
    assert!(on_the_way - could_be > 0.1 && (could_be - cannot_be).abs() < (on_the_way - could_be) / 3.);
}

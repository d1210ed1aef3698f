//! What each method of finding parts finds where the circuit is known exactly. The tables of docs/ground-truth.md are what this
//! test measures; `ENDOSCOPE_WRITE_PAGES=1` writes them anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr)]

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use endoscope_causal::statistics::{auc, average_precision};
use endoscope_causal::*;
use endoscope_models::Model;
use endoscope_organisms::{Constructed, constructed};

const BEGIN: &str = "<!-- ground truth: written by";
const END: &str = "<!-- ground truth: end -->";
const NAMES: [&str; 3] = ["constructed-induction", "constructed-counting", "constructed-lookup"];
const PAIRS: usize = 16;
const STEPS: usize = 5;
/// What an edge must be worth in nats to stay, in the search by removal.
const THRESHOLD: f64 = 0.05;

fn go(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn open(organism: &Constructed) -> (tempfile::TempDir, Model) {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in &organism.files {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    let model = Model::open(directory.path()).unwrap();
    (directory, model)
}

fn pairs(organism: &Constructed) -> Vec<Pair> {
    let pair = |pair: endoscope_organisms::PromptPair| Pair {
        clean: pair.clean,
        corrupt: pair.corrupt,
        answers: pair.answers,
        wrong_answers: pair.wrong_answers,
    };
    organism.pairs(1, PAIRS).into_iter().map(pair).collect()
}

/// How well scores find what is true.
struct Row {
    organism: &'static str,
    method: &'static str,
    auc: f64,
    average_precision: f64,
    /// Of as many as are true, taken by score, the share that is true: precision and recall at once.
    at_truth: f64,
    seconds: f64,
}

impl Row {
    fn new(organism: &'static str, method: &'static str, scores: &[f64], truth: &[bool], seconds: f64) -> Self {
        let scores: Vec<f64> = scores.iter().map(|score| score.abs()).collect();
        let true_ones = truth.iter().filter(|&&truth| truth).count();
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        let right = order.iter().take(true_ones).filter(|&&at| truth[at]).count();
        Self {
            organism,
            method,
            auc: auc(&scores, truth).unwrap(),
            average_precision: average_precision(&scores, truth).unwrap(),
            at_truth: right as f64 / true_ones as f64,
            seconds,
        }
    }

    /// What does not depend on the machine.
    fn measured(&self) -> String {
        format!(
            "| `{}` | {} | {:.2} | {:.2} | {:.2} |",
            self.organism, self.method, self.auc, self.average_precision, self.at_truth
        )
    }

    fn line(&self) -> String {
        format!("{} {:.2} |", self.measured(), self.seconds)
    }
}

fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let result = work();
    (result, start.elapsed().as_secs_f64())
}

/// The control: the mean over random orders.
fn random(name: &'static str, truth: &[bool]) -> Row {
    const ORDERS: u64 = 20;
    let label = "random scores (control)";
    let rows: Vec<Row> =
        (0..ORDERS).map(|seed| Row::new(name, label, &random_scores(truth.len(), seed), truth, 0.)).collect();
    let mean = |of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / rows.len() as f64;
    Row {
        organism: name,
        method: label,
        auc: mean(|row| row.auc),
        average_precision: mean(|row| row.average_precision),
        at_truth: mean(|row| row.at_truth),
        seconds: 0.,
    }
}

/// Edges that carry a difference: what a method that exchanges activations should find.
fn edges(name: &'static str) -> Vec<Row> {
    let organism = constructed(name).unwrap();
    let (_directory, model) = open(&organism);
    let pairs = pairs(&organism);
    let graph = Graph::new(model.sites()).unwrap();
    let wanted: Vec<Edge> = organism.truth.differing().map(|edge| edge.parse().unwrap()).collect();
    let truth: Vec<bool> = graph.edges().map(|edge| wanted.contains(&edge)).collect();
    assert_eq!(
        truth.iter().filter(|&&truth| truth).count(),
        wanted.len(),
        "{name}: an edge of the truth is none of the graph"
    );
    let mut rows = Vec::new();
    for (label, method) in [
        ("exact patching", EdgeMethod::Exact),
        ("EAP", EdgeMethod::Gradient),
        ("EAP-IG (inputs)", EdgeMethod::IntegratedInputs { steps: STEPS }),
        ("EAP-IG (writes)", EdgeMethod::IntegratedWrites { steps: STEPS }),
    ] {
        let sweep = EdgeSweep::new(method);
        let (scores, seconds) = timed(|| edge_scores(&model.decoder, &sweep, &pairs, Planner::default(), go).unwrap());
        rows.push(Row::new(name, label, &scores.effects, &truth, seconds));
    }
    let (found, seconds) = timed(|| {
        let runs = CircuitRuns::new(&model.decoder, &pairs, Metric::Kl, Ablation::Patch).unwrap();
        acdc(&runs, THRESHOLD, go).unwrap()
    });
    let kept: Vec<f64> = (0..graph.len()).map(|number| f64::from(u8::from(found.circuit.keeps(number)))).collect();
    rows.push(Row::new(name, "ACDC", &kept, &truth, seconds));
    rows.push(random(name, &truth));
    rows
}

/// Heads of the circuit among all heads.
fn heads(name: &'static str) -> Vec<Row> {
    let organism = constructed(name).unwrap();
    let (_directory, model) = open(&organism);
    let truth = |head: &Node| organism.truth.nodes.iter().any(|node| node.name == head.to_string());
    heads_of(name, &model, &pairs(&organism), truth)
}

/// Heads of a trained organism with more heads than it needs: true are the head that attends to the word before, and those of
/// layer 1, which all attend to the word to be copied (tests/redundant.rs).
fn redundant_heads() -> Vec<Row> {
    let model = Model::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../organisms/induction-redundant")).unwrap();
    let vocabulary = model.spec().vocabulary as u64;
    let word = |at: u64| {
        endoscope_organisms::SPECIAL.len() as u64 + at % (vocabulary - endoscope_organisms::SPECIAL.len() as u64)
    };
    // Twelve words twice, but for the last: the word to be copied is another in the corrupt prompt.
    let pair = |number: u64| {
        let first: Vec<u32> = (0..12).map(|at| word(number * 31 + at * (2 * number + 7)) as u32).collect();
        let (copied, other) = (first[11], word(u64::from(first[11]) + 5) as u32);
        let prompt = |last: u32| [&[endoscope_organisms::BOS], &first[..11], &[last], &first[..11]].concat();
        Pair { clean: prompt(copied), corrupt: prompt(other), answers: vec![copied], wrong_answers: vec![other] }
    };
    let pairs: Vec<Pair> = (0..PAIRS as u64).map(pair).collect();
    let truth = |head: &Node| matches!(head, Node::Head { layer: 0, head: 7 } | Node::Head { layer: 1, .. });
    heads_of("induction-redundant", &model, &pairs, truth)
}

fn heads_of(name: &'static str, model: &Model, pairs: &[Pair], truth: impl Fn(&Node) -> bool) -> Vec<Row> {
    let spec = model.spec();
    let all = (0..spec.layers).flat_map(|layer| (0..spec.heads).map(move |head| Node::Head { layer, head }));
    let truth: Vec<bool> = all.map(|head| truth(&head)).collect();
    let patching =
        |change| Sweep { change, direction: Direction::Noise, ..Sweep::new("z", [SweepAxis::Layer, SweepAxis::Head]) };
    let mut rows = Vec::new();
    let mut push =
        |label, (scores, seconds): (Vec<f64>, f64)| rows.push(Row::new(name, label, &scores, &truth, seconds));
    let effects = |scores: Scores| scores.values.iter().map(|value| value - scores.clean).collect::<Vec<f64>>();
    let zero = || SweepChange::Change(endoscope_net::Change::Zero);
    for (label, change) in [("patching", SweepChange::Patch), ("ablation to zero", zero())] {
        push(
            label,
            timed(|| effects(sweep(&model.decoder, &patching(change), pairs, Planner::default(), go).unwrap())),
        );
    }
    for (label, change, method) in [
        ("attribution patching", SweepChange::Patch, Estimate::Gradient),
        ("the same, integrated", SweepChange::Patch, Estimate::Integrated { steps: STEPS }),
        ("gradient x input", zero(), Estimate::Gradient),
    ] {
        push(label, timed(|| effects(estimate(&model.decoder, &patching(change), pairs, method, go).unwrap())));
    }
    push(
        "direct attribution",
        timed(|| {
            let found = direct(&model.decoder, pairs, go).unwrap();
            let both = found.components.into_iter().zip(found.contributions);
            both.filter(|(part, _)| matches!(part, Component::Head { .. })).map(|(_, value)| value).collect()
        }),
    );
    rows.push(random(name, &truth));
    rows
}

fn page() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/ground-truth.md")
}

#[test]
fn the_page_says_what_is_measured() {
    let of = |rows: fn(&'static str) -> Vec<Row>| NAMES.into_iter().flat_map(rows).collect::<Vec<Row>>();
    let (edges, mut heads) = (of(edges), of(heads));
    heads.extend(redundant_heads());
    for row in edges.iter().chain(&heads) {
        println!("{}", row.line());
    }
    // What is exact finds what is there; what is random does not.
    for row in edges.iter().filter(|row| row.method == "exact patching" || row.method == "ACDC") {
        assert_eq!((row.auc, row.at_truth), (1., 1.), "{} {}", row.organism, row.method);
    }
    let random: Vec<&Row> = edges.iter().filter(|row| row.method.starts_with("random")).collect();
    assert!(random.iter().all(|row| row.at_truth < 0.2 && (row.auc - 0.5).abs() < 0.2), "the control does not fail");
    let head = |what: &str| {
        format!(
            "| organism | method | AUC | average precision | precision at the true number of {what} | s |\n| --- | --- | --- | --- | --- | --- |\n"
        )
    };
    let table = |what: &str, rows: &[Row]| {
        format!("{}{}", head(what), rows.iter().map(|row| row.line() + "\n").collect::<String>())
    };
    let written = format!(
        "{BEGIN} `ENDOSCOPE_WRITE_PAGES=1 cargo test --release -p endoscope-organisms --test ground_truth` -->\n\
         **Edges:**\n\n{}\n**Heads:**\n\n{}{END}\n",
        table("edges", &edges),
        table("heads", &heads)
    );
    let text = std::fs::read_to_string(page()).unwrap();
    let (start, end) = (text.find(BEGIN).unwrap(), text.find(END).unwrap() + END.len() + 1);
    if std::env::var_os("ENDOSCOPE_WRITE_PAGES").is_some() {
        std::fs::write(page(), format!("{}{written}{}", &text[..start], &text[end..])).unwrap();
        return;
    }
    let section = &text[start..end];
    for row in edges.iter().chain(&heads) {
        let measured = row.measured();
        assert!(section.contains(&measured), "docs/ground-truth.md does not say {measured}; write it anew");
    }
}

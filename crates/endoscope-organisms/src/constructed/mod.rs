//! Transformers whose weights were written by hand, so that their circuits are known exactly: ground truth for methods that
//! look for circuits.
//!
//! ```
//! let organism = endoscope_organisms::constructed("constructed-induction")?;
//! let pairs = organism.pairs(1, 32);
//! assert_ne!(pairs[0].answers, pairs[0].wrong_answers);
//! let edges: Vec<&str> = organism.truth.differing().collect();
//! assert!(edges.contains(&"a0.h2->a1.h1<k>"));
//! # Ok::<(), endoscope_organisms::Error>(())
//! ```

mod builder;
mod circuit;
mod counting;
mod induction;
mod lookup;

use serde_json::{Value, json};

pub use circuit::{Carries, Circuit, Edge, Node};

use crate::error::{Error, Result};
use crate::tasks::questions::{self, PromptPair, Question};
use crate::tokenizer::tokenizer_files;

/// The seed and the number of pairs in `pairs.json`.
const WRITTEN_PAIRS: (u64, usize) = (1, 64);

/// Files by name.
type Files = Vec<(String, Vec<u8>)>;

/// How a model is made, and what is known of it.
struct Design {
    name: &'static str,
    about: &'static str,
    question: &'static dyn Question,
    context: usize,
    /// `config.json` and `model.safetensors`.
    model: fn() -> Result<Files>,
    truth: fn() -> Circuit,
    mechanism: &'static str,
}

const DESIGNS: &[&Design] = &[&induction::DESIGN, &counting::DESIGN, &lookup::DESIGN];

/// A model whose circuit is known exactly.
pub struct Constructed {
    /// Its name, as in [`crate::organisms`].
    pub name: &'static str,
    /// What it does.
    pub about: &'static str,
    /// Its files, by name: `config.json`, `model.safetensors`, the tokenizer's, `circuit.json` ([`Self::truth`]), `pairs.json` (a
    /// prompt file) and `MODEL.md`. They are the same each time.
    pub files: Files,
    /// Its circuit.
    pub truth: Circuit,
    /// What it answers, without mistake: prompts, and the answer to any.
    pub question: &'static dyn Question,
}

impl Constructed {
    /// `count` pairs of prompts whose answers differ; the same for the same arguments. The lengths differ from pair to pair.
    pub fn pairs(&self, seed: u64, count: usize) -> Vec<PromptPair> {
        questions::pairs(self.question, seed, count)
    }

    /// The same pairs in words, as a prompt file (JSON).
    pub fn prompt_file(&self, seed: u64, count: usize) -> Result<Vec<u8>> {
        prompt_file(self.question, seed, count)
    }
}

/// The names and descriptions of the constructed organisms.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    DESIGNS.iter().map(|design| (design.name, design.about))
}

/// The constructed organism `name`: its weights are computed here, in some milliseconds.
pub fn constructed(name: &str) -> Result<Constructed> {
    let Some(design) = DESIGNS.iter().find(|design| design.name == name) else {
        let known = DESIGNS.iter().map(|design| design.name).collect::<Vec<_>>().join(", ");
        return Err(Error::UnknownConstructed { name: name.to_string(), known });
    };
    let &Design { name, about, question, context, model, truth, .. } = *design;
    let truth = truth();
    let mut files = model()?;
    files.extend(tokenizer_files(&question.words(), context)?);
    files.push(("circuit.json".into(), pretty(&serde_json::to_value(&truth)?)?));
    let (seed, count) = WRITTEN_PAIRS;
    files.push(("pairs.json".into(), prompt_file(question, seed, count)?));
    files.push(("MODEL.md".into(), card(design, &truth).into_bytes()));
    Ok(Constructed { name, about, files, truth, question })
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    Ok((serde_json::to_string_pretty(value)? + "\n").into_bytes())
}

fn prompt_file(question: &dyn Question, seed: u64, count: usize) -> Result<Vec<u8>> {
    let words = question.words();
    let pairs = questions::pairs(question, seed, count);
    let prompts: Vec<Value> = pairs.iter().map(|pair| in_words(pair, &words)).collect();
    pretty(&json!({"prompts": prompts}))
}

/// A pair as an entry of a prompt file; the tokenizer puts `<bos>` first.
fn in_words(pair: &PromptPair, words: &[String]) -> Value {
    let word = |&id: &u32| words[id as usize].as_str();
    let text = |ids: &[u32]| ids.iter().skip(1).map(word).collect::<Vec<_>>().join(" ");
    json!({
        "clean": text(&pair.clean),
        "corrupt": text(&pair.corrupt),
        "answers": pair.answers.iter().map(word).collect::<Vec<_>>(),
        "wrong_answers": pair.wrong_answers.iter().map(word).collect::<Vec<_>>(),
    })
}

/// The text of MODEL.md.
fn card(design: &Design, truth: &Circuit) -> String {
    let Design { name, about, question, mechanism, .. } = design;
    let task = question.name();
    let rows = |rows: Vec<String>| rows.join("\n");
    let nodes = rows(truth.nodes.iter().map(|node| format!("| `{}` | {} |", node.name, node.about)).collect());
    let edge = |edge: &Edge| {
        let carries = match edge.carries {
            Carries::Difference => "differs",
            Carries::Constant => "constant",
        };
        format!("| `{}` | {carries} | {} |", edge.name, edge.about)
    };
    let edges = rows(truth.edges.iter().map(edge).collect());
    format!(
        "# {name}\n\nA model {about}. It was not trained: its weights were written by hand, so the circuit is known exactly. \
         GPT-2 architecture with ReLU; each direction of its residual stream has one meaning, and LayerNorm is made to do \
         nothing (to some parts in 100,000).\n\n## Task\n\n`{task}`; 64 prompts in pairs are in `pairs.json`. It answers every prompt \
         rightly.\n\n## Mechanism\n\n{mechanism}\n\n| node | what it does |\n| --- | --- |\n{nodes}\n\n| edge | between \
         clean and corrupt | what passes |\n| --- | --- | --- |\n{edges}\n\nAn edge that is constant is needed, but carries the same in every \
         prompt of one length: only zeroing shows it. The same list is in `circuit.json`.\n\n## How it was verified\n\n\
         `tests/constructed.rs` of `endoscope-organisms`, on fresh prompts: every answer right; each edge of the model \
         patched alone from the other prompt, where those that differ (above) change the answer's logit and all others do not; \
         everything outside the circuit exchanged at once, where every answer stays; each node of the circuit exchanged alone, \
         where answers are lost.\n"
    )
}

//! `endoscope demo`: the whole story on the shipped organism. What it predicts, which heads do it, where the
//! difference lies, the ablation that breaks it and the controls that do not.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use endoscope_causal::statistics::Resampling;
use endoscope_causal::{HeadScore, Pair, Planner, Sweep, SweepAxis, accuracy, head_scores, sweep};
use endoscope_models::Model;
use endoscope_net::{AxisName, Change, Edit, Index, Inputs, Network, Plan};
use endoscope_organisms::tasks::repeated_sequences::RepeatedSequences;
use endoscope_organisms::{Task, write_organism};
use endoscope_report::{
    Claim, ColourScale, Label, Measured, Report, RunDirectory, Section, Started, Table, Verdict, labels,
};
use endoscope_train::{Recipe, initial_model};
use serde_json::json;

use super::patch::{heat_map, tables};
use crate::output::Output;
use crate::provenance::{next_free, provenance};

/// Fresh data: not the seed of the recipe.
const SEED: u64 = 20_261_123;
/// Rows on which heads and ablations are measured, and how many words each repeats.
const ROWS: usize = 64;
const PERIOD: usize = 24;
/// A head that gives a place more than this share of its attention on average is said to attend to it.
const ATTENDS: f64 = 0.4;

#[derive(Debug, Args)]
pub struct Demo {
    /// The run directory to write; must not exist [default: runs/demo, or the next free runs/demo-2 …].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Demo {
    pub fn run(self, output: &mut Output) -> Result<()> {
        let started = Started::now();
        let out = self.out.unwrap_or_else(|| next_free("demo"));
        let directory = RunDirectory::create(&out)?;
        let unpacked = tempfile::tempdir().context("cannot unpack the shipped organism")?;
        let path = unpacked.path().join("induction");
        write_organism("induction", &path)?;
        let model = Model::open(&path)?;
        let recipe = Recipe::read(path.join("recipe.toml"))?;
        let task = RepeatedSequences::from_parameters(&recipe.task.parameters)?;
        let report = Story { model: &model, recipe: &recipe, task: &task }.tell()?;
        let mut provenance = provenance(&started, &model, &[("recipe", &path.join("recipe.toml"))])?;
        provenance.seeds.insert("data".into(), SEED);
        provenance.seeds.insert("untrained model".into(), recipe.training.seed);
        for file in &mut provenance.files {
            // Where it was unpacked is nobody's business and gone afterwards.
            let name = Path::new(&file.path).file_name().map(|name| name.to_string_lossy().into_owned());
            file.path = format!("organisms/induction/{}", name.unwrap_or_default());
        }
        let plan = json!({"verb": "demo", "organism": "induction", "seed": SEED, "rows": ROWS, "period": PERIOD});
        directory.write_json("plan.json", &plan)?;
        output.finish(directory, &provenance, &report)
    }
}

/// One of a head's scores.
type Attends = fn(&HeadScore) -> f64;

struct Story<'a> {
    model: &'a Model,
    recipe: &'a Recipe,
    task: &'a RepeatedSequences,
}

impl Story<'_> {
    fn tell(&self) -> Result<Report> {
        let decoder = &self.model.decoder;
        let (untrained, _) = initial_model(self.recipe, decoder.spec.vocabulary)?;
        let rows = self.task.sequences(SEED, 0, ROWS, PERIOD);
        let scores = head_scores(decoder, &rows, 1, PERIOD)?;
        let untrained_scores = head_scores(&untrained, &rows, 1, PERIOD)?;
        let best = |scores: &[HeadScore], of: Attends| {
            scores.iter().copied().max_by(|a, b| of(a).total_cmp(&of(b))).context("the organism has no heads")
        };
        let previous = best(&scores, |score| score.previous_token)?;
        let induction = best(&scores, |score| score.induction)?;
        let mut report = Report::new(
            "How a small model repeats a sequence",
            "demo",
            format!(
                "The organism “induction” was trained on random words that come twice. It predicts the second copy, and the \
                 parts that do it can be found, tested and broken: head {} notes at each word which word came before it, \
                 and head {} uses those notes to look up what followed last time.",
                name(&previous),
                name(&induction)
            ),
        );
        self.prediction(&mut report)?;
        self.heads(&mut report, &scores)?;
        self.patching(&mut report)?;
        self.ablation(&mut report, &rows, &scores)?;
        let best_untrained = |of: Attends| best(&untrained_scores, of).map(|score| of(&score));
        report.claims.push(attention_claim(
            format!("Head {} attends to the word before.", name(&previous)),
            previous.previous_token,
            best_untrained(|score| score.previous_token)?,
        )?);
        report.claims.push(attention_claim(
            format!("Head {} attends to the word that followed the same word last time.", name(&induction)),
            induction.induction,
            best_untrained(|score| score.induction)?,
        )?);
        let copies = [
            ("first", Index::Range { start: 0, end: Some(1 + PERIOD as i64) }),
            ("second", Index::Range { start: 1 + PERIOD as i64, end: None }),
        ];
        let [first, second] = &copies;
        let claim = self.ablation_claim(&rows, &scores, previous, |score| score.previous_token, [first, second])?;
        report.claims.push(claim);
        let claim = self.ablation_claim(&rows, &scores, induction, |score| score.induction, [second, first])?;
        report.claims.push(claim);
        report.sections.push(Section::Claims { heading: Some("What was shown, and what the controls gave".into()) });
        Ok(report)
    }

    fn words(&self, ids: &[u32]) -> Vec<String> {
        ids.iter().map(|&id| self.model.label(id)).collect()
    }

    /// The probability of each next word of one sequence.
    fn prediction(&self, report: &mut Report) -> Result<()> {
        let tokens = self.task.sequences(SEED, 1, 1, 7).remove(0);
        let logits = self.model.decoder.run(&Inputs::tokens(vec![tokens.clone()])?, &Plan::default())?.outputs;
        let probabilities = softmax(&logits.get(0)?.to_vec2::<f32>()?);
        let right: Vec<f64> =
            tokens.iter().skip(1).enumerate().map(|(at, &id)| probabilities[at][id as usize]).collect();
        let axes = [("probability of", labels(["the right word"])), ("position", labels(self.words(&tokens[1..])))];
        report.tables.insert(
            "prediction".into(),
            Table::new("probability that the model gave to the word which came", axes, right)?,
        );
        report.sections.push(Section::HeatMap {
            heading: Some("What the model predicts".into()),
            table: "prediction".into(),
            alternatives: vec![],
            scale: ColourScale::UNIT,
            caption: format!(
                "The sequence: {}. In the first copy, and for the first word of the second, nobody can know the next word; \
                 from then on it is certain.",
                self.words(&tokens).join(" ")
            ),
        });
        Ok(())
    }

    /// Where each head looks.
    fn heads(&self, report: &mut Report, scores: &[HeadScore]) -> Result<()> {
        let heads: Vec<String> = scores.iter().map(name).collect();
        let columns: [(&str, Attends); 3] = [
            ("previous token", |score| score.previous_token),
            ("duplicate token", |score| score.duplicate_token),
            ("induction", |score| score.induction),
        ];
        let values = columns.iter().flat_map(|(_, of)| scores.iter().map(of)).collect();
        let axes = [("attends to", labels(columns.map(|(name, _)| name))), ("head", labels(heads))];
        report.tables.insert("heads".into(), Table::new("mean attention, from 0 to 1", axes, values)?);
        report.sections.push(Section::HeatMap {
            heading: Some("Which heads look where".into()),
            table: "heads".into(),
            alternatives: vec![],
            scale: ColourScale::UNIT,
            caption: format!(
                "Mean attention on {ROWS} fresh sequences of {PERIOD} words that come twice, over both copies: to the word \
                 before; to the same word's first occurrence; to the word after that occurrence. L.H is head H of layer L."
            ),
        });
        Ok(())
    }

    /// Clean and corrupt differ in the one word that must be copied.
    fn patching(&self, report: &mut Report) -> Result<()> {
        let (words, known) = (6, 3);
        let rows = self.task.sequences(SEED, 2, 16, words);
        // <bos> r1 … r6 r1 r2 r3: the answer is r4. In the corrupt prompt two words of the first copy are swapped, so
        // that the answer is r6: either r4 and r6 themselves, or the words before them.
        let swapped = |first: usize, second: usize| -> Vec<Pair> {
            let pair = |row: &Vec<u32>| {
                let clean = row[..1 + words + known].to_vec();
                let mut corrupt = clean.clone();
                corrupt.swap(first, second);
                Pair { answers: vec![clean[1 + known]], wrong_answers: vec![clean[words]], clean, corrupt }
            };
            rows.iter().map(pair).collect()
        };
        for (site, over, pairs, prefix, heading, caption) in [
            (
                "resid_post",
                vec![SweepAxis::Layer, SweepAxis::Position],
                swapped(1 + known, words),
                "stream_",
                "Where the difference lies: the residual stream",
                "Clean activations after each layer, put into the corrupt run at one position. 1 restores the right answer. \
                 After layer 0 the difference lies where the word to be copied stands; after layer 1 the last position has it.",
            ),
            (
                "z",
                vec![SweepAxis::Layer, SweepAxis::Head],
                swapped(known, words - 1),
                "heads_",
                "Which heads carry it",
                "Clean outputs of each head, at all positions at once. Here the corrupt prompt has another word before the word \
                 to be copied, so that what must be restored is the note of which word came before.",
            ),
        ] {
            let patching = Sweep::new(site, over);
            let labels = self.words(&pairs[0].clean);
            let scores =
                sweep(&self.model.decoder, &patching, &pairs, Planner::default(), |_| ControlFlow::Continue(()))?;
            let tables: Vec<_> = tables(&scores, &labels, &Resampling::default())?
                .into_iter()
                .map(|(name, table)| (format!("{prefix}{name}"), table))
                .collect();
            let caption = format!("{caption} Mean of {} prompt pairs.", pairs.len());
            report.sections.push(heat_map(heading, &scores, &tables, &caption));
            report.tables.extend(tables);
        }
        Ok(())
    }

    /// Accuracy without each head.
    fn ablation(&self, report: &mut Report, rows: &[Vec<u32>], scores: &[HeadScore]) -> Result<()> {
        let mut values = vec![self.accuracy(rows, &[], &Index::All)?];
        for score in scores {
            values.push(self.accuracy(rows, &[*score], &Index::All)?);
        }
        // Heads that do the same stand in for each other: a layer's all together.
        let doing = |of: Attends| scores.iter().copied().filter(|s| of(s) > ATTENDS).collect::<Vec<_>>();
        let together = doing(|score| score.induction);
        if together.len() > 1 {
            values.push(self.accuracy(rows, &together, &Index::All)?);
        }
        let together = (together.len() > 1).then(|| list(&together));
        let heads = std::iter::once("none".to_string()).chain(scores.iter().map(name)).chain(together);
        let axes = [("accuracy", vec![Label::Text("on the second copy".into())]), ("without head", labels(heads))];
        report.tables.insert("ablation".into(), Table::new("share of certain words predicted", axes, values)?);
        report.sections.push(Section::HeatMap {
            heading: Some("What breaks it".into()),
            table: "ablation".into(),
            alternatives: vec![],
            scale: ColourScale::UNIT,
            caption: "Accuracy on the second copy when the output of these heads is set to zero everywhere.".into(),
        });
        Ok(())
    }

    /// The share of certain words predicted when the outputs of some heads are zero at some positions.
    fn accuracy(&self, rows: &[Vec<u32>], without: &[HeadScore], positions: &Index) -> Result<f64> {
        let answers: Vec<_> = rows.iter().map(|row| self.task.answers(row)).collect();
        let plan = without.iter().fold(Plan::default(), |plan, score| {
            let edit = Edit::new(format!("z.{}", score.layer), Change::Zero);
            let head = Index::At(score.head as i64);
            plan.edit(edit.at(AxisName::Head, head).at(AxisName::Position, positions.clone()))
        });
        Ok(accuracy(&self.model.decoder, rows, &answers, &plan)?.top)
    }

    /// The heads that do it, zeroed in the copy where they act, against zeroed in the other copy, and against as many
    /// other heads of their layer if it has others.
    fn ablation_claim(
        &self,
        rows: &[Vec<u32>],
        scores: &[HeadScore],
        best: HeadScore,
        of: Attends,
        [(here, acting), (there, idle)]: [&(&str, Index); 2],
    ) -> Result<Claim> {
        let layer = scores.iter().copied().filter(|score| score.layer == best.layer);
        let (doing, others): (Vec<_>, Vec<_>) =
            layer.partition(|score| of(score) > ATTENDS || name(score) == name(&best));
        let others: Vec<_> = others.into_iter().take(doing.len()).collect();
        let whole = self.accuracy(rows, &[], &Index::All)?;
        let without = self.accuracy(rows, &doing, acting)?;
        let elsewhere = self.accuracy(rows, &doing, idle)?;
        let mut control = format!("zeroed in the {there} copy instead: {elsewhere:.3}");
        let mut kept = elsewhere > 0.8 * whole;
        if !others.is_empty() {
            let accuracy = self.accuracy(rows, &others, &Index::All)?;
            control += &format!("; {} of the same layer zeroed everywhere: {accuracy:.3}", list(&others));
            kept &= accuracy > 0.8 * whole;
        }
        Ok(Claim::new(
            format!("With {} zeroed in the {here} copy, the second copy is not predicted any more.", list(&doing)),
            Measured::Text(format!("accuracy {without:.3} instead of {whole:.3}")),
            control,
            if without < 0.5 * whole && kept { Verdict::Shown } else { Verdict::NotShown },
        )?)
    }
}

fn list(heads: &[HeadScore]) -> String {
    heads.iter().map(name).collect::<Vec<_>>().join(" and ")
}

fn name(score: &HeadScore) -> String {
    format!("{}.{}", score.layer, score.head)
}

fn attention_claim(statement: String, trained: f64, untrained: f64) -> Result<Claim> {
    let verdict = if trained > ATTENDS && untrained < 0.5 * ATTENDS { Verdict::Shown } else { Verdict::NotShown };
    let control = format!("{untrained:.3}: the best head of the untrained model of the same seed");
    Ok(Claim::new(statement, Measured::number(trained, "of its attention, on average"), control, verdict)?)
}

/// Row by row, in f64.
fn softmax(rows: &[Vec<f32>]) -> Vec<Vec<f64>> {
    let softmax = |row: &Vec<f32>| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights: Vec<f64> = row.iter().map(|&logit| f64::from(logit - largest).exp()).collect();
        let total: f64 = weights.iter().sum();
        weights.into_iter().map(|weight| weight / total).collect()
    };
    rows.iter().map(softmax).collect()
}

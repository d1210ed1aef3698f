//! Writes a run directory with one of everything, to look at the page: `cargo run --example gallery -- OUT`.

use endoscope_report::*;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let started = Started::now();
    let out = std::env::args().nth(1).ok_or("name the directory to write")?;
    let report = report()?;
    let mut provenance = Provenance::new(env!("CARGO_PKG_VERSION"), std::env::args().collect(), &started);
    provenance.seeds.insert("sample".into(), 7);
    provenance.libraries.insert("endoscope-report".into(), env!("CARGO_PKG_VERSION").into());
    provenance.files.push(HashedFile::read("weights", std::env::current_exe()?)?);
    let run = RunDirectory::create(out)?;
    run.write_provenance(&provenance)?;
    run.write_report(&report, &provenance)?;
    run.finish()?;
    Ok(())
}

fn report() -> Result<Report> {
    let summary = "Patching the clean residual stream into the corrupt run restores the answer in two places: at the \
                   name itself in the lower layers, and at the last token in the upper ones. Layer 3 moves it.";
    let mut report = Report::new("Where the name is moved to the end", "patch", summary);
    let tokens =
        ["<s>", "When", " Mary", " and", " John", " went", " to", " the", " shop", ",", " John", " gave", " a", "\n"];
    let axes = || [("layer", labels(0..5)), ("position", labels(tokens))];
    let scores = |layer: usize, position: usize| {
        let rises = 1. / (1. + (-(layer as f64 - 2.6) * 2.5).exp());
        match position {
            2 => 0.94 * (1. - rises),
            10 => -0.55 * rises * (1. - rises) * 4.,
            13 => 0.97 * rises,
            _ => 0.08 * ((layer * 7 + position * 3) as f64).sin(),
        }
    };
    let cells = |of: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
        (0..5).flat_map(|layer| (0..14).map(move |position| (layer, position))).map(|(l, p)| of(l, p)).collect()
    };
    let tables = &mut report.tables;
    tables.insert("restored".into(), Table::new("share of the logit difference restored", axes(), cells(&scores))?);
    let raw = cells(&|layer, position| if position == 0 { f64::NAN } else { 4.2 * scores(layer, position) - 2.1 });
    tables.insert("raw".into(), Table::new("logit difference in nats", axes(), raw)?);
    let spread = cells(&|layer, position| 0.02 + 0.1 * scores(layer, position).abs());
    tables.insert("spread".into(), Table::new("standard deviation over 40 prompts", axes(), spread)?);

    let short = ["<s>", "When", " Mary", " and", " John"];
    let heads = [("head", labels(0..4)), ("query", labels(short)), ("key", labels(short))];
    let mut attention = Vec::new();
    for (head, query, key) in (0..4).flat_map(|h| (0..5).flat_map(move |q| (0..5).map(move |k| (h, q, k)))) {
        let weight = |key: usize| (-((key as f64 + head as f64 - query as f64).powi(2)) / 2.).exp();
        let sum: f64 = (0..=query).map(weight).sum();
        attention.push(if key <= query { weight(key) / sum } else { f64::NAN });
    }
    tables.insert("attention".into(), Table::new("attention of layer 3", heads, attention)?);

    let steps: Vec<i64> = (0..60).map(|step| step * 50).collect();
    let loss = |start: f64, floor: f64| {
        let drop = move |step: &i64| floor + (start - floor) / (1. + (*step as f64 - 900.).max(0.) / 120.);
        steps.iter().map(drop).collect::<Vec<f64>>()
    };
    let curves = [loss(3.9, 0.2), loss(3.9, 0.9), loss(3.9, 2.8)].concat();
    let axes = [("series", labels(["train", "held out", "shuffled"])), ("step", labels(steps.iter().copied()))];
    tables.insert("loss".into(), Table::new("loss in nats", axes, curves)?);
    let sizes = [("part", labels(["embedding", "attention", "MLP"])), ("what", labels(["parameters", "share"]))];
    tables.insert("sizes".into(), Table::new("parameters", sizes, vec![12_800., 0.31, 8_192., 0.2, 20_480., 0.49])?);

    let heading = |text: &str| Some(text.to_owned());
    report.sections = vec![
        Section::HeatMap {
            heading: heading("Residual stream, one edit per layer and position"),
            table: "restored".into(),
            alternatives: vec!["raw".into(), "spread".into()],
            scale: ColourScale::Diverging { limit: Some(1.) },
            caption: "1 is the clean answer, 0 the corrupt one. The name is read at position 2 up to layer 2.".into(),
        },
        Section::Text {
            heading: heading("What moves it"),
            body: "The head that attends from the last token to the name is a mover.\n\nIts pattern is below.".into(),
        },
        Section::HeatMap {
            heading: heading("Attention"),
            table: "attention".into(),
            alternatives: vec![],
            scale: ColourScale::UNIT,
            caption: "Each row sums to 1; what lies ahead is masked.".into(),
        },
        Section::Lines {
            heading: heading("Training"),
            table: "loss".into(),
            caption: "With shuffled labels the loss stays near chance.".into(),
            y_label: "loss in nats".into(),
        },
        Section::Table { heading: heading("Size"), table: "sizes".into(), caption: "All parameters.".into() },
        Section::Claims { heading: heading("Claims") },
    ];
    let measured =
        Measured::Number { value: 0.83, unit: "of the logit difference".into(), interval: Some([0.79, 0.87]) };
    report.claims = vec![
        Claim::new("One head moves the name.", measured, "0.01 with a random head of the layer", Verdict::Shown)?,
        Claim::new(
            "It is alone.",
            Measured::number(2., "heads found"),
            "none in an untrained model",
            Verdict::NotShown,
        )?,
    ];
    Ok(report)
}

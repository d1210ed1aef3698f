use super::*;
use crate::{Measured, labels};

const PLAIN: TerminalStyle = TerminalStyle { colour: Colour::None, width: 60 };
const COLOUR: TerminalStyle = TerminalStyle { colour: Colour::TrueColour, width: 60 };

fn report(table: Table, section: impl FnOnce(String) -> Section) -> Report {
    let mut report = Report::new("Where the name is moved", "patch", "Layer 1 carries it.");
    report.tables.insert("scores".into(), table);
    report.sections.push(section("scores".into()));
    report
}

fn heat(table: String) -> Section {
    Section::HeatMap {
        heading: Some("Scores".into()),
        table,
        alternatives: vec!["raw".into()],
        scale: ColourScale::DIVERGING,
        caption: "Share of the logit difference restored.".into(),
    }
}

fn tokens() -> Table {
    let axes = [("layer", labels(0..2)), ("position", labels(["<s>", "Once", " upon", " unquestionably", "\n"]))];
    Table::new("restored", axes, vec![0., 0.5, -1., 0.25, f64::NAN, 0.1, 0.2, 0.3, -0.4, 0.9]).unwrap()
}

#[test]
fn texts_stand_in_for_numbers_and_keep_their_marks() {
    let texts = ["a", " b", "", "unquestionable words", "e", "f", "g", "\u{1b}[2J", "i", "j"];
    let table = tokens().with_texts(texts.map(String::from).to_vec()).unwrap();
    for style in [PLAIN, COLOUR] {
        let text = without_colours(&render_terminal(&report(table.clone(), heat), &style));
        assert!(text.contains("·b") && text.contains("unquestionabl…") && !text.contains("0.25"), "{text}");
        assert!(text.contains("\\u{1b}[2J"), "{text}");
        assert_eq!(text.contains("\"\"@"), style == PLAIN, "{text}");
    }
    let plain =
        render_terminal(&report(table, |table| Section::Table { heading: None, table, caption: "c".into() }), &PLAIN);
    assert!(plain.contains("0.25") && !plain.contains("·b"), "{plain}");
}

/// The text without this crate's own colours.
fn without_colours(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (code, rest) = part.split_once('m').unwrap();
        assert!(code.starts_with('[') && code[1..].chars().all(|c| c.is_ascii_digit() || c == ';'), "{code:?}");
        out.push_str(rest);
    }
    out
}

#[test]
fn a_heat_map_in_plain_text() {
    insta::assert_snapshot!(render_terminal(&report(tokens(), heat), &PLAIN), @r#"
    Where the name is moved
    patch

    Layer 1 carries it.


    Scores
    ------
    Share of the logit difference restored.

    layer down, position across
                              ·unque
                              stiona
      <s>     Once    ·upon   bly     ↵
    0   0.00    0.50+  -1.00@   0.25:      -
    1   0.10.   0.20:   0.30-  -0.40=   0.90%

    Marks " .:-=+*#%@": 0 to 1 either way. restored
    Also in the report: raw.
    "#);
}

#[test]
fn a_wide_heat_map_is_split_into_blocks_of_columns() {
    let axes = [("layer", labels([0, 10])), ("position", labels((0..11).map(|index| format!(" word{index}"))))];
    let values = (0..22).map(|value| f64::from(value) / 22.).collect();
    let text = render_terminal(&report(Table::new("p", axes, values).unwrap(), heat), &PLAIN);
    assert!(text.lines().all(|line| text::width(line) <= 60), "{text}");
    insta::assert_snapshot!(text, @r#"
    Where the name is moved
    patch

    Layer 1 carries it.


    Scores
    ------
    Share of the logit difference restored.

    layer down, position across (1 to 7 of 11)
       ·word0  ·word1  ·word2  ·word3  ·word4  ·word5  ·word6
     0   0.00    0.05    0.09.   0.14.   0.18:   0.23:   0.27-
    10   0.50+   0.55+   0.59*   0.64*   0.68*   0.73#   0.77#

    layer down, position across (8 to 11 of 11)
                               ·word1
       ·word7  ·word8  ·word9  0
     0   0.32-   0.36-   0.41=   0.45=
    10   0.82%   0.86%   0.91@   0.95@

    Marks " .:-=+*#%@": 0 to 0.95 either way. p
    Also in the report: raw.
    "#);
}

#[test]
fn every_width_keeps_its_lines_within_it_or_to_one_column() {
    for width in [0, 1, 20, 33, 47, 80, 200] {
        let style = TerminalStyle { colour: Colour::None, width };
        let text = render_terminal(
            &report(tokens(), |table| match heat(table) {
                Section::HeatMap { table, scale, .. } => {
                    Section::HeatMap { heading: None, table, alternatives: vec![], scale, caption: String::new() }
                }
                other => other,
            }),
            &style,
        );
        let grid = text.lines().filter(|line| line.trim_start().starts_with(['0', '1']));
        assert!(grid.clone().count() >= 2, "{text}");
        for line in grid {
            assert!(text::width(line) <= width.max(9), "{width}: {line}");
        }
    }
}

#[test]
fn three_axes_give_one_panel_per_first_label() {
    let axes = [("head", labels(0..2)), ("query", labels(["a", "b"])), ("key", labels(["a", "b"]))];
    let table = Table::new("attention", axes, vec![1., 0., 0.25, 0.75, 1., 0., 0.5, 0.5]).unwrap();
    let text = render_terminal(
        &report(table, |table| Section::HeatMap {
            heading: None,
            table,
            alternatives: vec![],
            scale: ColourScale::UNIT,
            caption: "Attention of layer 0.".into(),
        }),
        &PLAIN,
    );
    insta::assert_snapshot!(text, @r#"
    Where the name is moved
    patch

    Layer 1 carries it.

    Attention of layer 0.

    head 0
    query down, key across
         a     b
    a 1.00@ 0.00
    b 0.25: 0.75#

    head 1
    query down, key across
         a     b
    a 1.00@ 0.00
    b 0.50+ 0.50+

    Marks " .:-=+*#%@": 0 to 1. attention
    "#);
}

#[test]
fn tables_lines_and_claims_in_plain_text() {
    let axes = [("series", labels(["train", "held out"])), ("step", labels((0..12).map(|step| step * 100)))];
    let values = (0..24).map(|index| 4. / f64::from(1 + index % 12) + f64::from(index / 12)).collect();
    let mut report = report(Table::new("loss", axes, values).unwrap(), |table| Section::Lines {
        heading: Some("Training".into()),
        table,
        caption: "Both fall.".into(),
        y_label: "loss in nats".into(),
    });
    let table = Table::new("sizes", [("part", labels(["embedding", "heads"]))], vec![1024., 96.]).unwrap();
    report.tables.insert("sizes".into(), table);
    report.sections.push(Section::Table { heading: None, table: "sizes".into(), caption: "Parameters.".into() });
    report.sections.push(Section::Claims { heading: Some("Claims".into()) });
    let measured = Measured::Number { value: 0.83, unit: "logits".into(), interval: Some([0.79, 0.87]) };
    let statement = "The name movers copy the name that stands once in the prompt.";
    report.claims.push(Claim::new(statement, measured, "0.01 logits with random heads", Verdict::Shown).unwrap());
    let text = Measured::Text("no head found".into());
    report.claims.push(Claim::new("Two heads suffice.", text, "as many at random", Verdict::NotShown).unwrap());
    insta::assert_snapshot!(render_terminal(&report, &PLAIN), @r#"
    Where the name is moved
    patch

    Layer 1 carries it.


    Training
    --------
    Both fall.

    loss in nats over step 0 to 1100
                           first  last least  most
    train    +-,...______   4.00  0.33  0.33  4.00
    held out #=--,,,,,,,,   5.00  1.33  1.33  5.00

    Parameters.

    part
    embedding 1024
    heads       96


    Claims
    ------
    [shown] The name movers copy the name that stands once in
    the prompt.
        measured: 0.830 logits (0.790 to 0.870)
        control:  0.01 logits with random heads

    [not shown] Two heads suffice.
        measured: no head found
        control:  as many at random
    "#);
}

#[test]
fn colours_hold_the_same_numbers() {
    let coloured = render_terminal(&report(tokens(), heat), &COLOUR);
    assert!(coloured.contains("\u{1b}[48;2;178;24;43;38;2;255;255;255m") || coloured.contains("48;2;33;102;172"));
    let bare = without_colours(&coloured);
    for row in ["0  0.00  0.50 -1.00", "1  0.10  0.20  0.30"] {
        let squeezed = bare.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(squeezed.contains(&row.split_whitespace().collect::<Vec<_>>().join(" ")), "{bare}");
    }
}

#[test]
fn a_missing_table_is_said_so() {
    let mut report = report(tokens(), heat);
    report.tables.clear();
    assert!(render_terminal(&report, &PLAIN).contains("(the report has no table `scores`)"));
}

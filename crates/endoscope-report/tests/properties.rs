//! Whatever a report says: JSON returns it exactly, a page carries it whole, and a terminal stays in order.

#![allow(clippy::unwrap_used)]

use endoscope_report::*;
use proptest::prelude::*;

/// Texts that have broken renderers: controls, markup, both directions, wide and joined characters, nothing.
fn text() -> impl Strategy<Value = String> {
    let nasty = prop::sample::select(vec![
        "",
        " ",
        "\n",
        "\u{1b}[31m",
        "\u{1b}]0;title\u{7}",
        "\u{9b}2J",
        "\u{9d}0;title\u{9c}",
        "</script>",
        "<!--<script>",
        "</noscript>",
        "]]>",
        "&amp;\"'",
        "\u{202e}fdp",
        "שלום",
        "👩‍👩‍👧",
        "日本",
        "\u{0}",
        "\r\n",
        "\u{2028}",
        "\\u003c",
        "__proto__",
    ]);
    prop_oneof![nasty.prop_map(str::to_owned), any::<String>(), "[a-z ]{0,12}"]
}

fn label() -> impl Strategy<Value = Label> {
    prop_oneof![any::<i64>().prop_map(Label::Index), text().prop_map(Label::Text)]
}

fn value() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        Just(None),
        prop::num::f64::NORMAL.prop_map(Some),
        (-1000i32..1000).prop_map(|v| Some(f64::from(v) / 8.))
    ]
}

fn axes() -> impl Strategy<Value = Vec<(String, Vec<Label>)>> {
    let axis =
        |name: &'static str| prop::collection::vec(label(), 0..4).prop_map(move |labels| (name.to_owned(), labels));
    let all = ["layer", "position", "_x <b>", "Ärmel\""].map(axis);
    (all, 1..=4usize).prop_map(|(axes, rank)| axes.into_iter().take(rank).collect())
}

fn table(axes: Vec<(String, Vec<Label>)>) -> impl Strategy<Value = Table> {
    let count = axes.iter().map(|(_, labels)| labels.len()).product::<usize>();
    (text(), prop::collection::vec(value(), count))
        .prop_map(move |(description, values)| Table::with_missing(description, axes.clone(), values).unwrap())
}

fn measured() -> impl Strategy<Value = Measured> {
    let number = (prop::num::f64::NORMAL, text(), prop::option::of(prop::array::uniform2(prop::num::f64::NORMAL)));
    prop_oneof![
        text().prop_map(Measured::Text),
        number.prop_map(|(value, unit, interval)| Measured::Number { value, unit, interval }),
    ]
}

fn claim() -> impl Strategy<Value = Claim> {
    let verdicts = vec![Verdict::Shown, Verdict::Partly, Verdict::NotShown, Verdict::NeedsLargerModel];
    (text(), measured(), text(), prop::sample::select(verdicts)).prop_map(|(statement, measured, control, verdict)| {
        Claim::new(statement, measured, format!("c{control}"), verdict).unwrap()
    })
}

fn scale() -> impl Strategy<Value = ColourScale> {
    prop_oneof![
        prop::option::of(prop::num::f64::NORMAL).prop_map(|limit| ColourScale::Diverging { limit }),
        prop::option::of(prop::array::uniform2(prop::num::f64::NORMAL))
            .prop_map(|limits| ColourScale::Sequential { limits }),
    ]
}

prop_compose! {
    fn report()(axes in axes())(
        first in table(axes.clone()),
        other in table(axes),
        line in table(vec![("step".to_owned(), labels([1, 2, 4]))]),
        scale in scale(),
        claims in prop::collection::vec(claim(), 0..3),
        words in prop::array::uniform5(text()),
        heading in prop::option::of(text()),
    ) -> Report {
        let [title, summary, body, caption, y_label] = words;
        let mut report = Report::new(title, "patch", summary);
        for (name, table) in [("scores", first), ("raw", other), ("line", line)] {
            report.tables.insert(name.into(), table);
        }
        report.claims = claims;
        report.sections = vec![
            Section::Text { heading: heading.clone(), body },
            Section::HeatMap {
                heading: heading.clone(),
                table: "scores".into(),
                alternatives: vec!["raw".into()],
                scale,
                caption: caption.clone(),
            },
            Section::Table { heading: heading.clone(), table: "raw".into(), caption: caption.clone() },
            Section::Lines { heading: heading.clone(), table: "line".into(), caption, y_label },
            Section::Claims { heading },
        ];
        report
    }
}

/// The page's own scripts: one with the data, one with the code.
fn data_of(page: &str) -> &str {
    let (_, rest) = page.split_once("<script type=\"application/json\" id=\"report\">").unwrap();
    rest.split_once("</script").unwrap().0
}

/// Removes this crate's own colours (`ESC [ digits ; … m`); what else an ESC begins stays.
fn without_colours(text: &str) -> String {
    let mut parts = text.split("\u{1b}[");
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once('m') {
            Some((code, rest)) if code.chars().all(|c| c.is_ascii_digit() || c == ';') => out.push_str(rest),
            _ => out.push_str(&format!("\u{1b}[{part}")),
        }
    }
    out
}

proptest! {
    #[test]
    fn json_returns_the_same_report(report in report()) {
        let json = report.to_json().unwrap();
        let read = Report::from_json(&json).unwrap();
        prop_assert_eq!(&read, &report);
        prop_assert_eq!(read.to_json().unwrap(), json, "the order is kept too");
    }

    #[test]
    fn a_page_carries_its_report_and_no_other_script(report in report()) {
        let page = render_html(&report, None);
        prop_assert_eq!(&serde_json::from_str::<Report>(data_of(&page)).unwrap(), &report);
        prop_assert_eq!(page.matches("<script").count(), 2);
        prop_assert_eq!(page.matches("</script").count(), 2);
        prop_assert_eq!(page.matches("<noscript").count(), page.matches("</noscript").count());
        prop_assert!(!page.contains("<!--"));
        let controls = page.chars().find(|&c| c.is_control() && c != '\n');
        prop_assert_eq!(controls, None);
    }

    #[test]
    fn no_text_reaches_the_terminal_as_a_command(report in report(), width in 0usize..120) {
        let plain = render_terminal(&report, &TerminalStyle { colour: Colour::None, width });
        let coloured = render_terminal(&report, &TerminalStyle { colour: Colour::TrueColour, width });
        for text in [plain, without_colours(&coloured)] {
            let control = text.chars().find(|&c| (c.is_control() && c != '\n') || ('\u{202a}'..='\u{202e}').contains(&c));
            prop_assert_eq!(control, None);
        }
    }

    #[test]
    fn a_terminal_shows_every_number_of_a_heat_map(
        values in prop::collection::vec(0u32..100_000, 12),
        width in 0usize..120,
    ) {
        let axes = [("layer", labels(0..3)), ("position", labels(["<s>", " a", "日本語のトークン", "</s>"]))];
        let table = Table::new("", axes, values.iter().map(|&value| f64::from(value)).collect()).unwrap();
        let mut report = Report::new("", "", "");
        report.tables.insert("scores".into(), table);
        report.sections.push(Section::HeatMap {
            heading: None,
            table: "scores".into(),
            alternatives: vec![],
            scale: ColourScale::SEQUENTIAL,
            caption: String::new(),
        });
        for colour in [Colour::None, Colour::TrueColour] {
            let text = without_colours(&render_terminal(&report, &TerminalStyle { colour, width }));
            let words: Vec<&str> = text.split(|c: char| !c.is_ascii_digit()).collect();
            for value in &values {
                prop_assert!(words.contains(&value.to_string().as_str()), "{} in {}", value, text);
            }
        }
    }
}

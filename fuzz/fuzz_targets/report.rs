//! Reports: read, rendered, written back.
#![no_main]

use endoscope_report::{Colour, Report, TerminalStyle, render_html, render_terminal};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(report) = Report::from_json(text) else { return };
    let written = report.to_json().expect("what was read can be written");
    assert_eq!(Report::from_json(&written).expect("what was written can be read"), report);
    let page = render_html(&report, None);
    assert!(page.contains("</html>"));
    for (colour, width) in [(Colour::None, 40), (Colour::TrueColour, 120)] {
        assert!(render_terminal(&report, &TerminalStyle { colour, width }).ends_with('\n'));
    }
});

//! `unsafe` stands in few places, and each says why it is sound.

use super::Problem;
use crate::source::Source;
use crate::tree::Tree;

/// Files, or folders that end in `/`, where it may stand.
const ALLOWED: [&str; 1] = ["crates/endoscope-kernels/"];

const REASON: &str = "// SAFETY:";

/// What an unsafe function asks of its callers says it too.
const CONTRACT: &str = "/// # Safety";

pub fn check(tree: &Tree) -> Vec<Problem> {
    tree.sources.iter().flat_map(|source| source.find(&["unsafe"]).filter_map(|line| judge(source, line))).collect()
}

fn judge(source: &Source, line: usize) -> Option<Problem> {
    let what = if !allowed(&source.path) {
        "unsafe here: find a safe way, or argue for the file in ALLOWED of xtask/src/tidy/unsafety.rs".to_owned()
    } else if !has_reason(source, line) {
        format!("unsafe without its reason: put a `{REASON}` comment right above, which says what makes it sound")
    } else {
        return None;
    };
    Some(Problem::at(&source.path, line, what))
}

fn allowed(path: &str) -> bool {
    ALLOWED.iter().any(|place| if place.ends_with('/') { path.starts_with(place) } else { path == *place })
}

/// Whether the comment right above the line, attributes aside, gives the reason.
fn has_reason(source: &Source, line: usize) -> bool {
    let above: Vec<&str> = source.text.lines().take(line - 1).map(str::trim_start).collect();
    let comment = above.iter().rev().take_while(|text| text.starts_with("//") || text.starts_with("#["));
    comment.into_iter().any(|text| text.starts_with(REASON) || *text == CONTRACT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::places;

    const KERNEL: &str = "crates/endoscope-kernels/src/a.rs";

    #[test]
    fn unsafe_outside_the_list_is_a_problem_even_with_a_reason() {
        let text = "#![forbid(unsafe_code)]\nfn f() {\n    // SAFETY: none.\n    unsafe { g() }\n}\n";
        assert_eq!(places(check, &[("crates/endoscope-net/src/a.rs", text)]), ["crates/endoscope-net/src/a.rs:4"]);
    }

    #[test]
    fn unsafe_without_a_reason_right_above_is_a_problem() {
        for text in [
            "fn f() {\n    unsafe { g() }\n}\n",
            "// SAFETY: far.\nfn f() {\n    unsafe { g() }\n}\n",
            "\n// It is safe.\nunsafe fn f() {}\n",
        ] {
            assert_eq!(places(check, &[(KERNEL, text)]).len(), 1, "{text}");
        }
    }

    #[test]
    fn a_reason_of_several_lines_is_found() {
        let text = "fn f() {\n    // SAFETY: the map\n    // is ours.\n    #[allow(x)]\n    unsafe { g() }\n}\n";
        assert_eq!(places(check, &[(KERNEL, text)]), [""; 0]);
    }
}

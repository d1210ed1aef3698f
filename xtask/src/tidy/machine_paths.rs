//! Nothing in the repository knows the machine on which it was written.

use super::Problem;
use crate::tree::Tree;

/// First folders of an absolute path that belong to one machine or one person.
const FOLDERS: [&str; 6] = ["home", "root", "Users", "work", "workspace", "tmp"];

/// The system's temporary folder, which tests and scripts may name.
const TEMPORARY: &str = "tmp";

pub fn check(tree: &Tree) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (path, text) in tree.texts() {
        for (index, line) in text.lines().enumerate() {
            let found = absolute_folders(line).filter(|folder| *folder != TEMPORARY || !may_name_temporary(path));
            problems.extend(found.map(|folder| {
                let what = format!(
                    "names /{folder}/, a folder of one machine: use a path from the repository, an argument or a variable"
                );
                Problem::at(path, index + 1, what)
            }));
        }
    }
    problems
}

/// The [`FOLDERS`] with which an absolute path on this line begins.
fn absolute_folders(line: &str) -> impl Iterator<Item = &'static str> {
    FOLDERS.into_iter().filter(move |folder| {
        line.match_indices(&format!("/{folder}/")).any(|(at, _)| {
            // After a name, `..`, a variable or a host the path only goes on; after a quote or a space it begins.
            let before = line[..at].chars().next_back();
            !before.is_some_and(|character| character.is_alphanumeric() || "._-~}*)".contains(character))
        })
    })
}

fn may_name_temporary(path: &str) -> bool {
    path.ends_with(".sh")
        || path.ends_with(".py")
        || path.starts_with(".ci/")
        || path.split('/').any(|part| part == "tests" || part == "tests.rs")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::places;

    /// An absolute path, not written as one here: this file is checked too.
    fn path(folder: &str) -> String {
        format!("/{folder}/x")
    }

    #[test]
    fn a_folder_of_one_machine_is_a_problem_in_any_text() {
        for folder in FOLDERS {
            let text = format!("A line.\nlet x = \"{}\";\n", path(folder));
            assert_eq!(places(check, &[("crates/a/src/a.rs", &text)]), ["crates/a/src/a.rs:2"]);
            let text = format!("{{\"data\": \"file://{}\"}}", path(folder));
            assert_eq!(places(check, &[("organisms/a/training.json", &text)]), ["organisms/a/training.json:1"]);
        }
    }

    #[test]
    fn tests_and_scripts_may_name_the_temporary_folder_only() {
        let (temporary, home) = (path(TEMPORARY), path("home"));
        for name in ["crates/a/tests/a.rs", "tools/a.py", "bench/a.sh", ".ci/run"] {
            assert_eq!(places(check, &[(name, &temporary)]), [""; 0]);
            assert_eq!(places(check, &[(name, &home)]).len(), 1);
        }
    }

    #[test]
    fn relative_paths_and_addresses_are_not_problems() {
        let text =
            FOLDERS.map(|folder| format!("docs{0} ..{0} $HOME{0} https://example.org{0}", path(folder))).join("\n");
        assert_eq!(places(check, &[("README.md", &text)]), [""; 0]);
    }
}

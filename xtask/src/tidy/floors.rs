//! Crates are floors: dependencies point down only, and a method sees the core but never a model.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::Problem;

struct Floor {
    name: &'static str,
    /// What it may use of ours.
    uses: &'static [&'static str],
    /// What its tests, examples and benchmarks may use besides.
    tests_use: &'static [&'static str],
}

/// From the ground up; a floor uses only what is named before it. The code map of ARCHITECTURE.md shows the same.
const FLOORS: [Floor; 12] = [
    Floor { name: "endoscope-kernels", uses: &[], tests_use: &[] },
    Floor { name: "endoscope-net", uses: &[], tests_use: &[] },
    Floor { name: "endoscope-report", uses: &[], tests_use: &[] },
    Floor { name: "endoscope-models", uses: &["endoscope-kernels", "endoscope-net"], tests_use: &[] },
    Floor {
        name: "endoscope-train",
        uses: &["endoscope-kernels", "endoscope-net", "endoscope-models"],
        tests_use: &[],
    },
    Floor { name: "endoscope-causal", uses: &["endoscope-kernels", "endoscope-net"], tests_use: &["endoscope-models"] },
    Floor { name: "endoscope-harvest", uses: &["endoscope-net", "endoscope-report"], tests_use: &["endoscope-models"] },
    Floor {
        name: "endoscope-dictionary",
        uses: &["endoscope-kernels", "endoscope-net", "endoscope-causal"],
        tests_use: &["endoscope-models"],
    },
    Floor {
        name: "endoscope-organisms",
        uses: &["endoscope-net", "endoscope-models", "endoscope-train"],
        tests_use: &["endoscope-causal"],
    },
    Floor {
        name: "endoscope-studies",
        uses: &[
            "endoscope-net",
            "endoscope-report",
            "endoscope-models",
            "endoscope-train",
            "endoscope-causal",
            "endoscope-dictionary",
            "endoscope-organisms",
        ],
        tests_use: &[],
    },
    Floor {
        name: "endoscope-cli",
        uses: &[
            "endoscope-net",
            "endoscope-kernels",
            "endoscope-report",
            "endoscope-models",
            "endoscope-train",
            "endoscope-causal",
            "endoscope-harvest",
            "endoscope-dictionary",
            "endoscope-organisms",
            "endoscope-studies",
        ],
        tests_use: &[],
    },
    Floor { name: "xtask", uses: &[], tests_use: &[] },
];

/// A package of the workspace, as cargo describes it.
#[derive(Debug, Deserialize)]
pub struct Member {
    pub name: String,
    pub dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
pub struct Dependency {
    pub name: String,
    /// Absent for a normal dependency; else `dev` or `build`.
    pub kind: Option<String>,
}

/// The workspace at `root`, asked of cargo.
pub fn members(root: &Path) -> Result<Vec<Member>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Member>,
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline", "--manifest-path"];
    let output =
        Command::new(cargo).args(arguments).arg(root.join("Cargo.toml")).output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo metadata failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("cannot read the answer of cargo metadata")?;
    Ok(metadata.packages)
}

pub fn check(members: &[Member]) -> Vec<Problem> {
    members.iter().flat_map(|member| check_member(member, members)).collect()
}

fn check_member(member: &Member, members: &[Member]) -> Vec<Problem> {
    let manifest = match member.name.as_str() {
        "xtask" => "xtask/Cargo.toml".to_owned(),
        name => format!("crates/{name}/Cargo.toml"),
    };
    let Some(floor) = FLOORS.iter().find(|floor| floor.name == member.name) else {
        let what = "has no floor yet: give it one in FLOORS of xtask/src/tidy/floors.rs".to_owned();
        return vec![Problem::of(&manifest, what)];
    };
    let ours = member.dependencies.iter().filter(|dependency| members.iter().any(|each| each.name == dependency.name));
    ours.filter_map(|dependency| {
        let name = dependency.name.as_str();
        let for_tests = dependency.kind.as_deref() == Some("dev");
        let allowed = name == member.name || floor.uses.contains(&name) || for_tests && floor.tests_use.contains(&name);
        (!allowed).then(|| Problem::of(&manifest, forbidden(floor, name)))
    })
    .collect()
}

fn forbidden(floor: &Floor, name: &str) -> String {
    let list = |names: &[&str]| if names.is_empty() { "none of ours".to_owned() } else { names.join(", ") };
    let remedy = if floor.tests_use.contains(&name) {
        "only its tests may: move it to [dev-dependencies]".to_owned()
    } else {
        let tests =
            if floor.tests_use.is_empty() { String::new() } else { format!("; its tests: {}", list(floor.tests_use)) };
        format!("it may use: {}{tests}. Move the shared part down, or the code that needs both up", list(floor.uses))
    };
    format!("depends on {name}; {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(member: &str, dependencies: &[(&str, Option<&str>)]) -> Vec<String> {
        let dependency =
            |&(name, kind): &(&str, Option<&str>)| Dependency { name: name.to_owned(), kind: kind.map(str::to_owned) };
        let mut members: Vec<Member> =
            FLOORS.iter().map(|floor| Member { name: floor.name.to_owned(), dependencies: Vec::new() }).collect();
        members.retain(|each| each.name != member);
        members.push(Member { name: member.to_owned(), dependencies: dependencies.iter().map(dependency).collect() });
        check(&members).into_iter().map(|problem| problem.to_string()).collect()
    }

    #[test]
    fn the_table_itself_points_down() {
        for (height, floor) in FLOORS.iter().enumerate() {
            for used in floor.uses {
                assert!(FLOORS[..height].iter().any(|lower| lower.name == *used), "{} uses {used}", floor.name);
            }
        }
    }

    #[test]
    fn a_dependency_that_points_up_is_a_problem() {
        let problems =
            found("endoscope-models", &[("endoscope-net", None), ("endoscope-causal", None), ("serde", None)]);
        assert_eq!(problems.len(), 1);
        assert!(
            problems[0].starts_with(
                "crates/endoscope-models/Cargo.toml: depends on endoscope-causal; it may use: endoscope-kernels, endoscope-net"
            )
        );
    }

    #[test]
    fn a_method_may_use_models_in_its_tests_only() {
        assert_eq!(found("endoscope-causal", &[("endoscope-models", Some("dev"))]), [""; 0]);
        let problems = found("endoscope-causal", &[("endoscope-models", None), ("endoscope-models", Some("build"))]);
        assert_eq!(problems.len(), 2);
        assert!(problems[0].ends_with("only its tests may: move it to [dev-dependencies]"));
    }

    #[test]
    fn a_crate_without_a_floor_is_a_problem() {
        let problems = found("endoscope-attic", &[]);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("crates/endoscope-attic/Cargo.toml: has no floor yet"));
    }
}

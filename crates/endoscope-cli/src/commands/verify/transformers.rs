//! What transformers makes of the same prompts: tools/reference/sites.py, run by the user's own Python.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// The files of tools/reference, which the binary carries.
const FILES: [(&str, &str); 3] = [
    ("families.py", include_str!("../../../../../tools/reference/families.py")),
    ("sites.py", include_str!("../../../../../tools/reference/sites.py")),
    ("watching.py", include_str!("../../../../../tools/reference/watching.py")),
];

const NEEDS: &str = "a Python with `pip install torch transformers safetensors` is needed: name it with --python, or activate its \
                     environment (bench/setup.sh of the repository makes one)";

/// Writes every site of `prompts` to `out`; the versions of what computed them.
pub fn sites(python: Option<&Path>, model: &Path, prompts: &[Vec<u32>], out: &Path) -> Result<Value> {
    let scripts = tempfile::tempdir().context("cannot write the scripts that ask transformers")?;
    for (name, text) in FILES {
        std::fs::write(scripts.path().join(name), text).context("cannot write the scripts that ask transformers")?;
    }
    let python = python.map_or_else(default_python, |path| path.as_os_str().to_owned());
    let tokens = serde_json::to_string(prompts)?;
    let started = Command::new(&python)
        .arg(scripts.path().join("sites.py"))
        .arg(model)
        .args(["--tokens", &tokens, "--out"])
        .arg(out)
        .env("HF_HUB_OFFLINE", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .output();
    let python = python.to_string_lossy();
    let output = match started {
        Ok(output) => output,
        Err(error) if error.kind() == ErrorKind::NotFound => bail!("there is no `{python}`; {NEEDS}"),
        Err(error) => bail!("`{python}` cannot be run ({error}); {NEEDS}"),
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        match errors.lines().rev().find(|line| !line.trim().is_empty()) {
            Some(line) if line.contains("No module named") => {
                bail!("`{python}` has not all it needs ({line}); {NEEDS}")
            }
            Some(line) => bail!("`{python}` did not give transformers' activations: {line}"),
            None => bail!("`{python}` did not give transformers' activations ({})", output.status),
        }
    }
    let printed = String::from_utf8_lossy(&output.stdout);
    let last = printed.lines().last().and_then(|line| serde_json::from_str(line).ok());
    last.with_context(|| format!("`{python}` did not say which versions it has"))
}

/// That of the active environment, or the system's.
fn default_python() -> OsString {
    let active = std::env::var_os("VIRTUAL_ENV").filter(|folder| !folder.is_empty());
    match active {
        Some(folder) => Path::new(&folder).join("bin").join("python").into_os_string(),
        None => "python3".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_reference_is_carried() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/reference");
        let names = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| name.ends_with(".py")).collect();
        names.sort();
        assert_eq!(names, FILES.map(|(name, _)| name));
    }
}

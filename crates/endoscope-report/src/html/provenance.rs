//! Provenance as HTML.

use super::text::escaped;
use crate::Provenance;

/// One line under the title: version, time, duration.
pub(super) fn line(provenance: &Provenance) -> String {
    format!(
        "<p class=\"when\">Endoscope {} · {} · {}</p>\n",
        escaped(&provenance.endoscope_version),
        escaped(&provenance.started),
        duration(provenance.wall_seconds)
    )
}

/// All of it, folded away.
pub(super) fn render(provenance: &Provenance) -> String {
    let machine = &provenance.machine;
    let memory = provenance.peak_memory_bytes.map_or_else(|| "not known".to_owned(), bytes);
    let machine =
        format!("{}, {} logical processors, {} {}", machine.cpu, machine.logical_cpus, machine.os, machine.arch);
    let command = provenance.command.iter().map(|part| quoted(part)).collect::<Vec<_>>().join(" ");
    let mut entries = vec![
        ("Endoscope", escaped(&provenance.endoscope_version)),
        ("Command", format!("<code>{}</code>", escaped(&command))),
        ("Started", escaped(&provenance.started)),
        ("Wall time", duration(provenance.wall_seconds)),
        ("Peak memory", memory),
        ("Machine", escaped(&machine)),
    ];
    let pairs = |pairs: &mut dyn Iterator<Item = (&String, String)>| {
        escaped(&pairs.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", "))
    };
    if !provenance.seeds.is_empty() {
        entries.push(("Seeds", pairs(&mut provenance.seeds.iter().map(|(name, seed)| (name, seed.to_string())))));
    }
    if !provenance.revisions.is_empty() {
        let mut revisions = provenance.revisions.iter().map(|(repository, commit)| (repository, commit.clone()));
        entries.push(("Commits", pairs(&mut revisions)));
    }
    if !provenance.libraries.is_empty() {
        let mut libraries = provenance.libraries.iter().map(|(name, version)| (name, version.clone()));
        entries.push(("Libraries", pairs(&mut libraries)));
    }
    entries.extend(provenance.notes.iter().map(|note| ("Note", escaped(note))));
    let entries: String = entries.iter().map(|(name, value)| format!("<dt>{name}</dt><dd>{value}</dd>\n")).collect();
    format!(
        "<details class=\"provenance\">\n<summary>Where this comes from: versions, seeds, machine, files</summary>\n\
         <dl>\n{entries}</dl>\n{}</details>\n",
        files(provenance)
    )
}

fn files(provenance: &Provenance) -> String {
    if provenance.files.is_empty() {
        return String::new();
    }
    let row = |file: &crate::HashedFile| {
        let [role, path, hash] = [&file.role, &file.path, &file.sha256].map(|text| escaped(text));
        format!(
            "<tr><td class=\"word\">{role}</td><td class=\"word\">{path}</td><td>{}</td>\
             <td class=\"word hash\">{hash}</td></tr>\n",
            bytes(file.bytes)
        )
    };
    let rows: String = provenance.files.iter().map(row).collect();
    let heads: String =
        ["file", "path", "size", "SHA-256"].iter().map(|head| format!("<th scope=\"col\">{head}</th>")).collect();
    format!(
        "<div class=\"scroll\"><table class=\"numbers files\">\n<thead><tr>{heads}</tr></thead>\n\
         <tbody>\n{rows}</tbody>\n</table></div>\n"
    )
}

/// An argument as a shell would need it.
fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=:,@+%".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', "'\\''"))
    }
}

fn duration(seconds: f64) -> String {
    if seconds < 60. {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole / 3600 {
        0 => format!("{} min {} s", whole / 60, whole % 60),
        hours => format!("{hours} h {} min", whole % 3600 / 60),
    }
}

fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (0..units.len()).rev().find(|&step| count >= 1 << (10 * step)).unwrap_or(0);
    let unit = units.get(step).copied().unwrap_or("B");
    if step == 0 {
        format!("{count} {unit}")
    } else {
        format!("{:.1} {unit}", count as f64 / (1u64 << (10 * step)) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_read_well() {
        assert_eq!([0, 1023, 1024, 3 << 29].map(bytes), ["0 B", "1023 B", "1.0 KiB", "1.5 GiB"]);
        assert_eq!([0.04, 59.9, 61., 7320.].map(duration), ["0.0 s", "59.9 s", "1 min 1 s", "2 h 2 min"]);
        assert_eq!(["a-b", "it's", ""].map(quoted), ["a-b", "'it'\\''s'", "''"]);
    }
}

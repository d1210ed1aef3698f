//! A promise about the memory of the whole process, and sizes as people write them.

use endoscope_causal::{Error, Result};

/// Reads a size: `512MiB`, `4 GiB`, `1.5GB`, or bytes.
pub fn size(text: &str) -> std::result::Result<u64, String> {
    const UNITS: [(&str, u64); 8] = [
        ("", 1),
        ("b", 1),
        ("kib", 1 << 10),
        ("mib", 1 << 20),
        ("gib", 1 << 30),
        ("kb", 1_000),
        ("mb", 1_000_000),
        ("gb", 1_000_000_000),
    ];
    let wrong = || format!("`{text}` is no size; write one like 512MiB or 4GiB (B, KiB, MiB, GiB, KB, MB, GB)");
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let number: f64 = trimmed[..end].parse().map_err(|_| wrong())?;
    let unit = trimmed[end..].trim().to_ascii_lowercase();
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
    let bytes = number * *factor as f64;
    if (1. ..1e18).contains(&bytes) { Ok(bytes as u64) } else { Err(wrong()) }
}

/// A size for people.
pub fn shown(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|(_, size)| bytes >= *size) {
        Some((unit, size)) => format!("{:.1} {unit}", bytes as f64 / *size as f64),
        None => format!("{bytes} B"),
    }
}

/// What is kept free for what nobody counts: packed products, the report, the allocator's rounding.
const MARGIN: u64 = 24 << 20;

/// What is left of `promised` bytes for a batch of activations, now that model, base run and donor run are held.
pub fn left(promised: u64, least: u64) -> Result<u64> {
    let held = resident().unwrap_or(0) + MARGIN;
    match promised.checked_sub(held) {
        Some(left) if left >= least => Ok(left),
        _ => Err(Error::Memory { promised, held, least }),
    }
}

/// The memory that this process holds, where the system tells.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("1", 1),
            ("7B", 7),
            ("4GiB", 4 << 30),
            (" 4 gib ", 4 << 30),
            ("1.5MiB", 3 << 19),
            ("2KB", 2_000),
            ("3mb", 3_000_000),
            ("1GB", 1_000_000_000),
            ("64KiB", 64 << 10),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "4 TiB", "-1GiB", "0", "1..2MB", "1e3", "nan", "99999999999999999999"] {
            assert!(size(text).unwrap_err().contains("is no size"), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown() {
        assert_eq!(shown(12), "12 B");
        assert_eq!(shown(3 << 19), "1.5 MiB");
        assert_eq!(shown(5 << 30), "5.0 GiB");
    }

    #[test]
    fn too_little_says_how_much_would_do() {
        assert!(left(1 << 50, 1).is_ok());
        let error = left(1 << 10, 5 << 20).unwrap_err().to_string();
        assert!(error.contains("give at least"), "{error}");
    }
}

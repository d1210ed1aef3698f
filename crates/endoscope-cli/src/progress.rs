//! Progress bars: on standard error, only if it is a terminal, with the time left.

use std::time::Duration;

use endoscope_models::hub::Event;
use indicatif::{ProgressBar, ProgressStyle};

use crate::output::complain;

/// A bar of `total` steps; hidden by itself where nobody looks.
pub fn bar(total: u64, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total).with_message(what);
    let template = "{msg} {wide_bar} {pos}/{len} · {elapsed} gone, {eta} left {prefix}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(500));
    bar
}

/// Shows what is downloaded, a bar for each file.
pub fn downloads() -> impl FnMut(Event<'_>) {
    let mut bar = ProgressBar::hidden();
    move |event| match event {
        Event::Begins { name, bytes } => {
            bar = ProgressBar::new(bytes).with_message(name.to_string());
            let template = "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} · {binary_bytes_per_sec}, {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
        }
        Event::Has { bytes } => bar.set_position(bytes),
        Event::Ends { .. } => bar.finish_and_clear(),
        Event::FromCache { reason, commit } => {
            complain(&format!("note: the hub cannot be reached ({reason}); commit {commit} is taken from the cache"));
        }
    }
}

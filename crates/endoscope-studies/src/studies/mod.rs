//! The studies, one file each. `cargo xtask new-study SLUG` writes a new one, from `template.rs`, and its line here.

use crate::study::Runnable;

macro_rules! studies {
    ($($file:ident :: $study:ident),* $(,)?) => {
        $(mod $file;)*
        /// All studies.
        pub static STUDIES: &[&dyn Runnable] = &[$(&$file::$study),*];
    };
}

studies! {
    alpine_path_planning::AlpinePathPlanning,
    atoms::Atoms,
    cot_circuit::CotCircuit,
    entity_tracking::EntityTracking,
    fast_sae::FastSae,
    ideological_depth::IdeologicalDepth,
    local_intrinsic_dimension::LocalIntrinsicDimension,
    mcq_circuit::McqCircuit,
    talking_heads::TalkingHeads,
    task_hinting::TaskHinting,
}

// What a new study starts from must compile, run and fail its control.
#[cfg(test)]
mod template;

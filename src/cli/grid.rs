//! `scumble generate --grid N`, `--grid-x`, `--grid-y`: many pictures as one.

use crate::{
    adapter::Blend,
    error::{Error, Result},
    pipeline::grid::{Axis, Grid, MAX_SIDE},
};

/// What `--grid N` means with this blend: the first style's weight rises from 0 to what was given from left to right, the
/// second's from top to bottom; further styles keep theirs. With one style, a single row.
pub(super) fn of(n: usize, blend: &Blend) -> Result<Grid> {
    if !(2..=MAX_SIDE).contains(&n) {
        return Err(Error::invalid(format!("`--grid` must be from 2 to {MAX_SIDE}, found {n}")));
    }
    let rising = |style: usize| {
        let peak = blend.entries.get(style)?.strength.unet().peak();
        let values = (0..n).map(|i| peak * i as f64 / (n - 1) as f64).collect();
        Some(Axis::Weight { style, values })
    };
    let Some(x) = rising(0) else {
        return Err(Error::invalid("a grid shows the weights of one or two styles; there is none")
            .with_hint("add `--lora first.safetensors --lora second.safetensors`"));
    };
    Ok(Grid { x, y: rising(1) })
}

/// What `--grid-x` and `--grid-y` say.
pub(super) fn sides(x: &str, y: Option<&str>, blend: &Blend) -> Result<Grid> {
    let side = |option: &str, text: &str| {
        Axis::parse(text, &blend.names()).map_err(|e| e.context(format!("`{option}`")))
    };
    Ok(Grid { x: side("--grid-x", x)?, y: y.map(|y| side("--grid-y", y)).transpose()? })
}

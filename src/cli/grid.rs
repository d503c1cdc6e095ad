//! `scumble generate --grid N`, `--grid-x`, `--grid-y`, `--from GRID.png`: many pictures as one.

use super::{generate::Args, loras::LoraArg, loras::stem, recipe::Plan};
use crate::{
    error::{Error, Result},
    pipeline::grid::{Axis, Grid},
};

/// The grid that is asked for, or that of the recipe that is repeated, if any; checked before a model is opened.
pub(super) fn wanted(args: &Args, plan: &Plan, found: &[LoraArg]) -> Result<Option<Grid>> {
    let grid = match (args.grid, &args.grid_x) {
        (Some(n), _) => Some(of(n, found)?),
        (None, Some(x)) => Some(sides(x, args.grid_y.as_deref(), found)?),
        (None, None) => {
            let names = plan.loras.names();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            Grid::of_recipe(&plan.repeats, &names)?
        }
    };
    let Some(grid) = grid else { return Ok(None) };
    if plan.request.count > 1 {
        let message = format!("a grid is one picture, `--count` asks for {}", plan.request.count);
        return Err(Error::invalid(message).with_hint("let one of its sides be seeds: `--grid-y seed=7,8,9`"));
    }
    grid.check(found.len())?;
    Ok(Some(grid))
}

/// What `--grid N` means with these styles: the first one's weight rises from 0 to what was given from left to right, the
/// second's from top to bottom; further styles keep theirs. With one style, a single row.
fn of(n: usize, styles: &[LoraArg]) -> Result<Grid> {
    let rising = |style: usize| {
        let peak = styles.get(style)?.strength.unet().peak();
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
fn sides(x: &str, y: Option<&str>, styles: &[LoraArg]) -> Result<Grid> {
    let names: Vec<String> = styles.iter().map(|style| stem(&style.path)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let side = |option: &str, text: &str| {
        let axis = Axis::parse(text, &names).and_then(|axis| axis.check(names.len()).map(|()| axis));
        axis.map_err(|e| e.context(format!("`{option}`")))
    };
    Ok(Grid { x: side("--grid-x", x)?, y: y.map(|y| side("--grid-y", y)).transpose()? })
}

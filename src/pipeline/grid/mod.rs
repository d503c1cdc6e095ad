//! Many pictures as one labelled picture: one thing changes from left to right, another from top to bottom.

mod words;

use image::RgbImage;
pub use words::Kind;

use super::{GenerateRequest, Pipeline, infotext::Recipe, request::MAX_STEPS, sheet::Sheet};
use crate::{
    adapter::{Blend, BlendMode, Strength, strength::MAX_WEIGHT},
    error::{Error, Result},
    progress::{CancelToken, Event, Observer, Stage},
};

/// More pictures than this on a side are a slip of the finger.
pub const MAX_SIDE: usize = 32;
/// Smaller pictures are scaled up to this many pixels a side.
const MIN_CELL_PX: u32 = 192;
/// Pictures are scaled down where all of them together had more pixels than this.
const MAX_SHEET_PX: f64 = 64e6;
/// The web UI's keys for what a grid varies.
const TYPES: [&str; 2] = ["X Type", "Y Type"];
const VALUES: [&str; 2] = ["X Values", "Y Values"];

/// What changes along a side, value by value. Styles are entries of the blend, by their place.
#[derive(Debug, Clone, PartialEq)]
pub enum Axis {
    /// The weight of one style: its curves, blocks and region stay, their peak becomes the value.
    Weight {
        /// Which.
        style: usize,
        /// Its weights.
        values: Vec<f64>,
    },
    /// All styles' weights times a number.
    Weights(Vec<f64>),
    /// Denoising steps.
    Steps(Vec<usize>),
    /// Seeds.
    Seeds(Vec<u64>),
    /// One style at a time, alone at its own weight.
    Styles(Vec<usize>),
}

/// What is to be drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// From left to right.
    pub x: Axis,
    /// From top to bottom; without it, a single row.
    pub y: Option<Axis>,
}

/// A grid, perhaps stopped before its end.
#[derive(Debug, Clone)]
pub struct DrawnGrid {
    /// With labels; what was not drawn is blank.
    pub picture: RgbImage,
    /// Pictures in it.
    pub done: usize,
    /// Places in it.
    pub total: usize,
}

impl Pipeline {
    /// Draws a grid of the blend that is set, which stays as it is. What all pictures have in common is in `request`;
    /// of several pictures it asks for, the first is drawn. `so_far` sees the grid after each of its pictures, the
    /// observer counts them.
    ///
    /// Who cancels gets what is there, unless there is nothing yet.
    ///
    /// # Errors
    /// If the grid or the request makes no sense; [`Error::Cancelled`].
    pub fn draw_grid(
        &mut self,
        grid: &Grid,
        request: &GenerateRequest,
        observer: &mut dyn Observer,
        cancel: &CancelToken,
        so_far: &mut dyn FnMut(&RgbImage),
    ) -> Result<DrawnGrid> {
        let before = self.blend().clone();
        grid.check(before.entries.len())?;
        // Fusing for each picture anew would not pay.
        let mode = if before.mode == BlendMode::Auto { BlendMode::Live } else { before.mode };
        let blend = Blend { mode, ..before.clone() };
        let drawn = self.cells(grid, (request, &blend), observer, cancel, so_far);
        self.set_blend(before)?;
        drawn
    }

    fn cells(
        &mut self,
        grid: &Grid,
        (request, blend): (&GenerateRequest, &Blend),
        observer: &mut dyn Observer,
        cancel: &CancelToken,
        so_far: &mut dyn FnMut(&RgbImage),
    ) -> Result<DrawnGrid> {
        let names = blend.names();
        let columns = grid.x.labels(&names);
        let rows = grid.y.as_ref().map_or_else(|| vec![String::new()], |y| y.labels(&names));
        let (stage, total) = (Stage::Sample, columns.len() * rows.len());
        let cell_px = cell_px(request.final_size_on(self)?, total);
        let sheet = Sheet { columns: &columns, rows: &rows, cell_px, title: &request.prompt };
        let mut drawn = DrawnGrid { picture: sheet.blank(), done: 0, total };
        observer.observe(&Event::Started { stage, total: total as u64 });
        for index in 0..total {
            let (blend, request) = grid.cell((index % columns.len(), index / columns.len()), blend, request);
            self.set_blend(blend)?;
            let mut part = |event: &Event<'_>| match event {
                // What is to be said is the same for all of them.
                Event::Warning { .. } if index > 0 => {}
                Event::Warning { .. } | Event::Preview { .. } => observer.observe(event),
                _ => {}
            };
            match self.generate(&request, &mut part, cancel) {
                Err(e) if e.is_cancelled() && index > 0 => return Ok(drawn),
                pictures => {
                    pictures?.iter().for_each(|cell| sheet.put(&mut drawn.picture, index, &cell.image));
                }
            }
            drawn.done += 1;
            so_far(&drawn.picture);
            observer.observe(&Event::Advanced { stage, done: drawn.done as u64, total: total as u64 });
        }
        observer.observe(&Event::Finished { stage });
        Ok(drawn)
    }
}

impl Grid {
    /// The grid a recipe tells of, if it is one's, also the web UI's; `names` are its styles.
    ///
    /// # Errors
    /// If a side changes what grids here cannot.
    pub fn of_recipe(recipe: &Recipe, names: &[&str]) -> Result<Option<Self>> {
        let mut sides = Vec::new();
        for (kind, list) in TYPES.into_iter().zip(VALUES) {
            if let Some(what) = recipe.other(kind) {
                let axis = Axis::of_words(what, recipe.other(list).unwrap_or_default(), names);
                sides.extend(axis.map_err(|e| e.context(format!("`{kind}` of the recipe")))?);
            }
        }
        let mut sides = sides.into_iter();
        Ok(sides.next().map(|x| Self { x, y: sides.next() }))
    }

    /// Both sides.
    pub fn axes(&self) -> impl Iterator<Item = &Axis> {
        [Some(&self.x), self.y.as_ref()].into_iter().flatten()
    }

    /// How many pictures.
    pub fn len(&self) -> usize {
        self.axes().map(Axis::len).product()
    }

    /// True if there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks for what cannot be drawn with a blend of so many styles.
    ///
    /// # Errors
    /// If a side has no values or too many, names a style that is not there, or both change the same thing.
    pub fn check(&self, styles: usize) -> Result<()> {
        self.axes().try_for_each(|axis| axis.check(styles))?;
        let clash = match (&self.x, &self.y) {
            (Axis::Weight { style: x, .. }, Some(Axis::Weight { style: y, .. })) => x == y,
            (Axis::Weight { .. }, Some(Axis::Styles(_))) | (Axis::Styles(_), Some(Axis::Weight { .. })) => {
                true
            }
            (x, Some(y)) => std::mem::discriminant(x) == std::mem::discriminant(y),
            (_, None) => false,
        };
        if clash {
            return Err(Error::invalid("both sides of the grid change the same thing").with_hint(
                "let one change something else: another style's weight, all weights, steps, seeds",
            ));
        }
        Ok(())
    }

    fn cell(
        &self,
        (column, row): (usize, usize),
        blend: &Blend,
        request: &GenerateRequest,
    ) -> (Blend, GenerateRequest) {
        let (mut blend, mut request) =
            (blend.clone(), GenerateRequest { count: 1, batch: 1, ..request.clone() });
        self.x.apply(column, &mut blend, &mut request);
        self.y.iter().for_each(|y| y.apply(row, &mut blend, &mut request));
        (blend, request)
    }
}

impl Axis {
    /// How many values.
    pub fn len(&self) -> usize {
        match self {
            Self::Weight { values, .. } | Self::Weights(values) => values.len(),
            Self::Steps(values) => values.len(),
            Self::Seeds(values) => values.len(),
            Self::Styles(values) => values.len(),
        }
    }

    /// True without values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Looks for what cannot be drawn with a blend of so many styles.
    ///
    /// # Errors
    /// If there are no values or too many, one is out of range, or a style is not there.
    pub fn check(&self, styles: usize) -> Result<()> {
        let found = self.len();
        if !(1..=MAX_SIDE).contains(&found) {
            return Err(Error::invalid(format!(
                "expected 1 to {MAX_SIDE} values on a side of a grid, found {found}"
            )));
        }
        if let Some(style) = self.styles().iter().find(|style| **style >= styles) {
            let message = format!("the grid names style number {}, there are {styles}", style + 1);
            return Err(Error::invalid(message));
        }
        let (weights, steps) = match self {
            Self::Weight { values, .. } | Self::Weights(values) => (&values[..], &[][..]),
            Self::Steps(steps) => (&[][..], &steps[..]),
            _ => (&[][..], &[][..]),
        };
        if let Some(weight) = weights.iter().find(|w| !(-MAX_WEIGHT..=MAX_WEIGHT).contains(*w)) {
            return Err(Error::invalid(format!(
                "expected weights from -{MAX_WEIGHT} to {MAX_WEIGHT}, found {weight}"
            )));
        }
        match steps.iter().find(|steps| !(1..=MAX_STEPS).contains(*steps)) {
            Some(steps) => Err(Error::invalid(format!("expected 1 to {MAX_STEPS} steps, found {steps}"))),
            None => Ok(()),
        }
    }

    /// The styles it names, by their place.
    pub fn styles(&self) -> &[usize] {
        match self {
            Self::Weight { style, .. } => std::slice::from_ref(style),
            Self::Styles(styles) => styles,
            _ => &[],
        }
    }

    fn apply(&self, index: usize, blend: &mut Blend, request: &mut GenerateRequest) {
        match self {
            Self::Weight { style, values } => {
                if let (Some(entry), Some(value)) = (blend.entries.get_mut(*style), values.get(index)) {
                    entry.strength = at_peak(&entry.strength, *value);
                }
            }
            Self::Weights(values) => {
                let factor = values.get(index).copied().unwrap_or(1.0);
                blend.entries.iter_mut().for_each(|entry| entry.strength = entry.strength.scaled(factor));
            }
            Self::Steps(values) => request.steps = values.get(index).copied().unwrap_or(request.steps),
            Self::Seeds(values) => request.seed = values.get(index).copied().unwrap_or(request.seed),
            Self::Styles(styles) => {
                let alone = styles.get(index);
                for (place, entry) in blend.entries.iter_mut().enumerate() {
                    if alone != Some(&place) {
                        entry.strength = entry.strength.scaled(0.0);
                    }
                }
            }
        }
    }
}

impl Recipe {
    /// Notes what a grid varies, in the web UI's words; everything else is the same in all of its pictures.
    pub fn note_grid(&mut self, grid: &Grid, names: &[&str]) {
        for (axis, (kind, list)) in grid.axes().zip(TYPES.into_iter().zip(VALUES)) {
            let (what, values) = axis.words(names);
            self.other.extend([(kind.to_owned(), what), (list.to_owned(), values)]);
        }
    }

    /// True for a grid's.
    pub fn is_grid(&self) -> bool {
        self.other(TYPES[0]).is_some()
    }
}

/// The strength with `peak` as its highest weight in the denoising network; one of 0 is the same everywhere.
fn at_peak(strength: &Strength, peak: f64) -> Strength {
    match strength.unet().peak() {
        0.0 => Strength::uniform(peak),
        now => strength.scaled(peak / now),
    }
}

fn cell_px((width, height): (usize, usize), cells: usize) -> (u32, u32) {
    let up = (MIN_CELL_PX as usize).div_ceil(width.min(height).max(1)).max(1);
    let (width, height) = ((width * up) as f64, (height * up) as f64);
    let down = (MAX_SHEET_PX / (width * height * cells as f64)).sqrt().min(1.0);
    (((width * down) as u32).max(1), ((height * down) as u32).max(1))
}

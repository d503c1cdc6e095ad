//! From what is typed in the grid window to a grid.

use scumble::{
    engine::{Command, DrawGrid},
    error::{Error, Result},
    pipeline::grid::{Axis, Grid, Kind},
};

use super::{Effect, mix, request};
use crate::state::{GridForm, GridSide, Purpose, Session, Settings, Style, Varies};

/// Values a side starts with.
const FEW: usize = 5;

/// What may change along a side, with what it is called.
pub fn choices(settings: &Settings) -> Vec<(Varies, String)> {
    let styles =
        on(settings).map(|(index, style)| (Varies::Weight(index), format!("weight of {}", style.name())));
    let more = [
        (Varies::Weights, "all weights times"),
        (Varies::Steps, "steps"),
        (Varies::Seed, "seed"),
        (Varies::Style, "style, one at a time"),
        (Varies::Nothing, "nothing"),
    ];
    styles.chain(more.map(|(varies, name)| (varies, name.to_owned()))).collect()
}

/// The weights of the first two styles that are on; seeds and steps where there are none.
pub fn defaults(settings: &Settings) -> GridForm {
    let mut sides = on(settings).map(|(index, _)| Varies::Weight(index)).chain([Varies::Seed, Varies::Steps]);
    let mut side = || {
        let varies = sides.next().unwrap_or_default();
        GridSide { varies, values: typed(varies, settings) }
    };
    GridForm { sides: [side(), side()] }
}

/// The values a choice starts with.
pub fn typed(varies: Varies, settings: &Settings) -> String {
    let list = |values: Vec<String>| values.join(", ");
    let rising = || (0..FEW).map(|i| (i as f64 / (FEW - 1) as f64).to_string()).collect();
    match varies {
        Varies::Nothing => String::new(),
        Varies::Weight(_) | Varies::Weights => list(rising()),
        Varies::Steps => list([5, 10, 20, 30].map(|n: usize| n.to_string()).into()),
        Varies::Seed => list((0..4).map(|i| settings.seed.wrapping_add(i).to_string()).collect()),
        Varies::Style => list(on(settings).map(|(_, style)| style.name()).collect()),
    }
}

/// What is to be drawn.
///
/// # Errors
/// If what is typed is no list of values, or the sides change the same thing.
pub fn grid(settings: &Settings, form: &GridForm) -> Result<Grid> {
    let [x, y] = &form.sides;
    let (x, y) = (axis(x, settings)?, axis(y, settings)?);
    let (x, y) = match (x, y) {
        (Some(x), y) => (x, y),
        (None, Some(y)) => (y, None),
        (None, None) => return Err(Error::invalid("choose what changes from picture to picture")),
    };
    let grid = Grid { x, y };
    grid.check(settings.styles.as_ref().map_or(0, Vec::len))?;
    Ok(grid)
}

/// Seconds a grid takes at the pace of the last pictures: the middle one, whatever held the others up.
pub fn estimate(settings: &Settings, session: &Session, grid: &Grid) -> Option<f64> {
    let mut paces = session.paces.clone();
    paces.sort_by(f64::total_cmp);
    let pace = paces.get(paces.len() / 2)?;
    let native = session.model.as_ref().map(|model| (model.native_px, model.native_px));
    let (width, height) = settings.size.or(native)?;
    let sides = || std::iter::once(&grid.x).chain(&grid.y);
    let steps = sides().find_map(|side| match side {
        Axis::Steps(steps) => Some(steps.iter().sum::<usize>() as f64 / steps.len().max(1) as f64),
        _ => None,
    });
    let steps = steps.unwrap_or(settings.steps as f64);
    Some(pace * steps * (width * height) as f64 * grid.len() as f64)
}

pub(super) fn draw(settings: &Settings, session: &mut Session, effects: &mut Vec<Effect>) {
    match grid(settings, &session.grid) {
        Ok(grid) => {
            session.open.grid = false;
            let job = DrawGrid { mix: mix(settings, 1.0), request: request(settings, session), grid };
            effects.push(Effect::Submit(Purpose::Grid, Command::Grid(Box::new(job))));
        }
        Err(e) => session.tell(e.to_string(), e.hint().map(str::to_owned), true),
    }
}

fn axis(side: &GridSide, settings: &Settings) -> Result<Option<Axis>> {
    let kind = match side.varies {
        Varies::Nothing => return Ok(None),
        Varies::Weight(style) => Kind::Weight(style),
        Varies::Weights => Kind::Weights,
        Varies::Steps => Kind::Steps,
        Varies::Seed => Kind::Seeds,
        Varies::Style => Kind::Styles,
    };
    let names: Vec<String> = settings.styles.iter().flatten().map(Style::name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    Axis::of(kind, &side.values, &names).map(Some)
}

/// The styles that take part, by their place.
fn on(settings: &Settings) -> impl Iterator<Item = (usize, &Style)> {
    settings.styles.iter().flatten().enumerate().filter(|(_, style)| style.on)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_becomes_a_grid_or_is_refused_in_words() {
        let styles = vec![Style::new("a/ink.safetensors", 0.8), Style::new("b/riso.safetensors", 0.0)];
        let mut settings = Settings { styles: Some(styles), ..Settings::default() };
        let form = defaults(&settings);
        let drawn = grid(&settings, &form).expect("a grid");
        assert_eq!(
            (drawn.len(), drawn.x.clone()),
            (25, Axis::Weight { style: 0, values: vec![0.0, 0.25, 0.5, 0.75, 1.0] })
        );
        let side = |varies, values: &str| GridSide { varies, values: values.into() };
        let of = |x, y| GridForm { sides: [x, y] };
        let row = grid(&settings, &of(side(Varies::Nothing, ""), side(Varies::Style, "riso, ink")));
        assert_eq!(row.ok(), Some(Grid { x: Axis::Styles(vec![1, 0]), y: None }));
        for (varies, values) in [
            (Varies::Steps, "3, x"),
            (Varies::Steps, "-1"),
            (Varies::Weights, "nan"),
            (Varies::Seed, ""),
            (Varies::Style, "oil"),
            (Varies::Nothing, ""),
            (Varies::Weights, "inf"),
        ] {
            assert!(
                grid(&settings, &of(side(varies, values), side(Varies::Nothing, ""))).is_err(),
                "{values}"
            );
        }
        // One picture that was held up is not what they all take.
        let mut session = Session { paces: vec![3e-6, 1e-6, 4e-3], ..Session::default() };
        (settings.size, settings.steps) = (Some((100, 100)), 10);
        let secs = estimate(&settings, &session, &drawn).expect("an estimate");
        assert!((secs - 25.0 * 0.3).abs() < 1e-9, "{secs}");
        let steps = Grid { x: Axis::Steps(vec![10, 30]), y: None };
        let secs = estimate(&settings, &session, &steps).expect("an estimate");
        assert!((secs - 1.2).abs() < 1e-9, "{secs}");
        session.paces.clear();
        assert_eq!(estimate(&settings, &session, &steps), None);
        settings.styles = None;
        assert_eq!(defaults(&settings).sides.map(|side| side.varies), [Varies::Seed, Varies::Steps]);
    }
}

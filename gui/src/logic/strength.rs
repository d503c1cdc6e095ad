//! A card's controls as the strength the library takes, and back.

use std::path::Path;

use scumble::adapter::{
    Curve, Strength,
    strength::{Blocks, Half, Region},
};

use crate::state::{Knots, Place, Style};

/// The text encoders' bar among the blocks.
pub const TEXT: &str = "te";

/// How strongly a style acts.
pub fn strength(style: &Style) -> Strength {
    let region = region(&style.place);
    let unet = curve(style.weight, style.steps.as_deref());
    let text = match style.text_weight {
        Some(weight) => curve(weight, style.text_steps.as_deref()),
        // As in the library's words: a weight with a place means the picture, and the text has no places.
        None if region.is_some() => Curve::Constant(0.0),
        None => unet.clone(),
    };
    let text = text.scaled(style.factor(TEXT));
    let strength = Strength::curves(unet, text).with_blocks(blocks(style));
    match region {
        Some(region) => strength.in_region(region),
        None => strength,
    }
}

/// Sets a card's controls to a strength. Those that mean the same already stay as they are.
pub fn set(style: &mut Style, wanted: &Strength) {
    if strength(style) == *wanted {
        return;
    }
    let named = wanted.blocks().spelled_out();
    style.blocks = named.named().map(|(block, factor)| (block.to_string(), factor)).collect();
    style.place = wanted.region().map_or(Place::Everywhere, place);
    (style.weight, style.steps) = shape(wanted.unet());
    let text = wanted.text_encoder();
    let follows = match style.place {
        Place::Everywhere => text == *wanted.unet(),
        _ => text == Curve::Constant(0.0),
    };
    (style.text_weight, style.text_steps) = match (follows, shape(&text)) {
        (true, _) => (None, None),
        (false, (weight, steps)) => (Some(weight), steps),
    };
}

/// 0 before `from`, 1 until `to`, then 0 again.
pub fn span(from: f64, to: f64) -> Knots {
    let before = (from > 0.0).then_some([(0.0, 0.0), (from, 0.0)]);
    let after = (to < 100.0).then_some([(to, 0.0), (100.0, 0.0)]);
    let within = [(from, 1.0), (to, 1.0)];
    before.into_iter().flatten().chain(within).chain(after.into_iter().flatten()).collect()
}

/// A weight times what it is multiplied by. Spans keep their short words.
fn curve(weight: f64, steps: Option<&[(f64, f64)]>) -> Curve {
    let Some(knots) = steps else { return Curve::Constant(weight) };
    let full = || knots.iter().filter(|(_, value)| *value == 1.0);
    if let (Some((from, _)), Some((to, _))) = (full().next(), full().next_back())
        && from < to
        && knots == span(*from, *to)
    {
        return Curve::Span { value: weight, from: *from, to: *to };
    }
    match knots {
        [] => Curve::Constant(weight),
        [(_, value)] => Curve::Constant(weight * value),
        knots => Curve::Line(knots.iter().map(|(percent, value)| (*percent, weight * value)).collect()),
    }
}

/// A weight and what it is multiplied by, which give the curve again bit for bit.
fn shape(curve: &Curve) -> (f64, Option<Knots>) {
    match curve {
        Curve::Constant(weight) => (*weight, None),
        Curve::Span { value, from, to } => (*value, Some(span(*from, *to))),
        Curve::Line(points) => {
            let peak = curve.peak();
            let short = |value: f64| (value / peak * 1e4).round() / 1e4;
            let knots: Knots = points.iter().map(|(percent, value)| (*percent, short(*value))).collect();
            if knots.iter().zip(points).all(|(knot, point)| knot.1 * peak == point.1) {
                (peak, Some(knots))
            } else {
                (1.0, Some(points.clone()))
            }
        }
    }
}

fn blocks(style: &Style) -> Blocks {
    let mut blocks = Blocks::default();
    for (name, factor) in style.blocks.iter().filter(|(name, _)| *name != TEXT) {
        if let Ok(block) = name.parse() {
            // Two spellings of one block: the first counts.
            blocks.set(block, *factor).ok();
        }
    }
    blocks
}

fn region(place: &Place) -> Option<Region> {
    Some(match place {
        Place::Everywhere | Place::Painted { mask: None, .. } => return None,
        Place::Left => Region::half(Half::Left),
        Place::Right => Region::half(Half::Right),
        Place::Top => Region::half(Half::Top),
        Place::Bottom => Region::half(Half::Bottom),
        Place::Painted { mask: Some(file), outside } => Region::mask(file, *outside),
    })
}

fn place(region: &Region) -> Place {
    match region.as_half() {
        None => Place::Painted { mask: region.file().map(Path::to_path_buf), outside: region.is_outside() },
        Some(Half::Left) => Place::Left,
        Some(Half::Right) => Place::Right,
        Some(Half::Top) => Place::Top,
        Some(Half::Bottom) => Place::Bottom,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_strength_comes_back_as_controls_that_mean_it() {
        for words in [
            "0.8",
            "unet=0.8,te=0",
            "0.8@left",
            "unet=0.8@bottom,te=0.4",
            "0.8@mask=\"a, b.png\"",
            "0..0.7@0-50%@outside=m.png",
            "1@0-50%",
            "0.37@20-60%",
            "0.37@60-100%",
            "0..0.1..0.7@0-33.3-100%",
            "unet=0..1@0-50%,te=1..0@0-100%",
            "1..1..0.5..0.5@0-50-50-100%",
            "0.123456789..0.7@0-50%,down.0=0.5,mid=0",
            "-0.5..0@0-100%,up=0.25,in04=2",
        ] {
            let wanted: Strength = words.parse().expect("a strength");
            let mut style = Style::new("a.safetensors", 0.3);
            style.blocks.insert("up.1".into(), 0.5);
            set(&mut style, &wanted);
            assert_eq!(strength(&style), wanted, "{words}: {style:?}");
            assert_eq!(strength(&style).to_string(), wanted.to_string());
            let there = style.clone();
            set(&mut style, &wanted);
            assert_eq!(style, there, "{words}: nothing moves");
        }
    }

    #[test]
    fn what_has_other_words_means_the_same() {
        let wanted: Strength = "0.8,lbw=0.5,1,0,0,1,1,1,0.25,1,1,1,1,down.1=0.5".parse().expect("a strength");
        let mut style = Style::new("a.safetensors", 0.3);
        set(&mut style, &wanted);
        assert_eq!((style.weight, style.text_weight), (0.8, Some(0.4)));
        for path in ["mid_block.a.0.b", "down_blocks.1.resnets.0.c", "up_blocks.1.attentions.0.proj_in"] {
            assert_eq!(strength(&style).blocks().factor(path), wanted.blocks().factor(path), "{path}");
        }
        // A span in the words of a line.
        let wanted: Strength = "0.5..0.5..0..0@0-50-50-100%".parse().expect("a strength");
        set(&mut style, &wanted);
        assert_eq!(strength(&style).unet().to_string(), "0.5@0-50%");
        for percent in [0.0, 49.0, 50.0, 51.0, 100.0] {
            assert_eq!(strength(&style).unet().at(percent), wanted.unet().at(percent));
        }
        // A bar of the text encoders, and one that is set back.
        let mut style = Style::new("a.safetensors", 0.5);
        style.set_factor(TEXT, 0.5);
        style.set_factor("mid", 0.5);
        style.set_factor("mid", 1.0);
        assert_eq!(strength(&style).to_string(), "unet=0.5,te=0.25");
        style.place = Place::Painted { mask: None, outside: false };
        assert_eq!(strength(&style).to_string(), "unet=0.5,te=0.25", "nothing is painted yet");
    }
}

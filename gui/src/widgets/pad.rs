//! A square to mix two to four styles in: corners are styles, the point is the mix.

use eframe::egui::{
    self, Align2, Color32, FontId, Pos2, Rect, Response, Sense, Stroke, Ui, WidgetInfo, accesskit::Role,
    pos2, vec2,
};

use crate::{text, theme::Palette};

/// Where the styles are: left and right; a triangle; the corners.
fn corners(n: usize) -> Vec<Pos2> {
    match n {
        2 => vec![pos2(0.0, 0.5), pos2(1.0, 0.5)],
        3 => vec![pos2(0.0, 0.0), pos2(1.0, 0.0), pos2(0.5, 1.0)],
        _ => vec![pos2(0.0, 0.0), pos2(1.0, 0.0), pos2(0.0, 1.0), pos2(1.0, 1.0)],
    }
}

/// The shares of the styles at a point of the unit square. They are not negative and add up to 1.
pub fn shares(point: Pos2, n: usize) -> Vec<f64> {
    let (x, y) = (f64::from(point.x.clamp(0.0, 1.0)), f64::from(point.y.clamp(0.0, 1.0)));
    match n {
        2 => vec![1.0 - x, x],
        3 => {
            // Barycentric in the triangle; what is beside it goes to its nearest edge.
            let third = y;
            let rest = 1.0 - third;
            let along = if rest > 0.0 { ((x - third * 0.5) / rest).clamp(0.0, 1.0) } else { 0.5 };
            vec![rest * (1.0 - along), rest * along, third]
        }
        _ => vec![(1.0 - x) * (1.0 - y), x * (1.0 - y), (1.0 - x) * y, x * y],
    }
}

/// The point of a mix: where its shares would put it.
pub fn point(weights: &[f64]) -> Pos2 {
    let shares: Vec<f64> = weights.iter().map(|w| w.max(0.0)).collect();
    let sum: f64 = shares.iter().sum();
    if sum <= 0.0 {
        return pos2(0.5, 0.5);
    }
    let corners = corners(weights.len());
    let mean = |axis: fn(&Pos2) -> f32| {
        let along = corners.iter().zip(&shares).map(|(corner, share)| f64::from(axis(corner)) * share);
        (along.sum::<f64>() / sum) as f32
    };
    pos2(mean(|p| p.x), mean(|p| p.y))
}

/// Shows the pad; answers the new shares while the point is moved.
pub fn show(ui: &mut Ui, height: f32, (names, weights): (&[String], &[f64])) -> (Response, Option<Vec<f64>>) {
    let size = vec2(ui.available_width(), height);
    let (outer, mut response) = ui.allocate_exact_size(size, Sense::click_and_drag());
    let palette = Palette::of(ui);
    let square = outer.shrink2(vec2(18.0, 26.0));
    let now = point(weights);
    let mut moved = None;
    if let Some(pointer) = response.interact_pointer_pos() {
        let to = (pointer - square.min) / square.size();
        moved = Some(shares(pos2(to.x, to.y), names.len()));
    } else if response.has_focus() {
        let presses = |a, b| ui.input(|i| i.num_presses(b) as f32 - i.num_presses(a) as f32) * 0.05;
        let by = vec2(
            presses(egui::Key::ArrowLeft, egui::Key::ArrowRight),
            presses(egui::Key::ArrowUp, egui::Key::ArrowDown),
        );
        if by != egui::Vec2::ZERO {
            moved = Some(shares(now + by, names.len()));
        }
    }
    if moved.is_some() {
        response.mark_changed();
    }
    response.widget_info(|| WidgetInfo::labeled(Role::Group, true, text::PAD));
    let painter = ui.painter_at(outer);
    painter.rect(outer, 8.0, palette.card, Stroke::new(1.0, palette.line), egui::StrokeKind::Inside);
    let place = |p: Pos2| square.min + p.to_vec2() * square.size();
    let mix = moved.as_deref().map_or(now, point);
    for (corner, name) in corners(names.len()).into_iter().zip(names) {
        painter.line_segment([place(corner), place(mix)], Stroke::new(1.0, palette.line));
        painter.circle_filled(place(corner), 4.0, palette.quiet);
        label(&painter, (outer, place(corner), corner), name, palette);
    }
    painter.circle(place(mix), 8.0, palette.accent, Stroke::new(2.0, palette.card));
    (response.on_hover_text(text::PAD_HINT), moved)
}

/// Above the corner or below it, inside of the card.
fn label(painter: &egui::Painter, (outer, at, corner): (Rect, Pos2, Pos2), name: &str, palette: Palette) {
    let below = corner.y > 0.6;
    let horizontal = match corner.x {
        x if x < 0.3 => egui::Align::Min,
        x if x > 0.7 => egui::Align::Max,
        _ => egui::Align::Center,
    };
    let vertical = if below { egui::Align::Min } else { egui::Align::Max };
    let x = match horizontal {
        egui::Align::Min => outer.left() + 10.0,
        egui::Align::Max => outer.right() - 10.0,
        egui::Align::Center => at.x,
    };
    let y = if below { at.y + 6.0 } else { at.y - 6.0 };
    let short: String = name.chars().take(16).collect();
    let colour: Color32 = palette.text;
    painter.text(pos2(x, y), Align2([horizontal, vertical]), short, FontId::proportional(12.0), colour);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_a_mix_and_the_point_comes_back() {
        for n in 2..=4 {
            for (x, y) in [(0.5, 0.25), (0.5, 0.5), (0.4, 0.1), (0.6, 0.3)] {
                let at = pos2(x, y);
                let shares = shares(at, n);
                assert_eq!(shares.len(), n);
                assert!((shares.iter().sum::<f64>() - 1.0).abs() < 1e-6 && shares.iter().all(|s| *s >= 0.0));
                let back = point(&shares);
                assert!((back.x - x).abs() < 1e-5, "{n}: {at:?} {back:?}");
                assert!(n == 2 || (back.y - y).abs() < 1e-5, "{n}: {at:?} {back:?}");
            }
        }
        assert_eq!(shares(pos2(1.0, 1.0), 4), [0.0, 0.0, 0.0, 1.0]);
        assert_eq!(point(&[0.0, 0.0]), pos2(0.5, 0.5));
    }
}

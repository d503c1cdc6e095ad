//! Weights by block, step and place, through the cards' controls.

use std::path::{Path, PathBuf};

use egui_kittest::kittest::Queryable as _;
use scumble_gui::{
    logic::{Action, strength::strength},
    state::{Place, Settings, Style},
    text,
};

use crate::support::{Window, sample, settings};

fn style(window: &Window, index: usize) -> Style {
    window.state().settings.styles.as_ref().expect("styles")[index].clone()
}

fn words(window: &Window, index: usize) -> String {
    strength(&style(window, index)).to_string()
}

/// Sets a control by its label, and waits for the picture.
fn set(window: &mut Window, label: &str, value: f64) -> Vec<u8> {
    window.harness.get_by_label(label).set_value_accesskit(value);
    window.frame();
    window.settle();
    window.picture()
}

fn press(window: &mut Window, label: &str) -> Vec<u8> {
    window.click(label);
    window.settle();
    window.picture()
}

#[test]
fn bars_at_0_on_every_block_are_weight_0() {
    let mut window = Window::open(settings(&[("blueprint", 0.8)]));
    window.settle();
    let first = window.picture();
    window.click("Split blueprint");
    window.click("Blocks blueprint");
    let blocks = window.state().session.model.as_ref().expect("a model").blocks.clone();
    assert_eq!(blocks, ["te", "in00", "down.0", "down.1", "down.2", "mid", "up.0", "up.1", "up.2"]);
    for block in blocks.iter().skip(1) {
        let bar = format!("blueprint block {block}");
        assert_eq!(window.harness.get_by_label(&bar).value().as_deref(), Some("1.00"));
        set(&mut window, &bar, 0.0);
    }
    let without = window.picture();
    assert_ne!(without, first);
    assert_eq!(words(&window, 0), "0.8,down.0=0,down.1=0,down.2=0,mid=0,up.0=0,up.1=0,up.2=0,in00=0");
    press(&mut window, "Reset Blocks blueprint");
    assert_eq!(window.picture(), first);
    assert_eq!(set(&mut window, "blueprint picture", 0.0), without, "bit for bit");

    // The text encoders have a bar, too; arrows move it, and a screen reader.
    window.harness.get_by_label("blueprint block te").focus();
    window.frame();
    window.harness.key_press(eframe::egui::Key::ArrowDown);
    window.frame();
    assert_eq!(style(&window, 0).factor("te"), 0.95);
    set(&mut window, "blueprint block te", 0.5);
    assert_eq!(words(&window, 0), "unet=0,te=0.4");

    // Blocks of larger models are kept, said, and change nothing here.
    let larger = Style { blocks: [("down.3".to_owned(), 0.5)].into(), ..style(&window, 0) };
    let quiet = Settings { styles: Some(vec![larger]), ..window.state().settings.clone() };
    let mut window = Window::open(quiet);
    window.settle();
    window.click("Blocks blueprint");
    window.harness.get_by_label(&format!("{} down.3 0.5", text::BLOCKS_KEPT));
}

#[test]
fn curves_change_the_picture_and_come_back_with_it() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut window = Window::open(settings(&[("blueprint", 0.8), ("riso", 0.6)]));
    window.settle();
    let first = window.picture();
    window.click("Steps blueprint");
    let faded = press(&mut window, "blueprint curve: Fade in");
    assert_ne!(faded, first);
    assert_eq!(words(&window, 0), "0..0.8@0-100%");
    let bent = set(&mut window, "blueprint curve, point 1, 0 % of the steps", 1.5);
    assert_ne!(bent, faded);
    press(&mut window, "blueprint curve: First half");
    assert_eq!(words(&window, 0), "0.8@0-50%");
    assert_eq!(press(&mut window, "blueprint curve: Constant"), first);
    press(&mut window, "blueprint curve: Second half");

    // The other style: blocks and a half of the picture, its text apart.
    window.click("Where riso");
    press(&mut window, "riso Where: Left");
    assert_eq!(words(&window, 1), "0.6@left");
    window.click("Split riso");
    window.click("Blocks riso");
    let drawn = set(&mut window, "riso block mid", 0.25);
    assert_eq!(words(&window, 1), "unet=0.6@left,te=0.6,mid=0.25");

    // A file cannot hold that, which is said before it is tried.
    window.harness.get_by_label(text::EXPORT).click();
    window.frame();
    window.harness.get_by_label(&format!("blueprint {}", text::EXPORT_CHANGES));
    window.harness.key_press(eframe::egui::Key::Escape);
    window.frame();
    assert_eq!(window.picture(), drawn);
    comes_back(&mut window, folder.path());
}

/// Saves what is drawn, brings it back in a new window, and answers that, and the file.
fn comes_back(window: &mut Window, folder: &Path) -> (Window, PathBuf) {
    let file = folder.join("house.png");
    window.act(Action::SaveTo(file.clone()));
    window.until("the file", |_| file.is_file());
    let mut fresh = Window::open(Settings { live: false, ..settings(&[]) });
    for name in ["blueprint", "riso"] {
        fresh.drop_file(sample(&format!("adapters/{name}.safetensors")));
    }
    fresh.settle();
    fresh.drop_file(file.clone());
    fresh.settle();
    assert_eq!(fresh.state().settings.styles, window.state().settings.styles);
    assert_eq!(fresh.picture(), window.picture());
    (fresh, file)
}

/// Paints a line on the picture, in shares of its sides, and waits for the picture that follows.
fn paint(window: &mut Window, style: usize, (from, to): ([f32; 2], [f32; 2])) {
    let rect = window.harness.get_by_label_contains(text::MASK_OF).rect();
    let at = |share: [f32; 2]| rect.min + eframe::egui::Vec2::from(share) * rect.size();
    window.harness.hover_at(at(from));
    window.harness.step();
    window.harness.drag_at(at(from));
    window.harness.step();
    window.harness.hover_at(at(to));
    window.harness.step();
    window.harness.drop_at(at(to));
    let before = style_mask(window, style);
    window.until("the mask", |state| {
        let styles = state.settings.styles.as_ref().expect("styles");
        !matches!(&styles[style].place, Place::Painted { mask, .. } if *mask == before)
    });
    window.settle();
}

fn style_mask(window: &Window, index: usize) -> Option<PathBuf> {
    match style(window, index).place {
        Place::Painted { mask, .. } => mask,
        _ => None,
    }
}

/// The mean difference of two pictures left and right of the middle.
fn differences(a: &[u8], b: &[u8], width: usize) -> [f64; 2] {
    let mut sums = [0.0; 2];
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        sums[usize::from(i / 3 % width >= width / 2)] += f64::from(a.abs_diff(*b));
    }
    sums.map(|sum| sum / (a.len() as f64 / 2.0))
}

#[test]
fn painted_masks_act_where_they_are_and_come_back() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    // Guidance and many steps carry a change over the whole picture.
    let styles = settings(&[("blueprint", 0.0), ("riso", 0.0)]);
    let large = Settings { size: Some((128, 128)), steps: 2, cfg: Some(1.0), ..styles };
    let mut window = Window::open_within(large, folder.path());
    window.settle();
    let base = window.picture();
    set(&mut window, "blueprint weight", 1.0);

    window.click("Where blueprint");
    press(&mut window, "blueprint Where: Painted");
    set(&mut window, "Brush size blueprint", 0.2);
    paint(&mut window, 0, ([0.15, 0.0], [0.15, 1.0]));
    let left = window.picture();
    let [inside, outside] = differences(&base, &left, 128);
    assert!(inside > 4.0 * outside, "left {inside}, right {outside}");
    window.click("Done blueprint");
    assert!(window.harness.query_by_label_contains(text::MASK_OF).is_none());

    // Another style on the other side; what was painted there is taken back with Invert twice.
    set(&mut window, "riso weight", 1.0);
    window.click("Where riso");
    press(&mut window, "riso Where: Painted");
    paint(&mut window, 1, ([0.85, 0.0], [0.85, 1.0]));
    let both = window.picture();
    let [changed_left, changed_right] = differences(&left, &both, 128);
    assert!(changed_right > 2.0 * changed_left, "left {changed_left}, right {changed_right}");
    let mask = style_mask(&window, 1);
    press(&mut window, "Invert riso");
    window.until("the inverted mask", |_| true);
    window.settle();
    press(&mut window, "Invert riso");
    window.until("the mask as it was", |state| {
        matches!(&state.settings.styles.as_ref().expect("styles")[1].place, Place::Painted { mask: now, .. } if *now == mask)
    });
    window.settle();
    assert_eq!(window.picture(), both);

    // Another size keeps it; the picture's file brings everything back while the mask is there.
    let (mut fresh, file) = comes_back(&mut window, folder.path());
    std::fs::remove_file(mask.expect("a mask")).expect("to be removed");
    fresh.drop_file(file);
    fresh.settle();
    assert_eq!(style(&fresh, 1).place, Place::Everywhere);
    assert!(
        fresh.state().session.problems.iter().any(|p| p.is_error && p.message.contains("mask of `riso`"))
    );
}

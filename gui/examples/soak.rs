//! Hours of use in minutes: 500 pictures with sliders moved at random and 50 that are cancelled, through the window's own
//! widgets. Fails if a job is lost or memory grows: `cargo run --release -p scumble-gui --example soak`.

#[path = "../tests/viewer/support.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod support;

use std::{io::Write as _, process::ExitCode, time::Instant};

use eframe::egui::accesskit::Role;
use egui_kittest::kittest::Queryable as _;
use scumble_gui::{
    logic::Action,
    state::{Settings, Tally},
    text,
};
use support::{Window, sample_styles, settings};

#[global_allocator]
static HEAP: scumble::heap::Heap = scumble::heap::Heap;

const PICTURES: u64 = 500;
/// One of so many is cancelled besides.
const CANCELLED: u64 = 10;
/// Pictures between two looks at the memory; after the first look it must not grow by more than this share.
const LOOK: u64 = 50;
const GROWTH: f64 = 0.05;
const SLIDERS: [&str; 3] = ["blueprint weight", "stained-glass weight", "riso weight"];

fn main() -> ExitCode {
    scumble::device::prepare_process();
    let begun = Instant::now();
    let mut window =
        Window::open(Settings { styles: Some(sample_styles()), steps: 4, keep_seed: false, ..settings(&[]) });
    window.settle();
    let (mut dice, mut first, mut fine, mut stopped) = (7, 0, true, 0);
    for picture in 1..=PICTURES {
        move_slider(&mut window, &mut dice);
        if picture % CANCELLED == 0 {
            // As likely before its first step as after it.
            for _ in 0..roll(&mut dice, 4) {
                window.harness.step();
            }
            let before = window.state().session.tally.cancelled;
            window.act(Action::Cancel);
            window.settle();
            stopped += window.state().session.tally.cancelled - before;
            move_slider(&mut window, &mut dice);
        }
        if roll(&mut dice, 3) == 0 {
            // A newer picture takes the place of the one under way.
            move_slider(&mut window, &mut dice);
        }
        window.settle();
        if picture % 5 == 0 {
            window.click(text::GENERATE);
            window.settle();
        }
        if picture % LOOK == 0 {
            let bytes = window.state().session.memory_bytes.unwrap_or_default();
            let tally = window.state().session.tally;
            first = if first == 0 { bytes } else { first };
            let grown = bytes as f64 / first.max(1) as f64 - 1.0;
            let textures = window.harness.ctx.tex_manager().read().num_allocated();
            fine &= grown <= GROWTH && is_complete(tally);
            say(&format!(
                "{picture} pictures, {:.0} s: {:.1} MB ({:+.1} %), {textures} textures, {tally:?}",
                begun.elapsed().as_secs_f64(),
                bytes as f64 / 1e6,
                grown * 100.0
            ));
        }
    }
    let problems = &window.state().session.problems;
    let failed = window.state().session.tally.failed;
    fine &= failed == 0 && problems.iter().all(|problem| !problem.is_error);
    say(&format!("{stopped} stopped by hand, {failed} failed: {}", if fine { "fine" } else { "NOT FINE" }));
    problems.iter().for_each(|problem| say(&problem.message));
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Every job that was asked for has ended once.
fn is_complete(tally: Tally) -> bool {
    tally.submitted == tally.finished + tally.cancelled + tally.failed && tally.strays == 0
}

fn move_slider(window: &mut Window, dice: &mut u64) {
    let slider = SLIDERS[roll(dice, 3) as usize];
    let weight = roll(dice, 301) as f64 / 100.0 - 1.0;
    window.harness.get_by_role_and_label(Role::Slider, slider).set_value_accesskit(weight);
    window.frame();
}

/// A whole number below `n` (`SplitMix64`).
fn roll(dice: &mut u64, n: u64) -> u64 {
    *dice = dice.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*dice ^ (*dice >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)) % n
}

fn say(line: &str) {
    writeln!(std::io::stdout().lock(), "{line}").ok();
}

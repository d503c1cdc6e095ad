//! How fast the window is, in a real one drawn by software: `cargo run --release -p scumble-gui --example live`.
//!
//! From the start of the built viewer to what it shows first; from a slider to the first preview and the picture; how long
//! frames take while pictures are drawn and while a style is trained. Needs Xvfb.

#[path = "../tests/window/display.rs"]
#[allow(dead_code, reason = "the test of the window uses the rest")]
mod display;
#[path = "../tests/viewer/support.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod support;

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use display::Display;
use eframe::egui::{self, Context, ViewportCommand};
use scumble_gui::{
    App,
    logic::Action,
    state::{Settings, Tab, TrainForm},
};
use support::{pictures, sample_styles};

#[global_allocator]
static HEAP: scumble::heap::Heap = scumble::heap::Heap;

const STARTS: usize = 5;
const MOVES: usize = 20;
/// As many again follow with a frame drawn as often as a screen shows one, for the time that frames take.
const ALL_MOVES: usize = 2 * MOVES;
const TRAINED: u64 = 60;
/// A frame of 60 a second.
const FRAME: Duration = Duration::from_micros(16_667);

fn main() -> eframe::Result {
    scumble::device::prepare_process();
    match std::env::args_os().nth(1) {
        Some(home) => inside(Path::new(&home)),
        None => {
            outside();
            Ok(())
        }
    }
}

/// The viewer as it is installed, looked at from outside; then this program in a window of its own.
fn outside() {
    let Some(display) = Display::start(1280, 800) else { return };
    let home = tempfile::tempdir().expect("a temporary folder");
    let own = std::env::current_exe().expect("this program");
    let viewer = own.parent().and_then(Path::parent).expect("its folder").join("scumble-gui");
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        let begun = Instant::now();
        let mut program = display
            .command(&viewer.to_string_lossy(), home.path())
            .spawn()
            .expect("`cargo build --release -p scumble-gui` first");
        // Nothing is on the display but the window, which begins black.
        while display.pixels().get_pixel(20, 400).0 == [0, 0, 0] {
            assert!(begun.elapsed() < Duration::from_secs(60), "no window");
            std::thread::sleep(Duration::from_millis(2));
        }
        starts.push(begun.elapsed());
        program.kill().expect("it ends");
        program.wait().expect("it has ended");
        while display.pixels().get_pixel(20, 400).0 != [0, 0, 0] {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    told("from start to first paint", &mut starts);
    let mut inside = display.command(&own.to_string_lossy(), home.path());
    assert!(inside.arg(home.path()).status().expect("this program").success());
}

fn inside(home: &Path) -> eframe::Result {
    let viewport = egui::ViewportBuilder::default().with_inner_size([1280.0, 800.0]);
    let options = eframe::NativeOptions { viewport, ..Default::default() };
    let folder = home.to_path_buf();
    eframe::run_native(
        "live",
        options,
        Box::new(|cc| {
            let settings = Settings { styles: Some(sample_styles()), ..Settings::default() };
            let app = App::with(&cc.egui_ctx, settings)?;
            Ok(Box::new(Live {
                app,
                folder,
                stage: Stage::Opening,
                moved: Instant::now(),
                last: None,
                seen: Seen::default(),
            }))
        }),
    )
}

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Opening,
    /// Moves of the slider that were made; whether a preview of the last one was seen.
    Drawing(usize, bool),
    Training,
    Closing,
}

#[derive(Default)]
struct Seen {
    previews: Vec<Duration>,
    pictures: Vec<Duration>,
    /// The work of frames, and the time from one to the next.
    frames: Vec<Duration>,
    gaps: Vec<Duration>,
}

struct Live {
    app: App,
    folder: PathBuf,
    stage: Stage,
    moved: Instant,
    last: Option<Instant>,
    seen: Seen,
}

impl Live {
    fn slide(&mut self, to: usize) {
        self.stage = Stage::Drawing(to, false);
        self.moved = Instant::now();
        let weight = to as f64 / ALL_MOVES as f64;
        self.app
            .change(|settings| settings.styles.iter_mut().flatten().take(1).for_each(|s| s.weight = weight));
    }

    /// What was shown by the frame before.
    fn look(&mut self, ctx: &Context) {
        let session = &self.app.state().session;
        let (preview, idle) = (session.canvas.preview.is_some(), session.jobs.is_empty());
        match self.stage {
            Stage::Opening if idle => self.slide(1),
            Stage::Drawing(n, false) if preview => {
                self.seen.previews.push(self.moved.elapsed());
                self.stage = Stage::Drawing(n, true);
            }
            Stage::Drawing(n, true) if !preview => {
                self.seen.pictures.push(self.moved.elapsed());
                if n == MOVES {
                    told("from a slider to the first preview", &mut self.seen.previews);
                    told("from a slider to the picture of 20 steps", &mut self.seen.pictures);
                    (self.seen, self.last) = (Seen::default(), None);
                }
                if n < ALL_MOVES {
                    self.slide(n + 1);
                } else {
                    self.told_frames("while pictures are drawn");
                    self.train();
                }
            }
            Stage::Training if idle => {
                self.told_frames("while a style is trained");
                self.stage = Stage::Closing;
                ctx.send_viewport_cmd(ViewportCommand::Close);
            }
            _ => {}
        }
    }

    fn train(&mut self) {
        self.stage = Stage::Training;
        let images = pictures(&self.folder);
        let form = TrainForm { steps: TRAINED, preview_every: 0, ..TrainForm::default() };
        self.app.change(|settings| (settings.live, settings.tab, settings.train) = (false, Tab::Train, form));
        self.app.act(Action::TrainFolder(images));
        self.app.act(Action::StartTraining);
    }

    fn told_frames(&mut self, when: &str) {
        told(&format!("work of a frame {when}"), &mut self.seen.frames);
        told(&format!("from frame to frame {when}"), &mut self.seen.gaps);
    }
}

impl eframe::App for Live {
    fn logic(&mut self, ctx: &Context, frame: &mut eframe::Frame) {
        eframe::App::logic(&mut self.app, ctx, frame);
    }

    fn ui(&mut self, ui: &mut egui::Ui, frame: &mut eframe::Frame) {
        let ctx = ui.ctx().clone();
        if matches!(self.stage, Stage::Drawing(..) | Stage::Training) {
            let now = Instant::now();
            self.seen.gaps.extend(self.last.replace(now).map(|last| now - last));
            self.seen.frames.extend(frame.info().cpu_usage.map(Duration::from_secs_f32));
        }
        self.look(&ctx);
        self.app.draw_ui(ui);
        // Pictures are timed with the frames the window asks for itself.
        if !matches!(self.stage, Stage::Drawing(1..=MOVES, _)) {
            ctx.request_repaint_after(FRAME);
        }
    }
}

/// Median, 99th of a hundred, slowest.
fn told(what: &str, times: &mut Vec<Duration>) {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
    let (half, most, all) = (at(0.5), at(0.99), at(1.0));
    let line =
        format!("{what}: median {half:.1} ms, p99 {most:.1} ms, slowest of {} {all:.1} ms", times.len());
    writeln!(std::io::stdout().lock(), "{line}").ok();
    times.clear();
}

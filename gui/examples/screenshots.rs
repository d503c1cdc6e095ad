//! The pictures of docs/: `cargo run --release -p scumble-gui --example screenshots [FOLDER [SCALE]]`.
//!
//! Opens the window on a display without a screen (Xvfb), brings it into every state that is shown, and writes what is to be
//! seen, at 1280x800 or that times SCALE. With ImageMagick's `convert`, in few colours.

#[path = "../tests/window/display.rs"]
#[allow(dead_code, reason = "the test of the window uses the rest")]
mod display;
#[path = "../tests/viewer/support.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod support;

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex},
};

use display::Display;
use eframe::egui::{self, ColorImage, Context, Event, Key, Modifiers, ViewportCommand};
use scumble_gui::{
    App,
    logic::Action,
    state::{Run, Settings, Tab, ThemeChoice, TrainForm},
};
use support::{sample, settings};

#[global_allocator]
static HEAP: scumble::heap::Heap = scumble::heap::Heap;

const SIZE: [f32; 2] = [1280.0, 800.0];
/// Frames until animations have ended.
const CALM: u32 = 40;

fn main() -> eframe::Result {
    scumble::device::prepare_process();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let folder = PathBuf::from(arguments.first().map_or("docs", String::as_str));
    let scale: f32 = arguments.get(1).and_then(|scale| scale.parse().ok()).unwrap_or(1.0);
    if arguments.get(2).is_some() {
        return inside(folder, scale);
    }
    let side = |points: f32| (points * scale) as u32;
    let Some(display) = Display::start(side(SIZE[0]), side(SIZE[1])) else { return Ok(()) };
    let home = tempfile::tempdir().expect("a temporary folder");
    let own = std::env::current_exe().expect("this program");
    let mut inside = display.command(&own.to_string_lossy(), home.path());
    let status = inside.arg(&folder).arg(scale.to_string()).arg("inside").status();
    assert!(status.expect("this program").success());
    Ok(())
}

fn inside(folder: PathBuf, scale: f32) -> eframe::Result {
    let viewport = egui::ViewportBuilder::default().with_inner_size([SIZE[0] * scale, SIZE[1] * scale]);
    let options = eframe::NativeOptions { viewport, persist_window: false, ..Default::default() };
    eframe::run_native(
        "screenshots",
        options,
        Box::new(move |cc| {
            cc.egui_ctx.set_pixels_per_point(scale);
            let mut waiting = scenes();
            waiting.reverse();
            let app = App::with(&cc.egui_ctx, Settings { live: false, ..settings(&[]) })?;
            let taken = Arc::default();
            Ok(Box::new(Studio { app, folder, waiting, scene: None, calm: 0, taken }))
        }),
    )
}

/// A state of the window.
struct Scene {
    name: &'static str,
    settings: Settings,
    /// Prompts and seeds drawn first, the last one as a change draws it.
    drawn: Vec<(&'static str, u64)>,
    /// Done then, one after the other.
    actions: Vec<Action>,
    keys: Vec<(Modifiers, Key)>,
    /// True when it is to be seen.
    ready: fn(&App) -> bool,
}

fn scenes() -> Vec<Scene> {
    let pictures = std::env::home_dir().unwrap_or_default().join("riso");
    copy(&sample("riso"), &pictures);
    let train = TrainForm { name: "riso-2".into(), steps: 1000, preview_every: 20, ..TrainForm::default() };
    let idle = |app: &App| app.state().session.jobs.is_empty();
    let scene = |name, theme, styles: &[(&str, f64)]| Scene {
        name,
        settings: Settings { theme, steps: 20, size: None, live: false, ..settings(styles) },
        drawn: vec![("house, blueprint style", 7)],
        actions: Vec::new(),
        keys: Vec::new(),
        ready: idle,
    };
    let three = [("blueprint", 0.8), ("stained-glass", 0.0), ("riso", 0.0)];
    let two = [("stained-glass", 0.6), ("riso", 0.5)];
    let (light, dark) = (ThemeChoice::Light, ThemeChoice::Dark);
    let key = |key| vec![(Modifiers::COMMAND, key)];
    let mut training = scene("viewer-train", light, &[]);
    (training.settings.tab, training.settings.train) = (Tab::Train, train);
    vec![
        Scene {
            drawn: vec![
                ("owl, blueprint style", 4),
                ("car, blueprint style", 5),
                ("house, blueprint style", 7),
            ],
            ..scene("viewer-draw", light, &three)
        },
        Scene {
            drawn: vec![("fox, stained-glass style", 3), ("owl, stained-glass style", 7)],
            actions: vec![Action::ToggleCompare],
            ..scene("viewer-blend", dark, &two)
        },
        Scene {
            actions: vec![Action::ScanLibrary(sample("adapters"))],
            keys: key(Key::L),
            ..scene("viewer-library", dark, &three)
        },
        Scene { keys: key(Key::E), ..scene("viewer-export", light, &two) },
        Scene { keys: vec![(Modifiers::NONE, Key::F1)], ..scene("viewer-help", dark, &three) },
        Scene {
            drawn: Vec::new(),
            actions: vec![Action::TrainFolder(pictures), Action::StartTraining],
            ready: |app| {
                let training = &app.state().session.training;
                training.samples.len() >= 4 && training.run == Run::Running
            },
            ..training
        },
    ]
}

struct Studio {
    app: App,
    folder: PathBuf,
    waiting: Vec<Scene>,
    scene: Option<Scene>,
    /// Frames since the scene was ready.
    calm: u32,
    taken: Arc<Mutex<Option<Arc<ColorImage>>>>,
}

impl Studio {
    fn step(&mut self, ctx: &Context) {
        if let Some(image) = self.taken.lock().ok().and_then(|mut taken| taken.take()) {
            let name = self.scene.take().map_or("none", |scene| scene.name);
            save(&self.folder.join(format!("{name}.png")), &image);
        }
        let Some(scene) = &mut self.scene else { return self.next(ctx) };
        let mut ready = (scene.ready)(&self.app);
        if self.app.state().session.jobs.is_empty() {
            if !scene.drawn.is_empty() {
                let (prompt, seed) = scene.drawn.remove(0);
                let live = scene.drawn.is_empty();
                self.app.change(|s| (s.prompt, s.seed, s.live) = (prompt.into(), seed, live));
                if !live {
                    self.app.act(Action::Generate);
                }
                ready = false;
            } else if !scene.actions.is_empty() {
                self.app.act(scene.actions.remove(0));
                ready = false;
            }
        }
        self.calm = if ready { self.calm + 1 } else { 0 };
        if self.calm == CALM {
            let taken = self.taken.clone();
            ctx.request_screenshot(move |image| {
                if let Ok(mut taken) = taken.lock() {
                    *taken = Some(image);
                }
            });
        }
    }

    fn next(&mut self, ctx: &Context) {
        self.calm = 0;
        self.scene = self.waiting.pop();
        match &self.scene {
            Some(scene) => match App::with(ctx, scene.settings.clone()) {
                Ok(app) => self.app = app,
                Err(_) => self.scene = None,
            },
            None => ctx.send_viewport_cmd(ViewportCommand::Close),
        }
    }
}

impl eframe::App for Studio {
    fn raw_input_hook(&mut self, _: &Context, input: &mut egui::RawInput) {
        // Once the scene has been open for a few frames.
        if let Some(scene) = self.scene.as_mut().filter(|_| self.calm == 5) {
            for (modifiers, key) in scene.keys.drain(..) {
                let pressed = true;
                input.events.push(Event::Key { key, physical_key: None, pressed, repeat: false, modifiers });
            }
        }
    }

    fn ui(&mut self, ui: &mut egui::Ui, _: &mut eframe::Frame) {
        let ctx = ui.ctx().clone();
        self.step(&ctx);
        self.app.draw_ui(ui);
        ctx.request_repaint_after(std::time::Duration::from_millis(16));
    }
}

fn save(path: &Path, image: &ColorImage) {
    let bytes: Vec<u8> = image.pixels.iter().flat_map(|p| [p.r(), p.g(), p.b()]).collect();
    let picture = image::RgbImage::from_raw(image.width() as u32, image.height() as u32, bytes);
    picture.expect("its pixels").save(path).expect("a file");
    let mut convert = Command::new("convert");
    convert.arg(path).args(["-dither", "None", "-colors", "256", "-define", "png:compression-level=9"]);
    // Without it, the file is larger.
    convert.arg(format!("PNG8:{}", path.display())).status().ok();
}

/// The pictures of a folder, where something may be written beside them.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("the sample data").flatten() {
        std::fs::copy(entry.path(), to.join(entry.file_name())).expect("a file");
    }
}

//! A window to look into.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use eframe::egui::Key;
use egui_kittest::{Harness, kittest::Queryable as _};
use scumble_gui::{
    App,
    logic::Action,
    state::{Settings, State, Style},
};

/// A file of the sample data.
pub fn sample(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../sample-data").join(name)
}

/// The blend of a first start.
pub fn sample_styles() -> Vec<Style> {
    let style = |(name, weight)| Style::new(sample(&format!("adapters/{name}.safetensors")), weight);
    [("blueprint", 0.8), ("stained-glass", 0.0), ("riso", 0.0)].map(style).to_vec()
}

/// Small pictures of few steps, with these styles.
pub fn settings(styles: &[(&str, f64)]) -> Settings {
    let style =
        |(name, weight): &(&str, f64)| Style::new(sample(&format!("adapters/{name}.safetensors")), *weight);
    Settings {
        styles: Some(styles.iter().map(style).collect()),
        steps: 3,
        size: Some((64, 64)),
        keep_seed: true,
        ..Settings::default()
    }
}

/// A folder of four pictures with captions.
pub fn pictures(folder: &Path) -> PathBuf {
    let to = folder.join("riso");
    std::fs::create_dir(&to).expect("a folder");
    for name in ["fox", "car", "owl", "cup"].iter().flat_map(|n| [format!("{n}.jpg"), format!("{n}.txt")]) {
        std::fs::copy(sample("riso").join(&name), to.join(&name)).expect("a picture");
    }
    to
}

/// What eframe writes settings into.
#[derive(Default)]
pub struct Stored(pub BTreeMap<String, String>);

impl eframe::Storage for Stored {
    fn get_string(&self, key: &str) -> Option<String> {
        self.0.get(key).cloned()
    }

    fn set_string(&mut self, key: &str, value: String) {
        self.0.insert(key.into(), value);
    }

    fn remove_string(&mut self, key: &str) {
        self.0.remove(key);
    }

    fn flush(&mut self) {}
}

/// What the harness leaves free around what it shows.
pub const MARGIN: f32 = 8.0;

/// A window of a viewer, of 1280x800.
pub struct Window {
    pub harness: Harness<'static, Option<App>>,
}

impl Window {
    /// One that keeps nothing.
    pub fn open(settings: Settings) -> Self {
        Self::opened(settings, None)
    }

    /// One with its folder.
    pub fn open_within(settings: Settings, folder: &Path) -> Self {
        Self::opened(settings, Some(folder.to_path_buf()))
    }

    fn opened(settings: Settings, folder: Option<PathBuf>) -> Self {
        let mut waiting = Some(settings);
        let size = [1280.0 + 2.0 * MARGIN, 800.0 + 2.0 * MARGIN];
        let harness = Harness::builder().with_size(size).with_max_steps(16).build_ui_state(
            move |ui, app: &mut Option<App>| {
                if let Some(settings) = waiting.take() {
                    *app = match folder.clone() {
                        Some(folder) => App::within(ui.ctx(), settings, folder).ok(),
                        None => App::with(ui.ctx(), settings).ok(),
                    };
                }
                if let Some(app) = app {
                    app.draw_ui(ui);
                }
            },
            None,
        );
        Self { harness }
    }

    pub fn state(&self) -> &State {
        self.harness.state().as_ref().expect("the viewer has started").state()
    }

    /// Does what a dialog would have led to.
    pub fn act(&mut self, action: Action) {
        self.harness.state_mut().as_mut().expect("started").act(action);
        self.frame();
    }

    /// Keeps what is remembered, as when it closes.
    pub fn save(&mut self, storage: &mut dyn eframe::Storage) {
        eframe::App::save(self.harness.state_mut().as_mut().expect("started"), storage);
    }

    pub fn drop_file(&mut self, path: PathBuf) {
        self.harness.state_mut().as_mut().expect("started").dropped(&[path]);
        self.frame();
    }

    /// A frame or two, without waiting for animations to end.
    pub fn frame(&mut self) {
        self.harness.run_steps(3);
    }

    /// Frames until something is so.
    pub fn until(&mut self, what: &str, so: impl Fn(&State) -> bool) {
        let begun = Instant::now();
        while !so(self.state()) {
            assert!(
                begun.elapsed() < Duration::from_secs(240),
                "never: {what}: {:?}",
                self.state().session.problems
            );
            std::thread::sleep(Duration::from_millis(5));
            self.harness.step();
        }
        self.frame();
    }

    /// Frames until the engine has nothing to do.
    pub fn settle(&mut self) {
        self.until("all jobs done", |state| state.session.jobs.is_empty());
    }

    /// A click on what has this label, scrolled to where it is to be seen.
    pub fn click(&mut self, label: &str) {
        self.harness.get_by_label(label).scroll_to_me();
        self.frame();
        self.harness.get_by_label(label).click();
        self.frame();
    }

    /// Moves a slider or another control that is a number.
    pub fn set(&mut self, label: &str, value: f64) {
        self.harness.get_by_label(label).set_value_accesskit(value);
        self.frame();
    }

    /// A key, once.
    pub fn press(&mut self, key: Key) {
        self.harness.key_press(key);
        self.frame();
    }

    /// What is remembered, after it was closed.
    pub fn close(mut self) -> Settings {
        let mut stored = Stored::default();
        self.save(&mut stored);
        eframe::get_value(&stored, "settings").expect("what was stored")
    }

    /// The picture in the middle.
    pub fn shot(&self) -> image::RgbImage {
        self.state().session.canvas.shot.as_ref().expect("a picture").image.as_ref().clone()
    }

    /// Its colours.
    pub fn picture(&self) -> Vec<u8> {
        self.shot().into_raw()
    }
}

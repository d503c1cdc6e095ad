//! A window to look into.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

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

/// A window of a viewer.
pub struct Window {
    pub harness: Harness<'static, Option<App>>,
}

impl Window {
    pub fn open(settings: Settings) -> Self {
        let mut waiting = Some(settings);
        let harness = Harness::builder().with_size([1280.0, 800.0]).with_max_steps(16).build_ui_state(
            move |ui, app: &mut Option<App>| {
                if let Some(settings) = waiting.take() {
                    *app = App::with(ui.ctx(), settings).ok();
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
        let ctx = self.harness.ctx.clone();
        self.harness.state_mut().as_mut().expect("started").act(action, &ctx);
        self.frame();
    }

    pub fn drop_file(&mut self, path: PathBuf) {
        let ctx = self.harness.ctx.clone();
        self.harness.state_mut().as_mut().expect("started").dropped(&[path], &ctx);
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

    pub fn click(&mut self, label: &str) {
        self.harness.get_by_label(label).click();
        self.frame();
    }

    /// The colours of the picture in the middle.
    pub fn picture(&self) -> Vec<u8> {
        self.state().session.canvas.shot.as_ref().expect("a picture").image.as_raw().clone()
    }
}

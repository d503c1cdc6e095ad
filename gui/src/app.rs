//! The window: hands what happens to `logic`, what is to be seen to `panels`, and does what has effects outside.

mod effects;

use std::{
    path::{Path, PathBuf},
    sync::mpsc::{Receiver, Sender, channel},
    time::Instant,
};

use eframe::egui::{self, Context, Key, KeyboardShortcut, Modifiers, ViewportCommand};
use scumble::{
    dataset::decode,
    device::{DeviceChoice, Precision},
    engine::Engine,
    error::Result,
    files,
    pipeline::infotext::{self, Recipe},
};

use crate::{
    background, crash,
    keep::{self, history, line::Line},
    logic::{self, Action, Dialog},
    panels::{self, View},
    samples,
    state::{Settings, State, Tab, ThemeChoice},
    text, theme,
    widgets::textures::Textures,
};

/// Where settings are kept in eframe's storage.
const STORED: &str = "settings";

/// The viewer.
#[derive(Debug)]
pub struct App {
    state: State,
    engine: Engine,
    textures: Textures,
    /// What dialogs and threads have come to.
    answers: (Sender<Action>, Receiver<Action>),
    ctx: Context,
    /// Where history, starts, masks and trainings are kept, if they are.
    folder: Option<PathBuf>,
    /// Writes them.
    line: Line,
    /// The history of earlier runs is still to be read.
    forgetful: bool,
    /// False where the system's dialogs are not to be asked for.
    has_dialogs: bool,
    begun: Instant,
    theme: Option<ThemeChoice>,
}

impl App {
    /// The viewer with what was remembered.
    ///
    /// # Errors
    /// If the engine does not start.
    pub fn new(cc: &eframe::CreationContext<'_>) -> Result<Self> {
        let settings = cc.storage.and_then(|storage| eframe::get_value(storage, STORED)).unwrap_or_default();
        let mut app = Self::start(&cc.egui_ctx, settings, Some(keep::folder()))?;
        app.state.session.crashes = crash::folder().map(|folder| crash::left(&folder)).unwrap_or_default();
        Ok(app)
    }

    /// The viewer with these settings, keeping nothing but painted masks. Without a blend, it has the sample styles.
    ///
    /// # Errors
    /// If the engine does not start.
    pub fn with(ctx: &Context, settings: Settings) -> Result<Self> {
        Self::start(ctx, settings, None)
    }

    /// The same, with all that is kept between runs in a folder.
    ///
    /// # Errors
    /// If the engine does not start.
    pub fn within(ctx: &Context, settings: Settings, folder: PathBuf) -> Result<Self> {
        Self::start(ctx, settings, Some(folder))
    }

    fn start(ctx: &Context, mut settings: Settings, folder: Option<PathBuf>) -> Result<Self> {
        theme::install(ctx);
        let wake = background::waking(ctx.clone());
        let engine = background::giving_way(|| Engine::start(DeviceChoice::Auto, Precision::Auto, wake))?;
        let mut state = State::default();
        if settings.styles.is_none() {
            match samples::styles(&files::cache_folder()) {
                Ok(styles) => settings.styles = Some(styles),
                Err(e) => state.session.tell(e.to_string(), e.hint().map(str::to_owned), true),
            }
        }
        state.settings = settings;
        state.session.keeping = folder.as_deref().map(history::prefix);
        let mut app = Self {
            state,
            engine,
            textures: Textures::default(),
            answers: channel(),
            ctx: ctx.clone(),
            folder,
            line: Line::default(),
            forgetful: true,
            has_dialogs: true,
            begun: Instant::now(),
            theme: None,
        };
        let effects = logic::begin(&mut app.state);
        app.carry_out(effects);
        Ok(app)
    }

    /// From here on, paths are typed, as where the system has no dialogs.
    pub fn without_dialogs(&mut self) {
        self.has_dialogs = false;
    }

    /// What is shown.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Does something, as if the user had asked for it.
    pub fn act(&mut self, action: Action) {
        let now = self.now();
        let effects = logic::act(&mut self.state, action, now);
        self.carry_out(effects);
    }

    /// Changes what is remembered, as if the user had moved a control.
    pub fn change(&mut self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.state.settings);
        self.act(Action::Changed);
    }

    /// Takes files that were dropped on the window.
    pub fn dropped(&mut self, paths: &[PathBuf]) {
        let adapters = logic::adapters(paths);
        if !adapters.is_empty() {
            self.act(Action::AddStyles(adapters));
        }
        for path in paths {
            let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
            if path.is_dir() {
                let training = self.state.settings.tab == Tab::Train;
                let folder = path.clone();
                self.act(if training { Action::TrainFolder(folder) } else { Action::ScanLibrary(folder) });
                self.state.session.open.library |= !training;
            } else if decode::EXTENSIONS.contains(&ending.as_str()) {
                self.act(dropped_picture(path));
            } else if ending != "safetensors" {
                let message = format!("{}: is no adapter, no picture and no folder", path.display());
                let hint = "drop `.safetensors` files, folders, or pictures: with a recipe in them, or to start from";
                self.act(Action::Tell(message, Some(hint.into())));
            }
        }
    }

    /// Takes in what the engine and the dialogs have to say.
    pub fn poll(&mut self) {
        while let Some(event) = self.engine.poll() {
            let now = self.now();
            let effects = logic::receive(&mut self.state, event, now);
            self.carry_out(effects);
        }
        while let Ok(action) = self.answers.1.try_recv() {
            self.act(action);
        }
        self.state.session.crashes.splice(0..0, crash::fresh());
    }

    /// Draws one frame.
    pub fn draw_ui(&mut self, ui: &mut egui::Ui) {
        let ctx = ui.ctx().clone();
        self.poll();
        if self.theme != Some(self.state.settings.theme) {
            theme::choose(&ctx, self.state.settings.theme);
            self.theme = Some(self.state.settings.theme);
        }
        let mut actions = Vec::new();
        self.input(&ctx, &mut actions);
        let mut view = View { state: &mut self.state, textures: &mut self.textures, actions: &mut actions };
        panels::draw(ui, &mut view);
        actions.into_iter().for_each(|action| self.act(action));
        self.textures.next_frame();
        if std::mem::take(&mut self.forgetful) {
            // Not before there is something to be seen.
            self.remember();
        }
    }

    /// Reads the history of earlier runs.
    fn remember(&mut self) {
        let Some(prefix) = self.state.session.keeping.clone() else { return };
        let (answers, shown) = (self.answers.0.clone(), self.ctx.clone());
        self.later(move || {
            let mut broken = Vec::new();
            history::read(&prefix, |kept| {
                let kept = match kept {
                    Ok(kept) => answers.send(Action::Remember(Box::new(kept))).is_ok(),
                    Err(e) => {
                        broken.push(e.to_string());
                        true
                    }
                };
                shown.request_repaint();
                kept
            });
            let first = broken.first()?;
            let message = format!("{} of the history: {first}", text::counted(broken.len(), "picture"));
            Some(Action::Note(message, text::HISTORY_BROKEN_HINT.into()))
        });
    }

    /// Keys, dropped files, the window's own button.
    fn input(&mut self, ctx: &Context, actions: &mut Vec<Action>) {
        let pressed =
            |modifiers, key| ctx.input_mut(|i| i.consume_shortcut(&KeyboardShortcut::new(modifiers, key)));
        let (command, shifted) = (Modifiers::COMMAND, Modifiers::COMMAND | Modifiers::SHIFT);
        // What is longer comes first: a shortcut takes part of a longer one for itself.
        for (modifiers, key, action) in [
            (shifted, Key::C, Action::Copy),
            (command, Key::R, Action::NewSeed),
            (command, Key::D, Action::ToggleCompare),
            (command, Key::S, Action::Ask(Dialog::SavePicture)),
            (command, Key::O, Action::Ask(Dialog::Styles)),
            (command, Key::Q, Action::CloseRequested),
            (Modifiers::NONE, Key::Escape, Action::Cancel),
        ] {
            // A menu that is open closes, and that is all.
            let menu = key == Key::Escape && egui::Popup::is_any_open(ctx);
            if !menu && pressed(modifiers, key) {
                actions.push(action);
            }
        }
        let training = self.state.settings.tab == Tab::Train;
        if pressed(command, Key::Enter) {
            actions.push(if training { Action::StartTraining } else { Action::Generate });
        }
        let open = &mut self.state.session.open;
        open.library ^= pressed(command, Key::L);
        open.export |= pressed(command, Key::E);
        open.help ^= pressed(Modifiers::NONE, Key::F1);
        for (key, tab) in [(Key::Num1, Tab::Draw), (Key::Num2, Tab::Train)] {
            if pressed(command, key) {
                self.state.settings.tab = tab;
            }
        }
        let files = ctx.input(|i| i.raw.dropped_files.clone());
        let paths: Vec<PathBuf> = files.iter().map(|file| file.path().to_path_buf()).collect();
        if !paths.is_empty() {
            self.dropped(&paths);
        }
        if ctx.input(|i| i.viewport().close_requested()) && self.state.session.is_training() {
            ctx.send_viewport_cmd(ViewportCommand::CancelClose);
            actions.push(Action::CloseRequested);
        }
    }

    fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }
}

impl eframe::App for App {
    /// Also while the window is hidden.
    fn logic(&mut self, _: &Context, _frame: &mut eframe::Frame) {
        self.poll();
    }

    fn ui(&mut self, ui: &mut egui::Ui, _frame: &mut eframe::Frame) {
        self.draw_ui(ui);
    }

    fn save(&mut self, storage: &mut dyn eframe::Storage) {
        let effects = logic::keep(&mut self.state);
        self.carry_out(effects);
        eframe::set_value(storage, STORED, &self.state.settings);
    }
}

/// What to do with a picture: everything as its recipe says; without one, it is a picture to start from.
fn dropped_picture(path: &Path) -> Action {
    match infotext::read_text(path) {
        Ok(Some(text)) => Action::Restore(Box::new(Recipe::parse(&text)), Some(path.to_path_buf())),
        // What is wrong with a file is said when its pixels are read.
        Ok(None) | Err(_) => Action::StartFrom(path.to_path_buf()),
    }
}

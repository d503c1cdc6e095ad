//! The window: hands what happens to `logic`, what is to be seen to `panels`, and does what has effects outside.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::Instant,
};

use eframe::egui::{self, Context, Key, KeyboardShortcut, Modifiers, ViewportCommand};
use scumble::{
    dataset::decode,
    device::{DeviceChoice, Precision},
    engine::{self, Engine, start},
    error::{Error, Result},
    files,
    pipeline::infotext::{self, Recipe},
};

use crate::{
    background, crash, dialogs,
    logic::{self, Action, Dialog, Effect, Paint},
    masks,
    panels::{self, View},
    samples,
    state::{Settings, State, Tab, ThemeChoice},
    theme,
    widgets::textures::{self, Textures},
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
    /// Where painted masks are kept.
    masks: PathBuf,
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
        let mut app = Self::with(&cc.egui_ctx, settings)?;
        app.state.session.crashes = crash::folder().map(|folder| crash::left(&folder)).unwrap_or_default();
        Ok(app)
    }

    /// The viewer with these settings. Without a blend, it has the sample styles.
    ///
    /// # Errors
    /// If the engine does not start.
    pub fn with(ctx: &Context, mut settings: Settings) -> Result<Self> {
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
        let (begun, answers) = (Instant::now(), channel());
        let (textures, masks) = (Textures::default(), masks::folder());
        let mut app = Self { state, engine, textures, answers, masks, begun, theme: None };
        let effects = logic::begin(&mut app.state);
        app.carry_out(effects, ctx);
        Ok(app)
    }

    /// Keeps painted masks in another folder than the program's own.
    pub fn keep_masks_in(&mut self, folder: PathBuf) {
        self.masks = folder;
    }

    /// What is shown.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Does something, as if the user had asked for it.
    pub fn act(&mut self, action: Action, ctx: &Context) {
        let now = self.now();
        let effects = logic::act(&mut self.state, action, now);
        self.carry_out(effects, ctx);
    }

    /// Changes what is remembered, as if the user had moved a control.
    pub fn change(&mut self, change: impl FnOnce(&mut Settings), ctx: &Context) {
        change(&mut self.state.settings);
        self.act(Action::Changed, ctx);
    }

    /// Takes files that were dropped on the window.
    pub fn dropped(&mut self, paths: &[PathBuf], ctx: &Context) {
        let adapters = logic::adapters(paths);
        if !adapters.is_empty() {
            self.act(Action::AddStyles(adapters), ctx);
        }
        for path in paths {
            let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
            if path.is_dir() {
                let training = self.state.settings.tab == Tab::Train;
                let folder = path.clone();
                self.act(
                    if training { Action::TrainFolder(folder) } else { Action::ScanLibrary(folder) },
                    ctx,
                );
                self.state.session.open.library |= !training;
            } else if decode::EXTENSIONS.contains(&ending.as_str()) {
                self.act(dropped_picture(path), ctx);
            } else if ending != "safetensors" {
                let message = format!("{}: is no adapter, no picture and no folder", path.display());
                let hint = "drop `.safetensors` files, folders, or pictures: with a recipe in them, or to start from";
                self.act(Action::Tell(message, Some(hint.into())), ctx);
            }
        }
    }

    /// Takes in what the engine and the dialogs have to say.
    pub fn poll(&mut self, ctx: &Context) {
        while let Some(event) = self.engine.poll() {
            let now = self.now();
            let effects = logic::receive(&mut self.state, event, now);
            self.carry_out(effects, ctx);
        }
        while let Ok(action) = self.answers.1.try_recv() {
            self.act(action, ctx);
        }
        self.state.session.crashes.splice(0..0, crash::fresh());
    }

    /// Draws one frame.
    pub fn draw_ui(&mut self, ui: &mut egui::Ui) {
        let ctx = ui.ctx().clone();
        self.poll(&ctx);
        if self.theme != Some(self.state.settings.theme) {
            theme::choose(&ctx, self.state.settings.theme);
            self.theme = Some(self.state.settings.theme);
        }
        let mut actions = Vec::new();
        self.input(&ctx, &mut actions);
        let mut view = View { state: &mut self.state, textures: &mut self.textures, actions: &mut actions };
        panels::draw(ui, &mut view);
        actions.into_iter().for_each(|action| self.act(action, &ctx));
        self.textures.next_frame();
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
            if pressed(modifiers, key) {
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
            self.dropped(&paths, ctx);
        }
        if ctx.input(|i| i.viewport().close_requested()) && self.state.session.is_training() {
            ctx.send_viewport_cmd(ViewportCommand::CancelClose);
            actions.push(Action::CloseRequested);
        }
    }

    fn carry_out(&mut self, effects: Vec<Effect>, ctx: &Context) {
        for effect in effects {
            match effect {
                Effect::Submit(purpose, command) => {
                    let job = logic::job(&self.state.session, purpose, &command);
                    match self.engine.submit(command) {
                        Ok(id) => {
                            self.state.session.tally.submitted += 1;
                            self.state.session.jobs.insert(id, job);
                        }
                        Err(e) => self.state.session.tell(e.to_string(), e.hint().map(str::to_owned), true),
                    }
                }
                Effect::Stop(job) => self.engine.cancel(job),
                Effect::Copy(shot) => ctx.copy_image(textures::colour(&shot.image)),
                Effect::Save(shot, path) => self.later(ctx, move || {
                    infotext::write_png(&path, &shot.image, &shot.recipe).err().map(|e| told(&e))
                }),
                Effect::ReadStart(path, draw) => self.later(ctx, move || {
                    Some(match start::read(&path, 1.0) {
                        Ok(init) => Action::SetStart(init.pixels, init.source, draw),
                        Err(e) => told(&e),
                    })
                }),
                Effect::WriteCaption(path, text) => self
                    .later(ctx, move || files::write_bytes(&path, text.as_bytes()).err().map(|e| told(&e))),
                Effect::Remove(path) => self.later(ctx, move || {
                    std::fs::remove_file(&path).err().map(|e| told(&Error::io(&path, e)))
                }),
                Effect::FindCover(adapter) => self.later(ctx, move || {
                    let picture = engine::cover(&adapter)?;
                    Some(Action::Cover(adapter, Arc::new(picture)))
                }),
                Effect::ReadMask(style, file) => self.later(ctx, move || {
                    let mask = engine::read_mask(&file).map(|mask| mask.picture);
                    let mask = mask.map_err(|e| (e.to_string(), e.hint().map(str::to_owned)));
                    Some(Action::Paint(Paint::Read(style, mask)))
                }),
                Effect::WriteMask(style, number, mask) => {
                    let folder = self.masks.clone();
                    self.later(ctx, move || match masks::keep(&folder, &mask) {
                        Ok(file) => Some(Action::Paint(Paint::Kept(style, number, file))),
                        Err(e) => Some(told(&e)),
                    });
                }
                Effect::Ask(dialog) => {
                    let name = self.suggested(dialog);
                    self.later(ctx, move || dialogs::ask(dialog, &name));
                }
                Effect::Close => ctx.send_viewport_cmd(ViewportCommand::Close),
            }
        }
    }

    /// Runs something that takes time, and does what comes out of it.
    fn later(&mut self, ctx: &Context, work: impl FnOnce() -> Option<Action> + Send + 'static) {
        let (answer, ctx) = (self.answers.0.clone(), ctx.clone());
        let started = background::run(move || {
            // Also when the work panics: its report is to be seen.
            let _wake = Wake(ctx);
            if let Some(action) = work() {
                answer.send(action).ok();
            }
        });
        if let Err(e) = started {
            self.state.session.tell(e.to_string(), None, true);
        }
    }

    /// The name a dialog starts with.
    fn suggested(&self, dialog: Dialog) -> String {
        match dialog {
            Dialog::ExportBlend => "blend.safetensors".into(),
            _ => {
                let shot = self.state.session.canvas.shot.as_ref();
                let seed = shot.and_then(|shot| shot.recipe.seed).unwrap_or_default();
                format!("{seed}.png")
            }
        }
    }

    fn now(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }
}

/// Asks for a frame when it goes.
struct Wake(Context);

impl Drop for Wake {
    fn drop(&mut self) {
        self.0.request_repaint();
    }
}

impl eframe::App for App {
    /// Also while the window is hidden.
    fn logic(&mut self, ctx: &Context, _frame: &mut eframe::Frame) {
        self.poll(ctx);
    }

    fn ui(&mut self, ui: &mut egui::Ui, _frame: &mut eframe::Frame) {
        self.draw_ui(ui);
    }

    fn save(&mut self, storage: &mut dyn eframe::Storage) {
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

fn told(error: &Error) -> Action {
    Action::Tell(error.to_string(), error.hint().map(str::to_owned))
}

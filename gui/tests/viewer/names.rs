//! Whoever cannot see the window knows what every control is called.

use std::collections::BTreeSet;

use crate::support::{Window, pictures, sample, sample_styles, settings};
use eframe::egui::{Key, Modifiers, accesskit::Role};
use egui_kittest::kittest::{NodeT as _, Queryable as _};
use scumble_gui::{
    logic::Action,
    state::{Settings, Tab, ThemeChoice, TrainForm},
    text,
};

const CONTROLS: [Role; 11] = [
    Role::Button,
    Role::CheckBox,
    Role::ComboBox,
    Role::Link,
    Role::MultilineTextInput,
    Role::RadioButton,
    Role::Slider,
    Role::SpinButton,
    Role::Switch,
    Role::Tab,
    Role::TextInput,
];

/// The controls of the window as it is now, where each must have a name.
fn named(window: &Window, place: &str) -> usize {
    let mut named = BTreeSet::new();
    for node in window.harness.root().children_recursive() {
        let node = node.accesskit_node();
        if CONTROLS.contains(&node.role()) {
            let label = node.label().filter(|label| !label.trim().is_empty());
            let place = format!("{place}: a {:?} at {:?} has no name", node.role(), node.bounding_box());
            named.insert((format!("{:?}", node.role()), label.expect(&place)));
        }
    }
    named.len()
}

#[test]
fn every_control_has_a_name() {
    for theme in [ThemeChoice::Light, ThemeChoice::Dark] {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let images = pictures(folder.path());
        let train = TrainForm { steps: 400, rank: 2, batch: 1, ..TrainForm::default() };
        let blend = Settings { styles: Some(sample_styles()), ..settings(&[]) };
        let mut window = Window::open(Settings { theme, train, recent_models: vec!["sd15".into()], ..blend });
        window.settle();
        window.harness.get_by_label(&format!("{} blueprint", text::SPLIT)).click();
        window.frame();
        window.settle();
        for unfolded in [text::BLOCKS, text::STEPS_OF, text::PLACE] {
            window.click(&format!("{unfolded} blueprint"));
        }
        window.click(&format!("blueprint {}: {}", text::STEPS_CURVE, text::STEPS_IN));
        window.click(&format!("blueprint {}: {}", text::PLACE, text::PLACE_PAINTED));
        window.settle();
        named(&window, "an unfolded card");
        window.act(Action::Cancel);
        window.act(Action::ToggleCompare);
        window.settle();
        let draw = named(&window, "drawing");
        assert!(draw > 30, "only {draw} controls");
        window.act(Action::ScanLibrary(sample("adapters")));
        window.act(Action::Tell("a message".into(), Some("with a hint".into())));
        window.settle();
        for (place, modifiers, key) in [
            ("the library", Modifiers::COMMAND, Key::L),
            ("the keys", Modifiers::NONE, Key::F1),
            ("the export", Modifiers::COMMAND, Key::E),
        ] {
            let before = named(&window, place);
            window.harness.key_press_modifiers(modifiers, key);
            window.frame();
            assert!(named(&window, place) != before, "{place} does not open");
            window.act(Action::Cancel);
        }
        window.harness.get_by_label_contains(&format!("{}: ", text::MODEL)).click();
        window.frame();
        window.harness.get_by_label(text::MODEL_NAME);
        named(&window, "the model's menu");
        window.harness.key_press(Key::Escape);
        window.frame();

        window.harness.get_by_label(text::TAB_TRAIN).click();
        window.frame();
        assert_eq!(window.state().settings.tab, Tab::Train);
        window.act(Action::TrainFolder(images));
        window.settle();
        window.click(text::TRAIN_MORE);
        window.frame();
        window.harness.get_by_label(text::TRAIN_FLIP);
        named(&window, "training's form");
        window.act(Action::StartTraining);
        window.until("a step", |state| !state.session.training.losses.is_empty());
        window.act(Action::CloseRequested);
        window.harness.get_by_label(text::CLOSING_STAY);
        named(&window, "closing");
        window.click(text::CLOSING_STOP);
        window.settle();
        named(&window, "a training that was paused");
    }
}

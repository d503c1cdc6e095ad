//! What every control of our own that is a number has: arrows, a screen reader's wishes, and its value said.

use std::ops::RangeInclusive;

use eframe::egui::{
    EventFilter, Key, Response, Ui, WidgetInfo,
    accesskit::{Action, ActionData},
};

/// A number as it is shown and changed.
#[derive(Debug, Clone)]
pub struct Number {
    /// What it is called.
    pub label: String,
    /// What it is.
    pub value: f64,
    /// What it may be.
    pub range: RangeInclusive<f64>,
    /// What one press of an arrow changes.
    pub step: f64,
}

/// Presses of a key that makes more less those of one that makes less.
pub fn presses(ui: &Ui, less: Key, more: Key) -> f64 {
    ui.input(|i| i.num_presses(more) as f64 - i.num_presses(less) as f64)
}

/// The number that up and down, or a screen reader, want a control to have.
pub fn wanted(ui: &Ui, response: &Response, number: &Number) -> Option<f64> {
    let mut steps = 0.0;
    if response.has_focus() {
        // The arrows are ours: they do not move on to the next control.
        let filter = EventFilter { horizontal_arrows: true, vertical_arrows: true, ..EventFilter::default() };
        ui.memory_mut(|m| m.set_focus_lock_filter(response.id, filter));
        steps = presses(ui, Key::ArrowDown, Key::ArrowUp);
    }
    let (asked, counted) = ui.input(|input| {
        let count = |action| input.num_accesskit_action_requests(response.id, action) as f64;
        let numbers = input.accesskit_action_requests(response.id, Action::SetValue);
        let asked = numbers.filter_map(|request| match request.data {
            Some(ActionData::NumericValue(value)) => Some(value),
            _ => None,
        });
        (asked.last(), count(Action::Increment) - count(Action::Decrement))
    });
    let moved = steps + counted;
    let value = asked.or_else(|| (moved != 0.0).then_some(number.value + moved * number.step))?;
    value.is_finite().then(|| value.clamp(*number.range.start(), *number.range.end()))
}

/// Says name, value and range.
pub fn describe(ui: &Ui, response: &Response, number: &Number) {
    response.widget_info(|| WidgetInfo::slider(ui.is_enabled(), number.value, &number.label));
    ui.ctx().accesskit_node_builder(response.id, |node| {
        node.set_value(format!("{:.2}", number.value));
        node.set_min_numeric_value(*number.range.start());
        node.set_max_numeric_value(*number.range.end());
        node.set_numeric_value_step(number.step);
        for action in [Action::SetValue, Action::Increment, Action::Decrement] {
            node.add_action(action);
        }
    });
}

//! What ended over time, drawn: good ends upwards, bad ends downwards, so that nobody has to tell
//! colours apart. Pure.

use maud::{Markup, html};

use super::format::number;
use super::table::{numbers, table, texts};
use crate::store::client::OutcomeSlot;

/// In units of the drawing.
const WIDTH: i64 = 600;
const HEIGHT: i64 = 120;

/// One chart.
pub(super) struct Chart<'a> {
    /// Of the section, so that other elements can refer to it.
    pub(super) id: &'a str,
    /// Such as `Ended per minute`.
    pub(super) title: &'a str,
    pub(super) slots: &'a [OutcomeSlot],
    /// How much of a slot's time tells it apart from others: the characters from here on.
    pub(super) label: std::ops::Range<usize>,
}

impl Chart<'_> {
    pub(super) fn draw(&self) -> Markup {
        let summary = self.summary();
        let ids = format!("{}-title {}-text", self.id, self.id);
        html! {
            figure.chart {
                figcaption id={ (self.id) "-title" } { (self.title) }
                svg role="img" aria-labelledby=(ids) viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" {
                    (self.bars())
                }
                p.ends aria-hidden="true" {
                    span { (self.slot_label(self.slots.first())) }
                    span { (self.slot_label(self.slots.last())) }
                }
                p id={ (self.id) "-text" } { (summary) }
                details {
                    summary { (self.title) " as a table" }
                    (self.as_table())
                }
            }
        }
    }

    fn bars(&self) -> Markup {
        let up_max = self.slots.iter().map(up).max().unwrap_or(0);
        let down_max = self.slots.iter().map(down).max().unwrap_or(0);
        let all = (up_max + down_max).max(1);
        let count = i64::try_from(self.slots.len()).unwrap_or(1).max(1);
        let base = HEIGHT * up_max / all;
        // Even one failure among thousands is to be seen.
        let base = if down_max > 0 {
            base.min(HEIGHT - 6)
        } else {
            base.max(1)
        };
        html! {
            @for (place, slot) in (0_i64..).zip(self.slots) {
                @let x = WIDTH * place / count;
                @let width = (WIDTH * (place + 1) / count - x - 1).max(1);
                @let good = height(slot.succeeded, up_max, base);
                @let other = height(slot.other, up_max, base - good);
                @let bad_room = HEIGHT - base;
                @let failed = height(slot.failed, down_max, bad_room);
                @let unknown = height(slot.unknown, down_max, bad_room - failed);
                (bar("good", x, base - good, width, good))
                (bar("neutral", x, base - good - other, width, other))
                (bar("bad", x, base, width, failed))
                (bar("doubtful", x, base + failed, width, unknown))
            }
            line.axis x1="0" x2=(WIDTH) y1=(base) y2=(base) {}
        }
    }

    fn summary(&self) -> String {
        let succeeded = self.sum(|slot| slot.succeeded);
        let failed = self.sum(|slot| slot.failed);
        let unknown = self.sum(|slot| slot.unknown);
        let other = self.sum(|slot| slot.other);
        if succeeded + failed + unknown + other == 0 {
            return "Nothing ended.".to_owned();
        }
        let most = self.slots.iter().max_by_key(|slot| slot.total());
        let most = most.map(|slot| (slot.total(), self.slot_label(Some(slot))));
        let (most, at) = most.unwrap_or_default();
        format!(
            "{} succeeded (upwards), {} failed and {} unknown (downwards), {} cancelled, expired or rejected. Most at {at}: {}.",
            number(succeeded),
            number(failed),
            number(unknown),
            number(other),
            number(most)
        )
    }

    fn sum(&self, of: fn(&OutcomeSlot) -> i64) -> i64 {
        self.slots.iter().map(of).sum()
    }

    fn as_table(&self) -> Markup {
        let columns = [
            texts("From"),
            numbers("Succeeded"),
            numbers("Failed"),
            numbers("Unknown"),
            numbers("Other"),
        ];
        let busy = self.slots.iter().rev().filter(|slot| slot.total() > 0);
        let rows = busy.map(|slot| {
            vec![
                html! { (self.slot_label(Some(slot))) },
                html! { (number(slot.succeeded)) },
                html! { (number(slot.failed)) },
                html! { (number(slot.unknown)) },
                html! { (number(slot.other)) },
            ]
        });
        table(
            "The newest first; what has no row had no end",
            &columns,
            rows.collect(),
        )
    }

    fn slot_label(&self, slot: Option<&OutcomeSlot>) -> String {
        let at = slot.map(|slot| slot.at.to_string()).unwrap_or_default();
        let label = at.get(self.label.clone()).unwrap_or_default();
        label.replace('T', " ")
    }
}

fn up(slot: &OutcomeSlot) -> i64 {
    slot.succeeded + slot.other
}

fn down(slot: &OutcomeSlot) -> i64 {
    slot.failed + slot.unknown
}

/// The height of a bar: never none for something, and never more than there is room.
fn height(count: i64, most: i64, room: i64) -> i64 {
    if count == 0 || most == 0 {
        return 0;
    }
    (room * count / most).max(2).min(room.max(0))
}

fn bar(class: &str, x: i64, y: i64, width: i64, height: i64) -> Markup {
    html! {
        @if height > 0 {
            rect class=(class) x=(x) y=(y) width=(width) height=(height) {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UtcMillis;

    #[test]
    fn a_single_failure_among_thousands_is_drawn_and_said() {
        let slot = |minute: i64, succeeded, failed| OutcomeSlot {
            at: UtcMillis(minute * 60_000),
            succeeded,
            failed,
            unknown: 0,
            other: 0,
        };
        let slots = [slot(0, 4000, 0), slot(1, 10, 1), slot(2, 0, 0)];
        let chart = Chart {
            id: "hour",
            title: "Ended per minute",
            slots: &slots,
            label: 11..16,
        };
        let drawn = chart.draw().into_string();
        assert_eq!(drawn.matches("<rect class=\"bad\"").count(), 1);
        assert!(
            drawn.contains("4,010 succeeded (upwards), 1 failed"),
            "{drawn}"
        );
        assert!(drawn.contains("Most at 00:00: 4,000."), "{drawn}");
    }

    #[test]
    fn bars_stay_within_the_drawing() {
        for (most, room) in [(1, 60), (1_000_000, 60), (3, 1), (5, 0)] {
            for count in [0, 1, most] {
                let height = height(count, most, room);
                assert!(
                    (0..=room).contains(&height),
                    "{count} of {most} in {room}: {height}"
                );
            }
        }
    }
}

//! `status` on a terminal: one screen, whatever the queue holds. Reads nothing.

use crate::cli::output::{Fit, Table, cut, visible, wrapped};
use crate::cli::panels::{self, Panel, shared};
use crate::cli::terminal::{Screen, Tone};
use crate::model::UtcMillis;
use crate::store::client::Glance;

/// Lines of the sentence at the top.
const HEADLINE_MAX: usize = 3;
/// Where all of it is.
const WHOLE: &str =
    "shortened to this screen; `poweryard status | less` shows all, `poweryard top` is live";

/// A table with what may give way in it.
struct FittedPanel {
    panel: Panel,
    numbers: &'static [usize],
    fit: Fit,
}

/// The text, with a line left for the prompt.
pub(super) fn text(glance: &Glance, now: UtcMillis, screen: &Screen) -> String {
    let mut lines = vec![daemon(glance, screen)];
    lines.extend(headline(glance, screen));
    let sections: Vec<FittedPanel> = sections(glance, now)
        .into_iter()
        .filter(|section| !section.panel.rows.is_empty())
        .collect();
    let room = screen.rows.saturating_sub(lines.len() + sections.len() + 2);
    let wanted: Vec<usize> = sections
        .iter()
        .map(|section| section.panel.rows.len())
        .collect();
    let gap = usize::from(wanted.iter().sum::<usize>() + sections.len() <= room);
    let rows = shared(&wanted, room.saturating_sub(gap * sections.len()));
    let mut is_shortened = false;
    for (section, rows) in sections.iter().zip(rows) {
        lines.extend((0..gap).map(|_| String::new()));
        let text = section.table(rows).render_on(Some(screen), &section.fit);
        is_shortened |= rows < section.panel.rows.len() || text.contains('…');
        lines.extend(text.lines().map(str::to_owned));
    }
    if is_shortened {
        lines.push(cut(WHOLE, screen.columns));
    }
    lines.join("\n") + "\n"
}

fn daemon(glance: &Glance, screen: &Screen) -> String {
    let daemon = &glance.daemon;
    let (tone, word) = match daemon.running {
        Some(true) => (Tone::Good, "running"),
        Some(false) => (Tone::Bad, "not running"),
        None => (Tone::Doubtful, "cannot tell whether one is running"),
    };
    let mut more = String::new();
    if let Some(pid) = daemon.pid {
        more.push_str(&format!(", pid {pid}"));
    }
    if let Some(since) = &daemon.since {
        more.push_str(&format!(", since {since}"));
    }
    if let Some(waits) = &daemon.waits {
        more.push_str(&format!("; {waits}"));
    }
    let more = cut(
        &visible(&more),
        screen.columns.saturating_sub(8 + word.len()),
    );
    format!("daemon: {}{more}", screen.paint(tone, word))
}

fn headline(glance: &Glance, screen: &Screen) -> Vec<String> {
    let text = wrapped(&visible(&glance.headline), "", screen.columns);
    let tone = if glance.trouble.is_some() {
        Tone::Doubtful
    } else {
        Tone::Plain
    };
    let lines = text.lines().take(HEADLINE_MAX);
    lines.map(|line| screen.paint(tone, line)).collect()
}

fn sections(glance: &Glance, now: UtcMillis) -> Vec<FittedPanel> {
    let section = |panel, numbers, cut, drop, states| FittedPanel {
        panel,
        numbers,
        fit: Fit { cut, drop, states },
    };
    vec![
        section(
            panels::queue(glance, now),
            &[2, 3, 4, 5],
            &[(0, 8)],
            &[6],
            &[],
        ),
        section(
            panels::waiting(glance, now),
            &[0],
            &[(4, 24), (1, 12), (4, 12)],
            &[3],
            &[],
        ),
        section(panels::batches(glance, now), &[0], &[(1, 8)], &[5, 4], &[3]),
        section(panels::errors(glance), &[0], &[(3, 20)], &[3], &[1]),
        section(
            panels::orders(glance, now),
            &[2, 4, 5, 6],
            &[(8, 8), (0, 8)],
            &[8, 7, 3],
            &[1],
        ),
        section(panels::targets(glance, now), &[2], &[(0, 8)], &[6, 1], &[]),
    ]
}

impl FittedPanel {
    /// The first `rows` rows; the head says how many more there are.
    fn table(&self, rows: usize) -> Table {
        let hidden = self.panel.rows.len().saturating_sub(rows);
        let mut heads = self.panel.heads.clone();
        let more = format!("{} +{hidden}", heads.first().copied().unwrap_or_default());
        if let Some(first) = heads.first_mut().filter(|_| hidden > 0) {
            *first = &more;
        }
        let mut table = Table::new(&heads, self.numbers);
        for row in self.panel.rows.iter().take(rows) {
            table.push(row.iter().map(|cell| cell.text.clone()));
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::glance_for_tests::{glance, many, now};

    fn shown(glance: &Glance, columns: usize, rows: usize) -> Vec<String> {
        let screen = Screen {
            columns,
            rows,
            has_colours: false,
        };
        let text = text(glance, now(), &screen);
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn one_screen_whatever_the_queue_holds() {
        for (columns, rows) in [(80, 24), (200, 50)] {
            for glance in [glance(), many()] {
                let lines = shown(&glance, columns, rows);
                let text = lines.join("\n");
                assert!(lines.len() < rows, "{} lines\n{text}", lines.len());
                let widest = lines.iter().map(|line| line.chars().count()).max();
                assert!(widest <= Some(columns), "{widest:?}\n{text}");
            }
        }
    }

    #[test]
    fn what_is_left_out_is_counted_and_where_it_is_said() {
        let text = shown(&many(), 80, 24).join("\n");
        assert!(text.contains("WAITING +"), "{text}");
        assert!(text.contains("`poweryard status | less`"), "{text}");
        let text = shown(&glance(), 200, 50).join("\n");
        assert!(!text.contains("shortened"), "{text}");
    }

    #[test]
    fn each_reason_is_told_once() {
        let text = shown(&glance(), 200, 50).join("\n");
        assert_eq!(text.matches("paused by bob").count(), 1, "{text}");
        assert!(text.contains("4,940 off, 59 failed"), "{text}");
    }
}

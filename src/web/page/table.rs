//! Tables that become cards on a narrow screen. Pure.
//!
//! The roles are written out, because a browser forgets them where the style makes cards of rows.

use maud::{Markup, html};

/// A column: its head, and whether it holds numbers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Column {
    head: &'static str,
    is_number: bool,
}

/// A column of texts.
pub(super) const fn texts(head: &'static str) -> Column {
    Column {
        head,
        is_number: false,
    }
}

/// A column of numbers.
pub(super) const fn numbers(head: &'static str) -> Column {
    Column {
        head,
        is_number: true,
    }
}

/// A table under its caption.
pub(super) fn table(caption: &str, columns: &[Column], rows: Vec<Vec<Markup>>) -> Markup {
    html! {
        table role="table" {
            caption { (caption) }
            thead role="rowgroup" {
                tr role="row" {
                    @for column in columns {
                        th role="columnheader" scope="col" .number[column.is_number] { (column.head) }
                    }
                }
            }
            tbody role="rowgroup" {
                @for row in rows {
                    tr role="row" {
                        @for (column, cell) in columns.iter().zip(row) {
                            td role="cell" data-head=(column.head) .number[column.is_number] { div { (cell) } }
                        }
                    }
                }
            }
        }
    }
}

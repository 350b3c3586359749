//! Pages of the list: what a query asks for, and how a page says where it ends. Knows nothing of
//! servers' power.
//!
//! Left open by the documents and decided here: an unknown `marker` is invalid, an unknown
//! `manage_state` matches nothing, `count` counts what matches, and `previous_marker` is this
//! page's first id, as in the vendor's newer services.

use serde::Serialize;

use crate::model::ServerId;
use crate::sim::scenario::clouddc::NextMarker;
use crate::sim::scenario::{CloudDcScenario, Unset};

/// The fewest servers a page can be asked for, and its size when nothing is said.
const SERVERS_MIN: usize = 10;
/// Most servers in one page.
const SERVERS_MAX: usize = 1000;

/// The query of a list call; absent values take the documented defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PageQuery {
    /// `limit`: servers a page; 10 by default, and whatever lies outside 10 to 1000 becomes the
    /// nearest of them.
    pub limit: Option<usize>,
    /// `marker`: the last id of the page before.
    pub marker: Option<ServerId>,
    /// `manage_state`: exactly this word.
    pub manage_state: Option<String>,
}

impl PageQuery {
    pub(super) fn size(&self) -> usize {
        self.limit
            .unwrap_or(SERVERS_MIN)
            .clamp(SERVERS_MIN, SERVERS_MAX)
    }
}

/// How markers are written.
#[derive(Debug, Clone)]
pub(super) struct Markers {
    /// Begins the URL, if they are URLs.
    url: Option<String>,
    none: Unset,
}

/// `page_info` of a page.
#[derive(Serialize)]
pub(super) struct PageInfo {
    #[serde(skip_serializing_if = "Option::is_none")]
    next_marker: Option<Option<String>>,
    previous_marker: Option<String>,
    current_count: usize,
}

impl Markers {
    pub(super) fn new(project: &str, settings: &CloudDcScenario) -> Self {
        let url = match settings.next_marker {
            NextMarker::Id => None,
            NextMarker::Url => Some(format!(
                "https://clouddc.invalid/v1/{project}/physicalservers"
            )),
        };
        Self {
            url,
            none: settings.no_next_marker,
        }
    }

    /// `page_info` of the page with these ids; `is_first` and `is_last` among all pages.
    pub(super) fn page_info(
        &self,
        query: &PageQuery,
        ids: &[ServerId],
        is_first: bool,
        is_last: bool,
    ) -> PageInfo {
        let next = ids
            .last()
            .filter(|_| !is_last)
            .map(|id| self.marker(query, id));
        let previous_marker = ids
            .first()
            .filter(|_| !is_first)
            .map(|id| self.marker(query, id));
        PageInfo {
            next_marker: self.none.field(next),
            previous_marker,
            current_count: ids.len(),
        }
    }

    /// The marker is the first parameter of a URL, so that a client that takes the whole rest of
    /// the URL takes too much.
    fn marker(&self, query: &PageQuery, id: &ServerId) -> String {
        let Some(url) = &self.url else {
            return id.to_string();
        };
        let state = query
            .manage_state
            .as_deref()
            .map(|word| format!("&manage_state={word}"));
        format!(
            "{url}?marker={id}&limit={}{}",
            query.size(),
            state.unwrap_or_default()
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn info(settings: &CloudDcScenario, is_first: bool, is_last: bool) -> Value {
        let ids = [ServerId("a".into()), ServerId("b".into())];
        let query = PageQuery {
            limit: Some(7),
            marker: None,
            manage_state: Some("ready".into()),
        };
        let info = Markers::new("p", settings).page_info(&query, &ids, is_first, is_last);
        serde_json::to_value(info).expect("texts and numbers")
    }

    #[test]
    fn sizes_outside_the_bounds_become_the_nearest() {
        let size = |limit| {
            PageQuery {
                limit,
                ..PageQuery::default()
            }
            .size()
        };
        assert_eq!(
            [None, Some(0), Some(9), Some(11), Some(1000), Some(1001)].map(size),
            [10, 10, 10, 11, 1000, 1000]
        );
    }

    #[test]
    fn markers_are_ids_or_urls_with_the_same_query() {
        let mut settings = CloudDcScenario::default();
        let middle = json!({"next_marker": "b", "previous_marker": "a", "current_count": 2});
        assert_eq!(info(&settings, false, false), middle);
        settings.next_marker = NextMarker::Url;
        let url =
            "https://clouddc.invalid/v1/p/physicalservers?marker=b&limit=10&manage_state=ready";
        assert_eq!(info(&settings, true, false)["next_marker"], url);
    }

    #[test]
    fn the_last_page_leads_nowhere() {
        for (no_next_marker, expected) in
            [(Unset::Null, Some(&Value::Null)), (Unset::Omitted, None)]
        {
            let settings = CloudDcScenario {
                no_next_marker,
                ..CloudDcScenario::default()
            };
            let info = info(&settings, true, true);
            assert_eq!(
                (info.get("next_marker"), &info["previous_marker"]),
                (expected, &Value::Null)
            );
        }
    }
}

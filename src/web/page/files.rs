//! The style and the script, which are part of the program.

use std::sync::LazyLock;

use axum::extract::Path;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::Trouble;

const STYLE: &str = include_str!("static/style.css");
const SCRIPT: &str = include_str!("static/live.js");
const ICON: &str = include_str!("static/icon.svg");

/// In the addresses of the files, so that a browser never shows a page with the files of another
/// version.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let mut digest = Sha256::new();
    for file in [STYLE, SCRIPT, ICON] {
        digest.update(file);
    }
    hex::encode(&digest.finalize()[..6])
});

/// Where the file with this name is.
pub(super) fn address(name: &str) -> String {
    format!("/static/{name}?v={}", *VERSION)
}

/// One of the files.
pub(super) async fn file(Path(name): Path<String>) -> Response {
    let (kind, content) = match name.as_str() {
        "style.css" => ("text/css; charset=utf-8", STYLE),
        "live.js" => ("text/javascript; charset=utf-8", SCRIPT),
        "icon.svg" => ("image/svg+xml", ICON),
        _ => return Trouble::not_found("there is no such file").into_response(),
    };
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "private, max-age=86400"),
    ];
    (headers, content).into_response()
}

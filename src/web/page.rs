//! The status page: what `poweryard status` prints, in HTML without scripts. Reads the queue with
//! the function that it gets.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::{Site, say};

pub(super) async fn answer(State(site): State<Arc<Site>>) -> Response {
    let (status, text) = match site.page.get((site.status)()).await {
        Ok(text) => (StatusCode::OK, text.to_string()),
        Err(why) => (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the queue cannot be read: {why}\n"),
        ),
    };
    say(status, "text/html; charset=utf-8", html(&text))
}

fn html(text: &str) -> String {
    let text = escape(text);
    let version = env!("CARGO_PKG_VERSION");
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"10\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>poweryard</title>\
         <link rel=\"stylesheet\" href=\"/login/style.css\"></head>\n\
         <body><h1>poweryard {version}</h1>\n<pre>{text}</pre>\n\
         <p><a href=\"/metrics\">metrics</a> <a href=\"/healthz\">healthz</a> <a href=\"/readyz\">readyz</a></p></body></html>\n"
    )
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            char => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_stranger_wrote_stays_text() {
        let page = html("held: <script>alert('x')</script> & \"y\"");
        assert!(
            page.contains("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; &amp; &quot;y&quot;"),
            "{page}"
        );
        assert!(!page.contains("<script"));
    }
}

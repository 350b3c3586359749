//! Converts the library's text to the format that every Prometheus tool reads. The library writes
//! OpenMetrics, which names a counter's family without the `_total` of its series. Knows no
//! metrics.

/// The media type of that format.
pub(super) const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The same metrics, but HELP and TYPE carry the names of the series.
pub(super) fn from_open_metrics(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 1024);
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map(|(_, words)| words);
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let end = if kind == "counter" { "_total" } else { "" };
            let help = help.take().unwrap_or_default();
            text.push_str(&format!(
                "# HELP {name}{end} {help}\n# TYPE {name}{end} {kind}\n"
            ));
        } else {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counters_family_is_named_as_its_series() {
        let given = "# HELP a_b Some words.\n# TYPE a_b counter\na_b_total{x=\"y\"} 1\n# HELP c Other.\n# TYPE c gauge\nc 2\n";
        let wanted = "# HELP a_b_total Some words.\n# TYPE a_b_total counter\na_b_total{x=\"y\"} 1\n# HELP c Other.\n# TYPE c gauge\nc 2\n";
        assert_eq!(from_open_metrics(given), wanted);
    }
}

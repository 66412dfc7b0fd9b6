//! Prometheus' text format (version 0.0.4), as far as we need it.

use std::fmt::{Display, Write as _};

/// A page of metrics, in the making.
#[derive(Debug, Default)]
pub(super) struct Page(String);

/// What a family of samples is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sort {
    Counter,
    Gauge,
    Histogram,
}

impl Page {
    /// Begins a family; its samples must follow.
    pub(super) fn family(&mut self, name: &str, sort: Sort, help: &str) {
        let sort = match sort {
            Sort::Counter => "counter",
            Sort::Gauge => "gauge",
            Sort::Histogram => "histogram",
        };
        // Strings take every write.
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {sort}").ok();
    }

    /// One sample. Labels are ours alone: names and values of closed lists, which need no escaping; what would is
    /// written as `?`.
    pub(super) fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        for (at, (label, text)) in labels.iter().enumerate() {
            let open = if at == 0 { '{' } else { ',' };
            let text = if text.bytes().all(is_plain) { text } else { "?" };
            write!(self.0, "{open}{label}=\"{text}\"").ok();
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        writeln!(self.0, " {value}").ok();
    }

    /// A family of one sample without labels.
    pub(super) fn single(&mut self, name: &str, sort: Sort, help: &str, value: impl Display) {
        self.family(name, sort, help);
        self.sample(name, &[], value);
    }

    pub(super) fn into_text(self) -> String {
        self.0
    }
}

fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"_-.+ ".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_what_prometheus_reads() {
        let mut page = Page::default();
        page.family("mayfly_x_total", Sort::Counter, "What it is.");
        page.sample("mayfly_x_total", &[("kind", "x509"), ("reason", "exited")], 3);
        page.sample("mayfly_x_total", &[("kind", "a\"b\n")], 1);
        page.single("mayfly_y", Sort::Gauge, "Another.", 0.5);
        let want = "# HELP mayfly_x_total What it is.\n# TYPE mayfly_x_total counter\n\
                    mayfly_x_total{kind=\"x509\",reason=\"exited\"} 3\nmayfly_x_total{kind=\"?\"} 1\n\
                    # HELP mayfly_y Another.\n# TYPE mayfly_y gauge\nmayfly_y 0.5\n";
        assert_eq!(page.into_text(), want);
    }
}

//! The lines of an examination, as text or as one JSON object.

use serde::Serialize;
use std::collections::BTreeSet;

/// How a line ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// As it should be.
    Ok,
    /// Works, but figures may be missing or other than expected.
    Warn,
    /// Keeps `run` from working.
    Fail,
}

/// One thing that was examined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Line {
    pub(super) verdict: Verdict,
    /// A stable name for scripts.
    pub(super) topic: &'static str,
    /// What was found.
    pub(super) text: String,
    /// What to do about it; nothing where nothing need be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) advice: Option<String>,
}

/// Everything that was examined, in its order.
#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: Vec<Line>,
}

impl Lines {
    pub(super) fn ok(&mut self, topic: &'static str, text: impl Into<String>) {
        self.lines.push(Line { verdict: Verdict::Ok, topic, text: text.into(), advice: None });
    }

    pub(super) fn warn(&mut self, topic: &'static str, text: impl Into<String>, advice: impl Into<String>) {
        let advice = Some(advice.into());
        self.lines.push(Line { verdict: Verdict::Warn, topic, text: text.into(), advice });
    }

    pub(super) fn fail(&mut self, topic: &'static str, text: impl Into<String>, advice: impl Into<String>) {
        let advice = Some(advice.into());
        self.lines.push(Line { verdict: Verdict::Fail, topic, text: text.into(), advice });
    }

    /// The worst of all verdicts.
    pub(super) fn verdict(&self) -> Verdict {
        self.lines.iter().map(|line| line.verdict).max().unwrap_or(Verdict::Ok)
    }

    /// One line each, advice behind what was found.
    pub(super) fn text(&self) -> String {
        let topics: BTreeSet<&str> = self.lines.iter().map(|line| line.topic).collect();
        let width = topics.iter().map(|topic| topic.len()).max().unwrap_or(0);
        let line = |line: &Line| {
            let word = match line.verdict {
                Verdict::Ok => "ok  ",
                Verdict::Warn => "warn",
                Verdict::Fail => "fail",
            };
            let advice = line.advice.as_ref().map_or_else(String::new, |advice| format!("; {advice}"));
            format!("{word}  {:<width$}  {}{advice}\n", line.topic, line.text)
        };
        self.lines.iter().map(line).collect()
    }

    /// `{"v":1,"verdict":"warn","lines":[{"verdict":"ok","topic":"privilege","text":"…"}]}` and a newline.
    pub(super) fn json(&self) -> String {
        let object = serde_json::json!({ "v": 1, "verdict": self.verdict(), "lines": self.lines });
        format!("{object}\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_to_do() {
        let mut lines = Lines::default();
        lines.ok("clock", "fine");
        lines.warn("ring", "small", "raise --ring-mb");
        assert_eq!(lines.text(), "ok    clock  fine\nwarn  ring   small; raise --ring-mb\n");
        assert_eq!(lines.verdict(), Verdict::Warn);
        lines.fail("privilege", "none", "be root");
        let json: serde_json::Value = serde_json::from_str(&lines.json()).unwrap();
        assert_eq!(json["verdict"], "fail");
        assert_eq!(json["lines"][1]["advice"], "raise --ring-mb");
        assert_eq!(json["lines"][0].get("advice"), None);
    }
}

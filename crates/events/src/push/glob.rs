//! Glob patterns: `*` is any run of characters, `?` exactly one, letters match in either case.
//!
//! A match takes time proportional to text × pattern at worst and never recurses; patterns are
//! limited in length so that a user's keyword cannot make a message costly.
//!
//! Specification: appendices, "Glob-style matching"; Client-Server API, `event_match`.

/// Longest pattern that can match anything, in characters. User and room ids have at most 255.
pub const MAX_PATTERN_CHARS: usize = 512;

/// A text with its case folded, one character for one, so that `?` still counts characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Folded(Vec<char>);

impl Folded {
    pub(super) fn new(text: &str) -> Self {
        Self(text.chars().map(fold).collect())
    }

    /// Whether the place before the character at `index` is a word boundary: the start, the end,
    /// or beside a character that belongs to no word.
    fn is_boundary(&self, index: usize) -> bool {
        let is_word = |index: usize| {
            self.0
                .get(index)
                .is_some_and(|c| c.is_ascii_alphanumeric() || *c == '_')
        };
        index == 0 || index >= self.0.len() || !is_word(index - 1) || !is_word(index)
    }
}

/// The lower case of a character if that is one character, else the character itself.
fn fold(c: char) -> char {
    if c.is_ascii() {
        return c.to_ascii_lowercase();
    }
    let mut lower = c.to_lowercase();
    match (lower.next(), lower.next()) {
        (Some(only), None) => only,
        _ => c,
    }
}

/// Where a match may begin and end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Anchor {
    /// At the ends of the text only.
    Whole,
    /// At word boundaries.
    Words,
}

/// A compiled glob pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    /// What stands between the stars; `None` is a `?`.
    segments: Vec<Vec<Option<char>>>,
    open_start: bool,
    open_end: bool,
    too_long: bool,
}

impl Glob {
    /// Compiles a pattern. One longer than [`MAX_PATTERN_CHARS`] never matches.
    pub fn new(pattern: &str) -> Self {
        let too_long = pattern.chars().nth(MAX_PATTERN_CHARS).is_some();
        let segments = if too_long {
            Vec::new()
        } else {
            segments(pattern)
        };
        Self {
            segments,
            open_start: pattern.starts_with('*'),
            open_end: pattern.ends_with('*'),
            too_long,
        }
    }

    /// Compiles text in which no character is special, such as a display name.
    pub fn literal(text: &str) -> Self {
        let too_long = text.chars().nth(MAX_PATTERN_CHARS).is_some();
        let segment: Vec<_> = text.chars().map(|c| Some(fold(c))).collect();
        let segments = if too_long || segment.is_empty() {
            Vec::new()
        } else {
            vec![segment]
        };
        Self {
            segments,
            open_start: false,
            open_end: false,
            too_long,
        }
    }

    /// Whether the whole text matches.
    pub fn matches_whole(&self, text: &str) -> bool {
        match self.segments.as_slice() {
            // No star: compare in place, which is what nearly all rules need.
            [only] if !self.open_start && !self.open_end && !self.too_long => {
                let mut chars = text.chars();
                only.iter().all(|wanted| {
                    chars
                        .next()
                        .is_some_and(|c| wanted.is_none_or(|wanted| wanted == fold(c)))
                }) && chars.next().is_none()
            }
            _ => self.matches(&Folded::new(text), Anchor::Whole),
        }
    }

    /// Whether some part of the text matches that starts and ends at word boundaries. The empty
    /// pattern matches only the empty text: a forgotten keyword must not match every message.
    pub fn matches_words(&self, text: &str) -> bool {
        self.matches_words_in(&Folded::new(text))
    }

    pub(super) fn matches_words_in(&self, text: &Folded) -> bool {
        self.matches(text, Anchor::Words)
    }

    fn matches(&self, text: &Folded, anchor: Anchor) -> bool {
        if self.too_long {
            return false;
        }
        if self.segments.is_empty() {
            return self.open_start || text.0.is_empty();
        }
        // The leftmost place for each segment leaves the most room for those after it.
        let last = self.segments.len() - 1;
        let mut from = 0;
        for (index, segment) in self.segments.iter().enumerate() {
            let starts = index == 0 && !self.open_start;
            let ends = index == last && !self.open_end;
            let place = (from..=text.0.len().saturating_sub(segment.len())).find(|&at| {
                (!starts || may_start(text, at, anchor))
                    && (!ends || may_end(text, at + segment.len(), anchor))
                    && segment_matches(segment, &text.0, at)
            });
            match place {
                Some(at) => from = at + segment.len(),
                None => return false,
            }
        }
        true
    }
}

fn segments(pattern: &str) -> Vec<Vec<Option<char>>> {
    pattern
        .split('*')
        .filter(|part| !part.is_empty())
        .map(|part| part.chars().map(|c| (c != '?').then(|| fold(c))).collect())
        .collect()
}

fn may_start(text: &Folded, at: usize, anchor: Anchor) -> bool {
    match anchor {
        Anchor::Whole => at == 0,
        Anchor::Words => text.is_boundary(at),
    }
}

fn may_end(text: &Folded, at: usize, anchor: Anchor) -> bool {
    match anchor {
        Anchor::Whole => at == text.0.len(),
        Anchor::Words => text.is_boundary(at),
    }
}

fn segment_matches(segment: &[Option<char>], text: &[char], at: usize) -> bool {
    text.get(at..at + segment.len()).is_some_and(|part| {
        part.iter()
            .zip(segment)
            .all(|(c, wanted)| wanted.is_none_or(|wanted| wanted == *c))
    })
}

//! Glob patterns: `*` is any run of characters, `?` exactly one, letters match in either case.
//!
//! A text is read once from its start to its end, and for each of its characters all places in the
//! pattern that the text may have come to are moved on together, 64 to a machine word. A match
//! therefore costs the characters of the text times the words of the pattern, whatever either of
//! them says, and never recurses. That product is counted in steps, of which a user's rules have
//! so many for an event ([`Steps`]).
//!
//! Specification: appendices, "Glob-style matching"; Client-Server API, `event_match`.

use std::cell::Cell;

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

    /// Characters.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

/// Whether two texts are equal but for case.
pub(super) fn same_but_for_case(one: &str, other: &str) -> bool {
    one.chars().map(fold).eq(other.chars().map(fold))
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

/// What the patterns of one user may still cost for one event. A pattern that would cost more than
/// is left matches nothing.
#[derive(Debug)]
pub(super) struct Steps(Cell<u64>);

impl Steps {
    pub(super) fn new(steps: u64) -> Self {
        Self(Cell::new(steps))
    }

    /// Takes so many steps, if there are as many.
    pub(super) fn take(&self, steps: usize) -> bool {
        let left = u64::try_from(steps)
            .ok()
            .and_then(|steps| self.0.get().checked_sub(steps));
        // Nothing is left once something did not fit: what matches does not depend on luck.
        self.0.set(left.unwrap_or(0));
        left.is_some()
    }

    pub(super) fn left(&self) -> u64 {
        self.0.get()
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

impl Anchor {
    fn may_start(self, text: &Folded, at: usize) -> bool {
        match self {
            Self::Whole => at == 0,
            Self::Words => text.is_boundary(at),
        }
    }

    fn may_end(self, text: &Folded, at: usize) -> bool {
        match self {
            Self::Whole => at == text.len(),
            Self::Words => text.is_boundary(at),
        }
    }
}

/// One bit for each place in a pattern: before its first character, and behind each of them.
type Places = Box<[u64]>;

fn places(count: usize) -> Places {
    vec![0; count / 64 + 1].into()
}

fn mark(places: &mut [u64], place: usize) {
    if let Some(word) = places.get_mut(place / 64) {
        *word |= 1 << (place % 64);
    }
}

fn is_marked(places: &[u64], place: usize) -> bool {
    places
        .get(place / 64)
        .is_some_and(|word| word >> (place % 64) & 1 == 1)
}

/// A compiled glob pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    /// The characters of the pattern beside the stars; `None` is a `?`.
    wanted: Vec<Option<char>>,
    /// The places where a star stands: any character leads from there to the same place.
    stars: Places,
    has_stars: bool,
    /// The places from which a character leads to the next one, for the characters of the pattern
    /// in their order.
    leads: Vec<(char, Places)>,
    /// The same for all other characters.
    any_leads: Places,
    too_long: bool,
}

impl Glob {
    /// Compiles a pattern. One longer than [`MAX_PATTERN_CHARS`] never matches.
    pub fn new(pattern: &str) -> Self {
        Self::compile(pattern, true)
    }

    /// Compiles text in which no character is special, such as a display name.
    pub fn literal(text: &str) -> Self {
        Self::compile(text, false)
    }

    fn compile(pattern: &str, has_wildcards: bool) -> Self {
        let too_long = pattern.chars().nth(MAX_PATTERN_CHARS).is_some();
        let pattern = if too_long { "" } else { pattern };
        let mut wanted = Vec::new();
        let mut stars = places(pattern.len());
        let mut has_stars = false;
        for c in pattern.chars() {
            match c {
                '*' if has_wildcards => {
                    mark(&mut stars, wanted.len());
                    has_stars = true;
                }
                '?' if has_wildcards => wanted.push(None),
                c => wanted.push(Some(fold(c))),
            }
        }
        let stars = stars.into_iter().take(wanted.len() / 64 + 1).collect();
        let mut any_leads = places(wanted.len());
        let mut chars: Vec<char> = wanted.iter().copied().flatten().collect();
        chars.sort_unstable();
        chars.dedup();
        let mut leads: Vec<_> = chars
            .into_iter()
            .map(|c| (c, places(wanted.len())))
            .collect();
        for (place, wanted) in wanted.iter().enumerate() {
            if wanted.is_none() {
                mark(&mut any_leads, place);
            }
            for (c, leads) in &mut leads {
                if wanted.is_none_or(|wanted| wanted == *c) {
                    mark(leads, place);
                }
            }
        }
        Self {
            wanted,
            stars,
            has_stars,
            leads,
            any_leads,
            too_long,
        }
    }

    /// Whether the pattern has a star, so that a text of any length may match.
    pub(super) fn has_stars(&self) -> bool {
        self.has_stars
    }

    /// Whether the whole text matches.
    pub fn matches_whole(&self, text: &str) -> bool {
        self.matches_whole_within(text, &Steps::new(u64::MAX))
    }

    pub(super) fn matches_whole_within(&self, text: &str, steps: &Steps) -> bool {
        if self.has_stars {
            // Counted before the text is folded, which costs as much as matching does.
            return steps.take(text.len())
                && self.matches(&Folded::new(text), Anchor::Whole, steps);
        }
        // Compared in place, which is what nearly all rules need, and costs less than to count: the
        // server's own rules are never out of steps.
        let mut chars = text.chars();
        let same = |wanted: &Option<char>| {
            let found = chars.next();
            found.is_some_and(|c| wanted.is_none_or(|wanted| wanted == fold(c)))
        };
        !self.too_long && self.wanted.iter().all(same) && chars.next().is_none()
    }

    /// Whether some part of the text matches that starts and ends at word boundaries. The empty
    /// pattern matches only the empty text: a forgotten keyword must not match every message.
    pub fn matches_words(&self, text: &str) -> bool {
        self.matches_words_within(&Folded::new(text), &Steps::new(u64::MAX))
    }

    pub(super) fn matches_words_within(&self, text: &Folded, steps: &Steps) -> bool {
        self.matches(text, Anchor::Words, steps)
    }

    fn matches(&self, text: &Folded, anchor: Anchor, steps: &Steps) -> bool {
        if self.too_long || !steps.take(text.len().saturating_mul(self.stars.len())) {
            return false;
        }
        let end = self.wanted.len();
        if end == 0 {
            return self.has_stars || text.len() == 0;
        }
        let mut come_to = places(end);
        for (at, c) in text.0.iter().enumerate() {
            if anchor.may_start(text, at) {
                mark(&mut come_to, 0);
            }
            self.step(&mut come_to, *c);
            if is_marked(&come_to, end) && anchor.may_end(text, at + 1) {
                return true;
            }
        }
        false
    }

    /// Moves all places on by one character of the text.
    fn step(&self, come_to: &mut [u64], c: char) {
        let found = self.leads.binary_search_by_key(&c, |(c, _)| *c);
        let leads = match found {
            Ok(at) => &self.leads[at].1,
            Err(_) => &self.any_leads,
        };
        let mut carried = 0;
        for ((word, leads), stars) in come_to.iter_mut().zip(leads).zip(&self.stars) {
            let moved = *word & leads;
            *word = moved << 1 | carried | *word & stars;
            carried = moved >> 63;
        }
    }
}

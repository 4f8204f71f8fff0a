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

/// The leads of a pattern's characters, in their order.
fn leads(wanted: &[Option<char>]) -> Vec<Lead> {
    let single = |(place, c): (usize, &Option<char>)| {
        c.map(|of| Lead {
            of,
            word: place / 64,
            places: 1 << (place % 64),
        })
    };
    let mut leads: Vec<Lead> = wanted.iter().enumerate().filter_map(single).collect();
    leads.sort_unstable_by_key(|lead| (lead.of, lead.word));
    leads.dedup_by(|next, kept| {
        let same = (next.of, next.word) == (kept.of, kept.word);
        if same {
            kept.places |= next.places;
        }
        same
    });
    leads
}

/// A compiled glob pattern. To compile it costs little more than to read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    /// The characters of the pattern beside the stars; `None` is a `?`.
    wanted: Vec<Option<char>>,
    /// The places where a star stands: any character leads from there to the same place.
    stars: Places,
    has_stars: bool,
    /// From where a character leads to the next place, by character and word: no more entries
    /// than the pattern has characters.
    leads: Vec<Lead>,
    /// The places of `?`, from which every character leads to the next one.
    any_leads: Places,
    too_long: bool,
}

/// The places in one word from which one character leads to the next place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lead {
    of: char,
    word: usize,
    places: u64,
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
        for (place, _) in wanted.iter().enumerate().filter(|(_, c)| c.is_none()) {
            mark(&mut any_leads, place);
        }
        let leads = leads(&wanted);
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
        let first = self.leads.partition_point(|lead| lead.of < c);
        let mut leads = self.leads[first..].iter().peekable();
        let mut carried = 0;
        let words = come_to.iter_mut().zip(&self.any_leads).zip(&self.stars);
        for (at, ((word, any), stars)) in words.enumerate() {
            let lead = leads.next_if(|lead| (lead.of, lead.word) == (c, at));
            let moved = *word & (any | lead.map_or(0, |lead| lead.places));
            *word = moved << 1 | carried | *word & stars;
            carried = moved >> 63;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_of_many_characters_is_not_much_larger_than_its_text() {
        let distinct = |n: usize| char::from_u32(0x4e00 + n as u32).unwrap();
        let different: String = (0..MAX_PATTERN_CHARS - 1).map(distinct).collect();
        let glob = Glob::new(&format!("{different}?"));
        assert_eq!(glob.leads.len(), MAX_PATTERN_CHARS - 1);
        assert!(glob.matches_whole(&format!("{different}x")));
        assert!(glob.matches_words(&format!("- {different}{} -", distinct(7))));
        assert!(!glob.matches_words(&format!("- {different}")));

        let same = Glob::new(&format!("*{}", "ab".repeat(100)));
        assert_eq!(same.leads.len(), 2 * 4, "one for each word of places");
        assert!(same.matches_whole(&"ab".repeat(101)));
    }
}

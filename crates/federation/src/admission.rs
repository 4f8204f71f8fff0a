//! Which servers this one speaks to at all, by the configuration.

use ruma::ServerName;

use crate::names::host_for_comparison;

/// The lists of `federation.allowed_servers` and `federation.denied_servers`: globs over host
/// names, in which `*` stands for any characters and `?` for one. Ports do not count, nor how a name is written
/// ([`crate::names`]).
#[derive(Clone, Debug, Default)]
pub struct Admission {
    allowed: Vec<String>,
    denied: Vec<String>,
}

impl Admission {
    /// With these lists. An empty `allowed` allows all; what is in both is denied.
    pub fn new(allowed: &[String], denied: &[String]) -> Self {
        let globs = |globs: &[String]| globs.iter().map(|it| host_for_comparison(it)).collect();
        Self {
            allowed: globs(allowed),
            denied: globs(denied),
        }
    }

    /// Whether there is anything to say to `server`, and anything that it may say.
    pub fn admits(&self, server: &ServerName) -> bool {
        let host = host_for_comparison(server.host());
        let among = |globs: &[String]| globs.iter().any(|glob| matches(glob, &host));
        !among(&self.denied) && (self.allowed.is_empty() || among(&self.allowed))
    }
}

/// Whether a glob fits all of a text, in time proportional to the product of their lengths at most.
fn matches(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut at, mut from) = (0, 0);
    // Where to go on when what follows the last star does not fit.
    let mut again = None;
    while from < text.len() {
        match glob.get(at) {
            Some(b'*') => {
                again = Some((at + 1, from));
                at += 1;
            }
            Some(&wanted) if wanted == b'?' || wanted == text[from] => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((after, start)) = again else {
                    return false;
                };
                again = Some((after, start + 1));
                at = after;
                from = start + 1;
            }
        }
    }
    glob[at..].iter().all(|&rest| rest == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admits(allowed: &[&str], denied: &[&str], server: &str) -> bool {
        let owned = |globs: &[&str]| globs.iter().map(ToString::to_string).collect::<Vec<_>>();
        let admission = Admission::new(&owned(allowed), &owned(denied));
        admission.admits(&ServerName::parse(server).unwrap())
    }

    #[test]
    fn what_is_denied_is_denied_and_an_empty_list_allows_all() {
        assert!(admits(&[], &[], "a.example"));
        assert!(!admits(&[], &["*.example"], "a.example:8448"));
        assert!(admits(&[], &["*.example"], "example"));
        assert!(!admits(&["b.example"], &[], "a.example"));
        assert!(admits(&["A.Example"], &[], "a.eXample:1"));
        assert!(!admits(&["*"], &["a.example"], "a.example"));
        assert!(!admits(&[], &["[::1]"], "[::1]:8448"));
    }

    #[test]
    fn another_spelling_is_no_way_around_a_list() {
        assert!(!admits(&[], &["evil.example"], "evil.example."));
        assert!(!admits(&[], &["evil.example."], "EVIL.example:8448"));
        assert!(!admits(&[], &["*.example"], "evil.example.:8448"));
        assert!(!admits(&[], &["[::1]"], "[0:0:0:0:0:0:0:1]"));
        assert!(!admits(&[], &["[0::1]"], "[::1]:8448"));
        assert!(admits(&["good.example"], &[], "good.example."));
    }

    #[test]
    fn globs_fit_whole_names() {
        for (glob, text, fits) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abcb", false),
            ("*a*b", "aab", true),
            ("*.b.*", "x.a.b.c", true),
            ("?b", "ab", true),
            ("?b", "b", false),
            ("a**", "a", true),
            ("*ab", "aaab", true),
            ("a.b", "axb", false),
        ] {
            assert_eq!(matches(glob, text), fits, "{glob} {text}");
        }
    }
}

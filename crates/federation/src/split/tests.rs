use proptest::prelude::*;
use serde::Deserialize;

use super::*;

/// What the whole answer gives when it is read at once.
#[derive(Deserialize)]
struct Whole<'a> {
    #[serde(borrow)]
    state: Vec<&'a RawValue>,
    #[serde(borrow)]
    auth_chain: Vec<&'a RawValue>,
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(default)]
    members_omitted: bool,
}

#[derive(Deserialize)]
struct Rest<'a> {
    #[serde(borrow)]
    event: Option<&'a RawValue>,
    #[serde(default)]
    members_omitted: bool,
}

/// Two lists of texts, the event, and the flag.
type Told = ([Vec<String>; 2], Option<String>, bool);

fn at_once(body: &[u8]) -> Option<Told> {
    if body.iter().find(|byte| !is_space(**byte)) != Some(&b'{') {
        return None;
    }
    let whole: Whole<'_> = serde_json::from_slice(body).ok()?;
    let texts = |list: Vec<&RawValue>| list.iter().map(|one| one.get().to_owned()).collect();
    Some((
        [texts(whole.state), texts(whole.auth_chain)],
        whole.event.map(|event| event.get().to_owned()),
        whole.members_omitted,
    ))
}

fn in_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Told, String> {
    let mut splitter = Splitter::new(["state", "auth_chain"]);
    let mut lists = [Vec::new(), Vec::new()];
    for piece in pieces {
        for (list, element) in splitter.take(piece).map_err(|error| error.to_string())? {
            lists[list].push(String::from_utf8(element.to_vec()).unwrap());
        }
    }
    let rest = splitter.finish().map_err(|error| error.to_string())?;
    let rest: Rest<'_> = serde_json::from_slice(&rest).map_err(|error| error.to_string())?;
    let event = rest.event.map(|event| event.get().to_owned());
    Ok((lists, event, rest.members_omitted))
}

#[test]
fn what_is_cut_is_what_is_there() {
    let body = br#" { "origin":"a", "state" : [ {"a":["]",{"\"":"\\"}]} , 1,"x"],"event":{"e":1},
        "auth_chain":[],"members_omitted":true } "#;
    let told = in_pieces([&body[..]]).unwrap();
    let state = [r#"{"a":["]",{"\"":"\\"}]}"#, "1", r#""x""#].map(str::to_owned);
    assert_eq!(told.0, [state.to_vec(), Vec::new()]);
    assert_eq!((told.1.as_deref(), told.2), (Some(r#"{"e":1}"#), true));
    // However it is cut, and nothing of it is enough but all.
    for at in 0..=body.len() {
        assert_eq!(in_pieces([&body[..at], &body[at..]]).unwrap(), told);
        let begun = in_pieces([&body[..at]]);
        assert_eq!(begun.is_ok(), at_once(&body[..at]).is_some(), "{at}");
    }
    assert_eq!(in_pieces(body.chunks(1)).unwrap(), told);
}

#[test]
fn what_is_no_such_answer_is_refused() {
    let lists = r#""state":[],"auth_chain":[]"#;
    assert!(in_pieces([format!("{{{lists}}}").as_bytes()]).is_ok());
    let wrong = [
        String::new(),
        "[]".to_owned(),
        format!("{{{lists}"),
        format!("{{{lists}}}}}"),
        format!("{{{lists}}}{{}}"),
        format!("{{{lists},}}"),
        format!("{{,{lists}}}"),
        format!("{{{lists},\"state\":[]}}"),
        format!("{{{lists},\"st\\u0061te\":[]}}"),
        format!("{{{lists},\"event\":1,\"event\":1}}"),
        format!("{{{lists},\"x\":}}"),
        format!("{{{lists},\"x\":1 2}}"),
        format!("{{{lists},\"x\":tru}}"),
        format!("{{{lists},\"x\"}}"),
        format!("{{{lists} \"x\":1}}"),
        format!("{{{lists},x:1}}"),
        r#"{"state":[]}"#.to_owned(),
        r#"{"state":null,"auth_chain":[]}"#.to_owned(),
        r#"{"state":{},"auth_chain":[]}"#.to_owned(),
        r#"{"state":[1,],"auth_chain":[]}"#.to_owned(),
        r#"{"state":[,1],"auth_chain":[]}"#.to_owned(),
        r#"{"state":[1 2],"auth_chain":[]}"#.to_owned(),
        r#"{"state":[{"a"}],"auth_chain":[]}"#.to_owned(),
        r#"{"state":["a"b],"auth_chain":[]}"#.to_owned(),
        r#"{"state":[[}],"auth_chain":[]}"#.to_owned(),
        "{\"state\":[\"\u{1}\"],\"auth_chain\":[]}".to_owned(),
    ];
    for body in wrong {
        assert!(in_pieces([body.as_bytes()]).is_err(), "{body}");
        assert_eq!(at_once(body.as_bytes()), None, "{body}");
    }
}

#[test]
fn nothing_is_held_beyond_the_bounds() {
    let mut endless = Splitter::new(["state", "auth_chain"]);
    endless.take(b"{\"state\":[\"").unwrap();
    let piece = vec![b'x'; 64 * 1024];
    let taken = (0..100).map(|_| endless.take(&piece)).find(Result::is_err);
    let error = taken.unwrap().unwrap_err();
    assert_eq!(error, SplitError::TooLarge("an element is"));
    assert!(endless.held.len() <= MAX_ELEMENT + piece.len());

    // Many small members, and one large one.
    let mut many = Splitter::new(["state", "auth_chain"]);
    many.take(b"{\"a\":1").unwrap();
    let member = format!(",\"a\":\"{}\"", "x".repeat(60_000));
    let mut taken = (0..1000).map(|_| many.take(member.as_bytes()));
    assert!(taken.find_map(Result::err).is_some());
    assert!(many.rest.len() <= MAX_REST);
    let mut key = Splitter::new(["state", "auth_chain"]);
    key.take(b"{\"").unwrap();
    assert!((0..1000).any(|_| key.take(&piece).is_err()));

    // Elements that were cut off are not held.
    let mut long = Splitter::new(["state", "auth_chain"]);
    long.take(b"{\"state\":[{}").unwrap();
    for _ in 0..100 {
        let elements = long.take(b",{\"a\":[1,2,3]}").unwrap();
        assert_eq!(elements.len(), 1);
        assert!(long.held.is_empty() && long.rest.len() < 10);
    }
}

fn value() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i32>().prop_map(Into::into),
        any::<f32>().prop_map(|number| serde_json::json!(number)),
        "[\\PC\"\\\\\\[\\]{},:\n]{0,8}".prop_map(Into::into),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::hash_map("[a-z\"\\\\{}]{0,3}", inner, 0..4)
                .prop_map(|map| { serde_json::Value::Object(map.into_iter().collect()) }),
        ]
    })
}

/// A member of the answer: one that means something, or another one.
fn member() -> impl Strategy<Value = (String, serde_json::Value)> {
    let list = || prop::collection::vec(value(), 0..5).prop_map(serde_json::Value::from);
    prop_oneof![
        4 => list().prop_map(|list| ("state".to_owned(), list)),
        4 => list().prop_map(|list| ("auth_chain".to_owned(), list)),
        2 => value().prop_map(|event| ("event".to_owned(), event)),
        2 => any::<bool>().prop_map(|omitted| ("members_omitted".to_owned(), omitted.into())),
        1 => ("[a-z]{1,4}", value()),
        1 => (Just("state".to_owned()), value()),
    ]
}

/// Some text that is like an answer, with bytes taken out, put in or doubled.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let space = prop_oneof![Just(""), Just(" "), Just("\n\t")];
    let spoil = prop::option::weighted(0.5, (any::<prop::sample::Index>(), 0..3, any::<u8>()));
    let members = prop::collection::vec(member(), 0..6);
    (members, space, spoil).prop_map(|(members, space, spoil)| {
        let members: Vec<String> = members
            .iter()
            .map(|(key, value)| {
                let value = serde_json::to_string_pretty(value).unwrap();
                format!("{space}{key:?}{space}:{space}{value}{space}")
            })
            .collect();
        let mut body = format!("{space}{{{}}}{space}", members.join(",")).into_bytes();
        if let Some((at, how, byte)) = spoil {
            let at = at.index(body.len());
            match how {
                0 => drop(body.remove(at)),
                1 => body.insert(at, byte),
                _ => body[at] = b"{}[],:\"\\ 0t"[usize::from(byte) % 11],
            }
        }
        body
    })
}

proptest! {
    #[test]
    fn pieces_give_what_the_whole_gives(
        body in body(),
        cuts in prop::collection::vec(1..40_usize, 1..40),
    ) {
        let whole = at_once(&body);
        let mut pieces = Vec::new();
        let (mut rest, mut cuts) = (&body[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            pieces.push(piece);
            rest = later;
        }
        let told = in_pieces(pieces);
        prop_assert_eq!(told.as_ref().ok(), whole.as_ref(), "{:?}", &told);
    }
}

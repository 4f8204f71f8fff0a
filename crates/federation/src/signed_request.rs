//! The object that a request between servers is signed as.
//!
//! Method, target, origin, destination and body go into one JSON object, which is signed like any
//! other. The target is the path and query as they are sent, byte for byte: whoever decodes and
//! encodes it again checks something else than was signed.
//!
//! Specification: server-server API, "Request Authentication".

use std::collections::{BTreeMap, BTreeSet};

use homeserver_events::{
    CanonicalError, CanonicalObject, CanonicalValue, SigningKey, Strictness, VerifyError,
    VerifyKey, canonical::parse_object, sign_json, verify_json,
};
use ruma::{OwnedServerName, ServerName};

use crate::{keys::document::is_key_id, x_matrix::XMatrix};

/// What is signed of a request.
#[derive(Clone, Copy, Debug)]
pub struct SignedRequest<'a> {
    /// `GET`, `PUT` or `POST`.
    pub method: &'a str,
    /// Path and query as they are sent.
    pub target: &'a str,
    /// The server that asks.
    pub origin: &'a ServerName,
    /// The server that is asked.
    pub destination: &'a ServerName,
    /// The body; empty if there is none.
    pub body: &'a [u8],
}

/// Why a request is not what its headers say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The body is not a JSON object.
    #[error("the body is not a JSON object")]
    Body(#[source] CanonicalError),
    /// Two headers name different origins.
    #[error("the X-Matrix headers name different servers")]
    Origins,
    /// Two headers hold signatures by the same key.
    #[error("two X-Matrix headers name the same key")]
    Keys,
    /// A header names another server than the one that is asked.
    #[error("the request is meant for another server")]
    Destination,
    /// There is no header.
    #[error("the request is not signed")]
    Unsigned,
    /// No signature by a known key, or a wrong one.
    #[error("the signature of the request does not hold")]
    Signature(#[source] VerifyError),
}

impl SignedRequest<'_> {
    fn object(&self) -> Result<CanonicalObject, CanonicalError> {
        let text = |text: &str| CanonicalValue::String(text.to_owned());
        let mut object = CanonicalObject::new();
        object.insert("method".to_owned(), text(self.method));
        object.insert("uri".to_owned(), text(self.target));
        object.insert("origin".to_owned(), text(self.origin.as_str()));
        object.insert("destination".to_owned(), text(self.destination.as_str()));
        if !self.body.is_empty() {
            // Bodies hold ephemeral data and events of old room versions, with any numbers.
            let content = parse_object(self.body, Strictness::Lenient)?;
            object.insert("content".to_owned(), CanonicalValue::Object(content));
        }
        Ok(object)
    }

    /// Signs a request of this server's own.
    ///
    /// # Errors
    /// When the body is not a JSON object.
    pub fn sign(&self, key: &SigningKey) -> Result<XMatrix, CanonicalError> {
        let mut object = self.object()?;
        sign_json(&mut object, self.origin.as_str(), key);
        let signature = object
            .get("signatures")
            .and_then(|signatures| signatures.as_object()?.get(self.origin.as_str()))
            .and_then(|of_origin| of_origin.as_object()?.get(key.id().as_str()))
            .and_then(CanonicalValue::as_str);
        Ok(XMatrix {
            origin: self.origin.to_owned(),
            destination: Some(self.destination.to_owned()),
            key: key.id().to_string(),
            signature: signature.unwrap_or_default().to_owned(),
        })
    }
}

/// The headers of a request, of which nothing is believed yet.
#[derive(Clone, Debug)]
pub struct Claim {
    origin: OwnedServerName,
    /// By key id.
    signatures: BTreeMap<String, String>,
}

impl Claim {
    /// Takes the headers of a request to `own_name` together.
    ///
    /// # Errors
    /// When there is none, and when they disagree or mean another server.
    pub fn new(headers: Vec<XMatrix>, own_name: &ServerName) -> Result<Self, RequestError> {
        let first = headers.first().ok_or(RequestError::Unsigned)?;
        let origin = first.origin.clone();
        if headers.iter().any(|header| header.origin != origin) {
            return Err(RequestError::Origins);
        }
        let elsewhere = |header: &XMatrix| {
            let destination = header.destination.as_deref();
            destination.is_some_and(|destination| destination != own_name)
        };
        if headers.iter().any(elsewhere) {
            return Err(RequestError::Destination);
        }
        let mut signatures = BTreeMap::new();
        for header in headers {
            let before = signatures.insert(header.key, header.signature.clone());
            if before.is_some_and(|before| before != header.signature) {
                return Err(RequestError::Keys);
            }
        }
        Ok(Self { origin, signatures })
    }

    /// The server that the request claims to come from.
    pub fn origin(&self) -> &ServerName {
        &self.origin
    }

    /// The ids of the keys that the headers name. Those that no server can have are left out.
    pub fn key_ids(&self) -> BTreeSet<&str> {
        let ids = self.signatures.keys().map(String::as_str);
        ids.filter(|id| is_key_id(id)).collect()
    }

    /// Checks that the origin signed this request, by at least one of the keys that `key` knows,
    /// and wrongly by none of them.
    ///
    /// # Errors
    /// When it did not, and when the body is not a JSON object.
    pub fn check(
        &self,
        method: &str,
        target: &str,
        own_name: &ServerName,
        body: &[u8],
        key: &dyn Fn(&str) -> Option<VerifyKey>,
    ) -> Result<(), RequestError> {
        let request = SignedRequest {
            method,
            target,
            origin: &self.origin,
            destination: own_name,
            body,
        };
        let mut object = request.object().map_err(RequestError::Body)?;
        let of_origin = self.signatures.iter();
        let of_origin = of_origin.map(|(id, signature)| (id.clone(), signature.clone().into()));
        let of_origin = CanonicalValue::Object(of_origin.collect());
        let signatures = CanonicalObject::from([(self.origin.to_string(), of_origin)]);
        object.insert("signatures".to_owned(), CanonicalValue::Object(signatures));
        verify_json(&object, self.origin.as_str(), key).map_err(RequestError::Signature)
    }
}

#[cfg(test)]
mod tests {
    use ruma::server_name;

    use super::*;

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed("a", &[seed; 32]).unwrap()
    }

    fn known(id: &str) -> Option<VerifyKey> {
        (id == "ed25519:a").then(|| key(1).verify_key())
    }

    fn request<'a>(target: &'a str, body: &'a [u8]) -> SignedRequest<'a> {
        SignedRequest {
            method: "PUT",
            target,
            origin: server_name!("there.example"),
            destination: server_name!("here.example"),
            body,
        }
    }

    /// Checks headers against a request as it arrives.
    fn check(
        headers: Vec<XMatrix>,
        method: &str,
        target: &str,
        body: &[u8],
    ) -> Result<(), RequestError> {
        let here = server_name!("here.example");
        let claim = Claim::new(headers, here)?;
        assert_eq!(claim.origin(), "there.example");
        claim.check(method, target, here, body, &known)
    }

    fn wrong() -> Result<(), RequestError> {
        let server = "there.example".to_owned();
        Err(RequestError::Signature(VerifyError::WrongSignature(server)))
    }

    #[test]
    fn the_object_of_the_specification_is_signed() {
        let signed = request("/_matrix/x?a=%21b", br#"{"b": 1.5, "a": [] }"#);
        let mut object = signed.object().unwrap();
        let text = homeserver_events::canonical::to_string(&object);
        let wanted = r#"{"content":{"a":[],"b":1.5},"destination":"here.example","method":"PUT","origin":"there.example","uri":"/_matrix/x?a=%21b"}"#;
        assert_eq!(text, wanted);
        sign_json(&mut object, "there.example", &key(1));
        assert!(verify_json(&object, "there.example", &known).is_ok());
        let without = request("/_matrix/x", b"").object().unwrap();
        assert!(!without.contains_key("content"));
    }

    #[test]
    fn a_signature_is_bound_to_method_target_body_and_servers() {
        let (target, body) = ("/_matrix/federation/v1/send/1?q=%2F", br#"{"pdus":[]}"#);
        let header = request(target, body).sign(&key(1)).unwrap();
        let one = || vec![header.clone()];
        assert_eq!(check(one(), "PUT", target, body), Ok(()));
        // Blanks in the body are not signed.
        assert_eq!(check(one(), "PUT", target, br#"{ "pdus" : [ ] }"#), Ok(()));
        assert_eq!(check(one(), "POST", target, body), wrong());
        let decoded = "/_matrix/federation/v1/send/1?q=/";
        assert_eq!(check(one(), "PUT", decoded, body), wrong());
        assert_eq!(check(one(), "PUT", target, br#"{"pdus":[1]}"#), wrong());
        assert_eq!(check(one(), "PUT", target, b""), wrong());
        let not_json = check(one(), "PUT", target, b"[]");
        assert_eq!(
            not_json,
            Err(RequestError::Body(CanonicalError::NotAnObject))
        );

        let elsewhere = SignedRequest {
            destination: server_name!("elsewhere.example"),
            ..request(target, body)
        };
        let mut header = elsewhere.sign(&key(1)).unwrap();
        let judged = check(vec![header.clone()], "PUT", target, body);
        assert_eq!(judged, Err(RequestError::Destination));
        // Without naming it, the signature is over another destination.
        header.destination = None;
        assert_eq!(check(vec![header], "PUT", target, body), wrong());
    }

    #[test]
    fn one_good_signature_is_needed_and_no_wrong_one_by_a_known_key() {
        let target = "/_matrix/x";
        let good = request(target, b"{}").sign(&key(1)).unwrap();
        let mut unknown = request(target, b"{}").sign(&key(2)).unwrap();
        unknown.key = "ed25519:other".to_owned();
        let forged = request(target, b"{}").sign(&key(2)).unwrap();
        let mut foreign = good.clone();
        foreign.origin = server_name!("evil.example").to_owned();
        let judge = |headers: &[&XMatrix]| {
            let headers = headers.iter().map(|header| (*header).clone()).collect();
            check(headers, "PUT", target, b"{}")
        };
        assert_eq!(judge(&[&good]), Ok(()));
        assert_eq!(judge(&[&unknown, &good]), Ok(()));
        assert_eq!(judge(&[&good, &good]), Ok(()));
        assert_eq!(judge(&[&good, &forged]), Err(RequestError::Keys));
        assert_eq!(judge(&[&forged]), wrong());
        assert_eq!(judge(&[&good, &foreign]), Err(RequestError::Origins));
        assert_eq!(judge(&[]), Err(RequestError::Unsigned));
        let nobody = VerifyError::NoUsableSignature("there.example".to_owned());
        assert_eq!(judge(&[&unknown]), Err(RequestError::Signature(nobody)));
    }

    #[test]
    fn keys_of_other_algorithms_are_not_asked_for() {
        let mut other = request("/", b"").sign(&key(1)).unwrap();
        let good = other.clone();
        other.key = "curve25519:a".to_owned();
        let claim = Claim::new(vec![other, good], server_name!("here.example")).unwrap();
        assert_eq!(claim.key_ids(), BTreeSet::from(["ed25519:a"]));
    }
}

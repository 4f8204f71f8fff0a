//! Cross-signing keys and signatures as clients make them.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use ed25519_dalek::{Signer, SigningKey};
use homeserver_tests::Client;
use serde_json::{Value, json};

/// A key pair of a user.
pub(crate) struct KeyPair {
    user: String,
    key: SigningKey,
}

impl KeyPair {
    /// The same pair for the same seed.
    pub(crate) fn new(user: &str, seed: u8) -> Self {
        Self {
            user: user.to_owned(),
            key: SigningKey::from_bytes(&[seed; 32]),
        }
    }

    /// The public half in unpadded base64, which is also its id.
    pub(crate) fn public(&self) -> String {
        STANDARD_NO_PAD.encode(self.key.verifying_key().as_bytes())
    }

    /// The public half as `/keys/device_signing/upload` takes it.
    pub(crate) fn cross_signing_key(&self, usage: &str) -> Value {
        let id = format!("ed25519:{}", self.public());
        json!({ "user_id": self.user, "usage": [usage], "keys": { (id): self.public() } })
    }

    /// Signs an object, adding to its signatures.
    pub(crate) fn sign(&self, object: &mut Value) {
        self.sign_as(object, &self.public());
    }

    fn sign_as(&self, object: &mut Value, id: &str) {
        let mut bare = object.clone();
        let map = bare.as_object_mut().unwrap();
        map.remove("signatures");
        map.remove("unsigned");
        // Keys are sorted and all is ASCII: this is canonical JSON.
        let signature = self.key.sign(bare.to_string().as_bytes());
        let signature = STANDARD_NO_PAD.encode(signature.to_bytes());
        object["signatures"][&self.user][format!("ed25519:{id}")] = json!(signature);
    }
}

/// Keys of a device, signed by itself.
pub(crate) fn device_keys(client: &Client, seed: u8) -> Value {
    let pair = KeyPair::new(&client.user, seed);
    let device = &client.device;
    let mut keys = json!({
        "user_id": client.user, "device_id": device,
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "keys": {
            (format!("curve25519:{device}")): "c".repeat(43),
            (format!("ed25519:{device}")): pair.public(),
        },
    });
    pair.sign_as(&mut keys, device);
    keys
}

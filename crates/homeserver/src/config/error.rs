//! What can be wrong with a configuration.

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, or a value of the wrong type.
    #[error("{}{problem}", line.map(|line| format!("line {line}: ")).unwrap_or_default())]
    Toml {
        /// The line, if it is known.
        line: Option<usize>,
        /// What is wrong, without what stands there, which may be a secret.
        problem: String,
    },
    /// A key that does not exist.
    #[error("unknown key `{key}`{}", nearest.as_ref().map(|key| format!("; did you mean `{key}`?")).unwrap_or_default())]
    UnknownKey {
        /// The key, dotted.
        key: String,
        /// The known key that looks most like it.
        nearest: Option<String>,
    },
    /// A value that is of the right type and still cannot be.
    #[error("`{key}` = {value:?}: {problem}")]
    Value {
        /// The key, dotted.
        key: String,
        /// The value.
        value: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A variable of the environment that does not fit the file.
    #[error("environment variable {variable}: {problem}")]
    Environment {
        /// The variable's name.
        variable: String,
        /// What is wrong with it.
        problem: String,
    },
}

impl ConfigError {
    /// What is wrong with `text`, without the line itself and without the value.
    pub(super) fn toml(error: &toml::de::Error, text: &str) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map(|before| before.matches('\n').count() + 1);
        // Without a place in the text, the key stands behind the message.
        let problem = match line {
            Some(_) => without_value(error.message()),
            None => without_value(&error.to_string()),
        };
        Self::Toml { line, problem }
    }
}

/// "invalid type: string "hunter2", expected a boolean" without the value. serde shows a value in
/// quotation marks or backticks, and some have none: "invalid type: sequence, expected a boolean".
fn without_value(message: &str) -> String {
    let message = message.trim_end();
    for what in ["invalid type: ", "invalid value: "] {
        let kind = message
            .strip_prefix(what)
            .and_then(|rest| rest.split(['`', '"', ',']).next());
        let expected = message.rfind(", expected");
        if let (Some(kind), Some(expected)) = (kind, expected) {
            return format!("{what}{}{}", kind.trim_end(), &message[expected..]);
        }
    }
    message.to_owned()
}

//! What can be wrong with a configuration.

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not TOML, or a value of the wrong type.
    #[error(transparent)]
    Toml(#[from] toml::de::Error),
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

//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// A Matrix homeserver.
#[derive(Debug, Parser)]
#[command(name = "homeserver", version, about)]
pub(crate) struct Arguments {
    /// Configuration file; without it ./conduit.toml is read if it is there
    #[arg(long, short, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Write the log as JSON, one object a line
    #[arg(long, global = true)]
    pub(crate) log_json: bool,
    /// What to do; without it, serve
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the server
    Serve,
    /// Work on accounts, registration tokens and the signing key, while the server does not run
    Admin {
        #[command(subcommand)]
        command: AdminCommand,
    },
    /// Work on the database, while the server does not run
    Storage {
        #[command(subcommand)]
        command: StorageCommand,
    },
    /// Work on the configuration
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print the documented configuration file with every default
    GenerateConfig,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Read file and environment, and report what is wrong
    Check,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StorageCommand {
    /// Read every row, and report what is wrong
    Check,
    /// Bring a damaged database to its last whole state
    Recover,
    /// Copy the database into one of another engine
    Convert {
        /// The other engine: fjall or sled
        #[arg(long)]
        to: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AdminCommand {
    /// Make an account
    CreateUser {
        /// The part of the user id before the colon, without the @
        username: String,
        /// The password; better left out, and asked for or read from standard input: others on this
        /// machine can see the arguments of a command
        #[arg(long)]
        password: Option<String>,
        /// Make it an administrator
        #[arg(long)]
        admin: bool,
    },
    /// Set a new password and log the user out everywhere
    ResetPassword {
        /// User name or full user id
        user: String,
        /// The password; better left out, and asked for or read from standard input: others on this
        /// machine can see the arguments of a command
        #[arg(long)]
        password: Option<String>,
    },
    /// Make a user an administrator
    Promote {
        /// User name or full user id
        user: String,
    },
    /// Make an administrator an ordinary user
    Demote {
        /// User name or full user id
        user: String,
    },
    /// Close an account for good: it leaves its rooms, and its name is never given again
    Deactivate {
        /// User name or full user id
        user: String,
        /// Hide what the user wrote from those who join rooms later
        #[arg(long)]
        erase: bool,
    },
    /// Log a user out everywhere
    Logout {
        /// User name or full user id
        user: String,
    },
    /// List all accounts
    ListUsers,
    /// Show an account, its devices and what it has uploaded
    ShowUser {
        /// User name or full user id
        user: String,
    },
    /// Make a token with which accounts can be registered while registration.mode is "token"
    CreateRegistrationToken {
        /// The token: up to 64 of the letters a-z, A-Z, 0-9 and ._~-; generated if absent
        #[arg(long)]
        token: Option<String>,
        /// How many accounts it may make; any number if absent
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        uses: Option<u32>,
        /// How many days it is good; for ever if absent
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        days: Option<u32>,
    },
    /// List the registration tokens that were made, with how often each was used
    ListRegistrationTokens,
    /// Take a registration token back
    RevokeRegistrationToken {
        /// The token
        token: String,
    },
    /// Make another signing key, used from the next start on; what the old one signed stays good
    RotateSigningKey,
}

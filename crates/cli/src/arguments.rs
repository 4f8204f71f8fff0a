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
    /// Work on accounts, while the server does not run
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
        /// The password; read from standard input if absent
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
        /// The password; read from standard input if absent
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
    /// Close an account for good
    Deactivate {
        /// User name or full user id
        user: String,
        /// Hide what the user wrote from those who join rooms later
        #[arg(long)]
        erase: bool,
    },
    /// List all accounts
    ListUsers,
}

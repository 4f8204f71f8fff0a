//! Commands on accounts. The server must not run: the database belongs to one process.

use std::io::BufRead;

use homeserver::{Administration, AdministrationError, Homeserver, config::Config};

use crate::{
    arguments::AdminCommand,
    report::{self, Failed},
};

/// Opens the database, does what is asked, closes it.
pub(crate) async fn run(config: Config, command: AdminCommand) -> Result<(), Failed> {
    let homeserver = Homeserver::configured(config)
        .open()
        .await
        .map_err(|error| {
            Failed::new(
                "the database cannot be opened (is the server running?)",
                &error,
            )
        })?;
    let done = carry_out(&homeserver.administration(), command).await;
    let closed = homeserver.shutdown().await;
    done.map_err(|error| Failed::because(error.to_string()))?;
    if closed {
        Ok(())
    } else {
        Err(Failed::because(
            "the database was not closed cleanly, see the log",
        ))
    }
}

async fn carry_out(
    administration: &Administration,
    command: AdminCommand,
) -> Result<(), AdministrationError> {
    match command {
        AdminCommand::CreateUser {
            username,
            password,
            admin,
        } => {
            let password = password_or_input(password)?;
            let account = administration
                .create_user(&username, Some(&password), admin)
                .await?;
            report::line(format_args!("Made {}", account.user_id));
        }
        AdminCommand::ResetPassword { user, password } => {
            let password = password_or_input(password)?;
            administration.reset_password(&user, &password).await?;
            report::line("The password is changed and the user is logged out everywhere.");
        }
        AdminCommand::Promote { user } => administration.set_admin(&user, true).await?,
        AdminCommand::Demote { user } => administration.set_admin(&user, false).await?,
        AdminCommand::Deactivate { user, erase } => {
            administration.deactivate(&user, erase).await?;
            report::line("The account is closed.");
        }
        AdminCommand::ListUsers => {
            for account in administration.accounts().await? {
                let admin = if account.admin { "\tadministrator" } else { "" };
                let closed = if account.is_active() {
                    ""
                } else {
                    "\tdeactivated"
                };
                report::line(format_args!("{}{admin}{closed}", account.user_id));
            }
        }
    }
    Ok(())
}

/// The password given, else one line of standard input.
fn password_or_input(given: Option<String>) -> Result<String, AdministrationError> {
    if let Some(password) = given {
        return Ok(password);
    }
    report::line("Password:");
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .map_err(|error| AdministrationError::Refused(error.to_string()))?;
    let password = line.trim_end_matches(['\r', '\n']);
    Ok(password.to_owned())
}

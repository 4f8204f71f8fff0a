//! Commands on accounts and keys. The server must not run: the database belongs to one process.

use std::{
    io::{BufRead, IsTerminal},
    time::Duration,
};

use homeserver::{
    Administration, AdministrationError, Homeserver, RegistrationToken,
    config::{Config, EngineKind},
    users::Account,
};

use crate::{
    arguments::AdminCommand,
    report::{self, Failed},
};

/// Seconds of a day.
const DAY: u64 = 24 * 60 * 60;

/// Opens the database, does what is asked, closes it.
pub(crate) async fn run(config: Config, command: AdminCommand) -> Result<(), Failed> {
    refuse_nothing(&config, &command)?;
    let homeserver = Homeserver::configured(config)
        .open()
        .await
        .map_err(|error| Failed::new("the database cannot be opened", &error))?;
    let done = carry_out(&homeserver.administration(), command).await;
    let closed = homeserver.shutdown().await;
    done?;
    if closed {
        Ok(())
    } else {
        Err(Failed::because(
            "the database was not closed cleanly, see the log",
        ))
    }
}

/// Refuses to work on nothing: with the memory engine, and, unless something is to be made, where
/// there is no database, which is then looked for in the wrong folder.
fn refuse_nothing(config: &Config, command: &AdminCommand) -> Result<(), Failed> {
    let engine = match config.storage.engine {
        EngineKind::Memory => {
            return Err(Failed::because(
                "the memory engine keeps nothing to work on",
            ));
        }
        EngineKind::Fjall => "fjall",
        EngineKind::Sled => "sled",
    };
    let makes = matches!(
        command,
        AdminCommand::CreateUser { .. } | AdminCommand::CreateRegistrationToken { .. }
    );
    let folder = &config.storage.path;
    if makes || folder.join(engine).exists() {
        return Ok(());
    }
    Err(Failed::because(format!(
        "there is no {engine} database in {}; is this the right configuration and folder?",
        folder.display()
    )))
}

impl From<AdministrationError> for Failed {
    fn from(error: AdministrationError) -> Self {
        Self::because(error.to_string())
    }
}

async fn carry_out(administration: &Administration, command: AdminCommand) -> Result<(), Failed> {
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
            // Before anybody types a password for nothing.
            administration.account(&user).await?;
            let password = password_or_input(password)?;
            administration.reset_password(&user, &password).await?;
            report::line("The password is changed and the user is logged out everywhere.");
        }
        AdminCommand::Promote { user } => {
            administration.set_admin(&user, true).await?;
            report::line("The user is an administrator.");
        }
        AdminCommand::Demote { user } => {
            administration.set_admin(&user, false).await?;
            report::line("The user is no administrator.");
        }
        AdminCommand::Deactivate { user, erase } => {
            administration.deactivate(&user, erase).await?;
            report::line("The account is closed.");
        }
        AdminCommand::Logout { user } => {
            administration.log_out(&user).await?;
            report::line("The user is logged out everywhere.");
        }
        AdminCommand::ListUsers => {
            for account in administration.accounts().await? {
                report::line(summary(&account));
            }
        }
        AdminCommand::ShowUser { user } => show(administration, &user).await?,
        AdminCommand::CreateRegistrationToken { token, uses, days } => {
            let lifetime = days.map(|days| Duration::from_secs(u64::from(days) * DAY));
            let token = token.as_deref();
            let made = administration.create_registration_token(token, uses, lifetime);
            report::line(made.await?);
        }
        AdminCommand::ListRegistrationTokens => {
            for token in administration.registration_tokens().await? {
                report::line(token_line(&token));
            }
        }
        AdminCommand::RevokeRegistrationToken { token } => {
            administration.revoke_registration_token(&token).await?;
            report::line("The token is revoked.");
        }
        AdminCommand::RotateSigningKey => {
            let key = administration.rotate_signing_key().await?;
            report::line(format_args!("The server signs with {key} from now on."));
        }
    }
    Ok(())
}

/// One line about an account, its parts apart by tabs.
fn summary(account: &Account) -> String {
    let admin = if account.admin { "\tadministrator" } else { "" };
    let closed = if account.is_active() {
        ""
    } else {
        "\tdeactivated"
    };
    format!("{}{admin}{closed}", account.user_id)
}

async fn show(administration: &Administration, user: &str) -> Result<(), Failed> {
    let account = administration.account(user).await?;
    report::line(summary(&account));
    let password = if account.password_hash.is_some() {
        "set"
    } else {
        "none"
    };
    report::line(format_args!("password\t{password}"));
    report::line(format_args!("created\t{}", date(account.created_at)));
    let bytes = administration.uploaded_bytes(user).await?;
    report::line(format_args!("uploaded\t{bytes} bytes"));
    for device in administration.devices(user).await? {
        let seen = device.last_seen.map_or_else(String::new, |seen| {
            let address = seen.ip.unwrap_or_default();
            format!("{}\t{address}", date(seen.at))
        });
        let name = device.display_name.unwrap_or_default();
        report::line(format_args!("device\t{}\t{name}\t{seen}", device.id));
    }
    Ok(())
}

/// One line about a token: itself, uses, end, and whether it is good.
fn token_line(token: &RegistrationToken) -> String {
    let allowed = token.uses_allowed.map(|uses| format!(" of {uses}"));
    let until = token.expires_at.map(|at| format!("\tuntil {}", date(at)));
    let spent = if token.is_good {
        ""
    } else {
        "\tno longer good"
    };
    format!(
        "{}\tused {}{}{}{spent}",
        token.token,
        token.used,
        allowed.unwrap_or_default(),
        until.unwrap_or_default(),
    )
}

/// Milliseconds since the Unix epoch as people write them, in UTC. By the days of 400 years, counted
/// from a first of March, so that leap days come last.
fn date(millis: u64) -> String {
    let seconds = millis / 1_000;
    let (minutes, hours) = (seconds / 60 % 60, seconds / 3_600 % 24);
    let days = seconds / DAY + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = year + era * 400 + next;
    format!("{year:04}-{month:02}-{day:02} {hours:02}:{minutes:02} UTC")
}

/// The password given, else one line of standard input.
fn password_or_input(given: Option<String>) -> Result<String, Failed> {
    if let Some(password) = given {
        return Ok(password);
    }
    let input = std::io::stdin();
    if input.is_terminal() {
        let typed = rpassword::prompt_password("Password: ");
        return typed.map_err(|error| Failed::new("the password cannot be read", &error));
    }
    let mut line = String::new();
    let read = input.lock().read_line(&mut line);
    read.map_err(|error| Failed::new("the password cannot be read", &error))?;
    let password = line.trim_end_matches(['\r', '\n']);
    Ok(password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let cases = [
            (0, "1970-01-01 00:00 UTC"),
            (951_782_400, "2000-02-29 00:00 UTC"),
            (1_700_000_000, "2023-11-14 22:13 UTC"),
            (1_735_689_599, "2024-12-31 23:59 UTC"),
            (4_107_542_399, "2100-02-28 23:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00 UTC"),
        ];
        for (seconds, text) in cases {
            assert_eq!(date(seconds * 1_000), text);
        }
    }
}

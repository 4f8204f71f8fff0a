//! Running the server: open, listen, tell where, wait for a signal, stop in order.

use std::{io, time::Instant};

use homeserver::{
    Homeserver, Listening,
    config::{Config, RegistrationMode, Surface},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::report::{self, Failed};

/// Serves until SIGTERM or SIGINT; SIGHUP renews certificates.
pub(crate) async fn serve(config: Config) -> Result<(), Failed> {
    let no_signals = |error| Failed::new("cannot wait for signals", &error);
    let stop = stop_signal().map_err(no_signals)?;
    let hangup = signal(SignalKind::hangup()).map_err(no_signals)?;
    let (engine, path) = (config.storage.engine, config.storage.path.clone());
    tracing::info!(
        server_name = %config.server_name,
        engine = ?engine,
        path = %path.display(),
        "opening the database"
    );
    #[expect(
        clippy::disallowed_methods,
        reason = "the binary measures its own start"
    )]
    let started = Instant::now();
    let homeserver = Homeserver::configured(config)
        .open()
        .await
        .map_err(|error| Failed::new("the homeserver cannot be opened", &error))?;
    let listening = match homeserver.listen().await {
        Ok(listening) => listening,
        Err(error) => {
            homeserver.shutdown().await;
            return Err(Failed::new("the homeserver cannot be reached", &error));
        }
    };
    let milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(milliseconds, "started");
    announce(&homeserver, &listening).await?;
    tokio::select! {
        () = stop => {}
        () = reload_at(hangup, &homeserver) => {}
    }
    tracing::info!("stopping");
    if homeserver.shutdown().await {
        tracing::info!("stopped");
        Ok(())
    } else {
        Err(Failed::because(
            "the homeserver did not stop cleanly, see the log",
        ))
    }
}

/// Reads the certificates of TLS listeners again at each SIGHUP.
async fn reload_at(mut hangup: Signal, homeserver: &Homeserver) {
    while hangup.recv().await.is_some() {
        match homeserver.reload_certificates() {
            Ok(read) => tracing::info!(read, "certificates of TLS listeners were read again"),
            Err(error) => tracing::error!(%error, "the certificate stays as it was"),
        }
    }
}

/// Resolves at the first SIGTERM or SIGINT.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Says where the server is, and how to make the first account.
async fn announce(homeserver: &Homeserver, listening: &[Listening]) -> Result<(), Failed> {
    let name = homeserver.server_name();
    report::line(format_args!("The homeserver of {name} runs."));
    for listener in listening {
        let scheme = if listener.tls { "https" } else { "http" };
        let address = listener.address;
        tracing::info!(%address, tls = listener.tls, serves = ?listener.serves, "listening");
        if listener.serves.contains(&Surface::Client) {
            report::line(format_args!("  Open {scheme}://{address}/"));
        }
        if listener.serves.contains(&Surface::Metrics) {
            tracing::warn!(%address, "this version serves no metrics");
        }
    }
    let token = homeserver
        .first_registration_token()
        .await
        .map_err(|error| Failed::new("cannot read the registration token", &error))?;
    if let Some(token) = token {
        report::line("  There is no account yet. The first one becomes the administrator.");
        report::line(format_args!("  Register it with this token: {token}"));
    } else if homeserver.config().registration.mode == RegistrationMode::Open {
        tracing::warn!(
            "registration is open: everybody who reaches this server may make accounts; none of \
             them becomes the administrator: stop the server and use `homeserver admin promote`"
        );
    }
    Ok(())
}

//! Contents on their way through, with a deadline for a client that stands still.

use std::{io, time::Duration};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use homeserver_runtime::Tasks;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::mpsc,
    time::timeout,
};
use tokio_util::io::StreamReader;

/// Bytes read from a file in one go.
const PIECE: usize = 64 * 1024;
/// Pieces that wait for the client.
const AHEAD: usize = 2;

/// The body of an upload. Reading it fails when nothing comes for as long as `patience`.
pub(super) fn incoming(body: Body, patience: Duration) -> impl AsyncRead + Send + Unpin {
    let pieces = stream::unfold(body.into_data_stream(), move |mut body| async move {
        let piece = match timeout(patience, body.next()).await {
            Ok(piece) => piece?.map_err(io::Error::other),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        Some((piece, body))
    });
    StreamReader::new(Box::pin(pieces))
}

/// The body of a download. It is read by a task of its own, which closes the file when the client
/// takes nothing for as long as `patience`, also where the protocol would never say so: one HTTP/2
/// connection may leave a hundred answers lying.
pub(in crate::http) fn outgoing(
    mut content: impl AsyncRead + Send + Unpin + 'static,
    patience: Duration,
    tasks: &Tasks,
) -> Body {
    let (sender, receiver) = mpsc::channel(AHEAD);
    tasks.spawn(async move {
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            let mut next = (&mut content).take(PIECE as u64);
            let piece = match next.read_to_end(&mut piece).await {
                Ok(0) => Piece::End,
                Ok(_) => Piece::Bytes(std::mem::take(&mut piece).into()),
                Err(error) => Piece::Broken(error),
            };
            let is_last = !matches!(piece, Piece::Bytes(_));
            let sent = timeout(patience, sender.send(piece)).await;
            if is_last || !matches!(sent, Ok(Ok(()))) {
                return;
            }
        }
    });
    let pieces = stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Piece::Bytes(bytes)) => Some((Ok(bytes), Some(receiver))),
            Some(Piece::Broken(error)) => Some((Err(error), None)),
            Some(Piece::End) => None,
            // The task has given up on the client.
            None => Some((Err(io::ErrorKind::TimedOut.into()), None)),
        }
    });
    Body::from_stream(pieces)
}

/// What the task that reads a file hands on.
enum Piece {
    Bytes(Bytes),
    Broken(io::Error),
    /// Nothing is missing.
    End,
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http_body_util::BodyExt;

    use super::*;

    const PATIENCE: Duration = Duration::from_mins(1);

    #[tokio::test(start_paused = true)]
    async fn a_body_may_be_slow_but_not_stand_still() {
        let pieces = |pause: Duration| {
            let pieces = stream::iter(0..5).then(move |_| async move {
                tokio::time::sleep(pause).await;
                Ok::<_, io::Error>(Bytes::from_static(b"12"))
            });
            Body::from_stream(pieces)
        };
        let mut read = Vec::new();
        let mut slow = incoming(pieces(PATIENCE / 2), PATIENCE);
        slow.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"1212121212");
        let mut still = incoming(pieces(PATIENCE * 2), PATIENCE);
        let error = still.read_to_end(&mut read).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    /// A file that says when it is closed.
    struct Watched(
        io::Cursor<Vec<u8>>,
        #[expect(dead_code, reason = "counted")] Arc<()>,
    );

    impl AsyncRead for Watched {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            context: &mut std::task::Context<'_>,
            buffer: &mut tokio::io::ReadBuf<'_>,
        ) -> std::task::Poll<io::Result<()>> {
            std::pin::Pin::new(&mut self.0).poll_read(context, buffer)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_file_of_a_client_that_takes_nothing_is_closed() {
        let tasks = Tasks::default();
        let open = Arc::new(());
        let contents = vec![7; 10 * PIECE];
        let file = || Watched(io::Cursor::new(contents.clone()), Arc::clone(&open));
        let read = outgoing(file(), PATIENCE, &tasks).collect().await.unwrap();
        assert_eq!(read.to_bytes(), contents);

        let mut left = outgoing(file(), PATIENCE, &tasks);
        left.frame().await.unwrap().unwrap();
        tokio::time::sleep(PATIENCE * 2).await;
        assert_eq!(Arc::strong_count(&open), 1);
        // What it takes later does not look whole.
        assert!(left.collect().await.is_err());
    }
}

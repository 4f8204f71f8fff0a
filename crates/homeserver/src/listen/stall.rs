//! A stream that gives up on a peer which does not read, or hardly: when writes have waited for too
//! long in all while little was taken, that is an error, and ends the connection with everything
//! that waits in it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// Bytes that a peer has to take in the time that writes may wait for it: some hundred a second,
/// as the slowest mobile networks have them.
const LEAST: usize = 16 * 1024;

/// See the module.
pub(super) struct Impatient<S> {
    inner: S,
    patience: Duration,
    /// Since when a write waits, and until when it may; set while one does.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
    /// How long others before it waited.
    waited: Duration,
    /// Bytes that were taken in that time.
    taken: usize,
}

impl<S> Impatient<S> {
    pub(super) fn new(inner: S, patience: Duration) -> Self {
        Self {
            inner,
            patience,
            waiting: None,
            waited: Duration::ZERO,
            taken: 0,
        }
    }

    /// Passes on how a write went; one that has waited too long fails.
    fn judge(
        &mut self,
        context: &mut Context<'_>,
        outcome: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(written) = &outcome {
            if let Some((since, _)) = self.waiting.take() {
                self.waited += since.elapsed();
            }
            self.taken += written.as_ref().copied().unwrap_or_default();
            if self.taken >= LEAST {
                (self.taken, self.waited) = (0, Duration::ZERO);
            }
            return outcome;
        }
        let left = self.patience.saturating_sub(self.waited);
        let (_, deadline) = self
            .waiting
            .get_or_insert_with(|| (Instant::now(), Box::pin(sleep(left))));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.judge(context, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.judge(context, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A flush tells nothing of progress where a write still waits.
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const PATIENCE: Duration = Duration::from_mins(1);

    /// What becomes of a long writing to somebody who takes so many bytes every so often.
    async fn write_to(bytes: usize, every: Duration) -> io::Result<()> {
        let (near, mut far) = tokio::io::duplex(bytes);
        let mut near = Impatient::new(near, PATIENCE);
        let reading = async move {
            let mut some = vec![0; bytes];
            loop {
                sleep(every).await;
                if far.read_exact(&mut some).await.is_err() {
                    return;
                }
            }
        };
        let writing = async move { near.write_all(&vec![7; 20 * bytes]).await };
        let (written, ()) = tokio::join!(writing, reading);
        written
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_or_hardly_anything_is_given_up() {
        let slow = write_to(LEAST / 4, PATIENCE / 6).await;
        slow.unwrap();
        for (bytes, every) in [(LEAST, PATIENCE * 2), (1, PATIENCE / 4)] {
            let error = write_to(bytes, every).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{bytes}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_may_rest() {
        let (near, mut far) = tokio::io::duplex(4);
        let mut near = Impatient::new(near, PATIENCE);
        let mut four = [0; 4];
        for _ in 0..5 {
            near.write_all(b"1234").await.unwrap();
            sleep(PATIENCE * 2).await;
            far.read_exact(&mut four).await.unwrap();
        }
    }
}

//! Log lines, written by a thread of their own.
//!
//! In:     whole lines.
//! Out:    the same, as fast as somebody takes them; those that find no room are counted and left out.
//! Never:  makes whoever logs wait, or fail: a log that nobody reads stops no change.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

/// Lines that wait to be written. Some hundred bytes each: a burst of a second fits, and all of them
/// are no more than a megabyte or two.
const LINES_MAX: usize = 4096;

/// How long the end of the process waits for the last lines.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

enum Item {
    Line(Vec<u8>),
    /// Everything before it is written: say so.
    Flush(SyncSender<()>),
}

/// Where lines go.
#[derive(Clone)]
pub(super) struct Lines {
    items: SyncSender<Item>,
    left_out: Arc<AtomicU64>,
}

impl Lines {
    /// Written to `out`, until the last of these is dropped.
    pub(super) fn to(out: impl Write + Send + 'static) -> io::Result<Self> {
        let (items, waiting) = sync_channel(LINES_MAX);
        let left_out = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&left_out);
        let thread = thread::Builder::new().name("walcast log".into());
        thread.spawn(move || write(&waiting, out, &counted))?;
        Ok(Self { items, left_out })
    }
}

impl Write for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.items.try_send(Item::Line(line.to_vec())).is_err() {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write(waiting: &Receiver<Item>, mut out: impl Write, left_out: &AtomicU64) {
    for item in waiting {
        match item {
            // There is nobody to tell that the log cannot be written.
            Item::Line(line) => drop(out.write_all(&line)),
            Item::Flush(written) => {
                let _ = out.flush();
                let _ = written.try_send(());
            }
        }
        let lines = left_out.swap(0, Ordering::Relaxed);
        if lines > 0 {
            // In the form of every other line, and behind those that wait.
            tracing::warn!(lines, "lines of the log were left out: nobody took them");
        }
    }
}

/// The log of this process. When it goes, what was logged before is written, if somebody takes it.
#[must_use = "the last lines are written when this goes"]
pub struct Logging(Lines);

impl Logging {
    pub(super) const fn new(lines: Lines) -> Self {
        Self(lines)
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        let (written, done) = sync_channel(1);
        if self.0.items.try_send(Item::Flush(written)).is_ok() {
            let _ = done.recv_timeout(FLUSH_TIMEOUT);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Takes a write for each word that it is given.
    struct Slow {
        may: mpsc::Receiver<()>,
        took: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.may.recv().map_err(io::Error::other)?;
            self.took.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn f10_who_logs_waits_for_nobody_and_what_is_left_out_is_counted() {
        let ((allow, may), (took, taken)) = (mpsc::channel(), mpsc::channel());
        let mut lines = Lines::to(Slow { may, took }).unwrap();
        for line in 0..LINES_MAX + 100 {
            lines.write_all(line.to_string().as_bytes()).unwrap();
        }
        // One may be in the hands of the writer.
        let left_out = lines.left_out.load(Ordering::Relaxed);
        assert!((99..=100).contains(&left_out), "{left_out}");
        for expected in 0..LINES_MAX {
            allow.send(()).unwrap();
            assert_eq!(taken.recv().unwrap(), expected.to_string().as_bytes());
        }
        // What cannot be written at all is no reason to wait either.
        drop(allow);
        drop(Logging::new(lines.clone()));
        lines.write_all(b"more").unwrap();
    }

    #[test]
    fn what_was_logged_is_written_when_it_ends() {
        let ((allow, may), (took, taken)) = (mpsc::channel(), mpsc::channel());
        let mut lines = Lines::to(Slow { may, took }).unwrap();
        lines.write_all(b"last").unwrap();
        allow.send(()).unwrap();
        drop(Logging::new(lines));
        assert_eq!(taken.try_recv().unwrap(), b"last");
    }
}

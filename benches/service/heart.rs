//! A bystander: how soon a client that has nothing to do with what is measured is answered.
//!
//! In:     a running service.
//! Out:    milliseconds from each heartbeat to its answer.
//! Never:  anything else on that socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{ROOM, Service, Socket, TEXT, masked};

/// Time between two heartbeats.
const HEARTBEAT: Duration = Duration::from_millis(3);

/// A socket that has nothing to do with what is measured, and how soon its heartbeats are answered.
pub(crate) struct Heart {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<f64>>,
}

impl Heart {
    pub(crate) fn start(service: &Service) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut socket = Socket::open(service.address, &ROOM);
        let stopped = Arc::clone(&stop);
        let beat = masked(TEXT, br#"[null,"1","phoenix","heartbeat",{}]"#);
        let thread = thread::spawn(move || {
            let mut milliseconds = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                socket.send(&beat);
                socket.frame();
                milliseconds.push(start.elapsed().as_secs_f64() * 1000.0);
                thread::sleep(HEARTBEAT);
            }
            milliseconds
        });
        Self { stop, thread }
    }

    pub(crate) fn stop(self) -> Vec<f64> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }

    pub(crate) fn beat_for(self, time: Duration) -> Latency {
        thread::sleep(time);
        Latency::of(self.stop())
    }
}

/// In milliseconds.
#[derive(Clone, Copy)]
pub(crate) struct Latency {
    p50: f64,
    pub(crate) p99: f64,
    pub(crate) most: f64,
}

impl Latency {
    pub(crate) fn of(mut milliseconds: Vec<f64>) -> Self {
        milliseconds.sort_by(f64::total_cmp);
        let at = |percent: usize| milliseconds[(milliseconds.len() - 1) * percent / 100];
        Self { p50: at(50), p99: at(99), most: at(100) }
    }
}

impl std::fmt::Display for Latency {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms", self.p50, self.p99, self.most)
    }
}

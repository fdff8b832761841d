//! What a check may allocate. Without a sanitizer libFuzzer cannot tell, and a count that reserves
//! memory would go by unseen until it is large enough to be refused.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Bytes that a check may hold beside what its input accounts for: keys are read, tables made.
const FIXED_BYTES: usize = 2 * 1024 * 1024;

/// Bytes that it may hold for each byte of input: a check reads it several times, as JSON values
/// too. More is what CSV becomes, whose first line is repeated in every row.
const BYTES_A_BYTE: usize = 2048;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

fn add(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Relaxed).wrapping_add(bytes);
    PEAK.fetch_max(live, Relaxed);
}

// SAFETY: every call is passed on to `System`; only numbers are added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: the caller's promise is the one asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above; it came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        add(size);
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Runs a check, which fails if it ever held more than its input accounts for.
pub fn bounded(check: fn(&[u8]), bytes: &[u8]) {
    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    check(bytes);
    let held = PEAK.load(Relaxed).saturating_sub(before);
    let allowed = FIXED_BYTES + BYTES_A_BYTE * bytes.len();
    assert!(held <= allowed, "{held} bytes for an input of {}", bytes.len());
}

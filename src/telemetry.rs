//! What an operator sees: log lines on standard error, and the names of all metrics.
//!
//! In:     `[log]` settings.
//! Out:    the one tracing subscriber, the one metrics recorder.
//! Never:  row values, tokens, claims, passwords or SQL text with them.

mod lines;

use std::fmt;
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use self::lines::Lines;
use crate::config::{Log, LogFormat};

pub use self::lines::Logging;

/// Why there is no log or no metrics.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `log.filter` is malformed.
    #[error("setting log.filter: must be like info or warn,walcast::wal=debug")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// The thread that writes log lines cannot be started.
    #[error("cannot start a thread for the log")]
    Thread(#[source] io::Error),
    /// Somebody set one up before.
    #[error("logging or metrics are set up already")]
    Twice,
}

/// Open sockets now.
pub const CONNECTIONS: &str = "walcast_connections";
/// Joined channels now.
pub const CHANNELS: &str = "walcast_channels";
/// Row-change subscriptions now.
pub const SUBSCRIPTIONS: &str = "walcast_subscriptions";
/// Connections ended, by [`REASON`].
pub const CONNECTIONS_CLOSED: &str = "walcast_connections_closed_total";
/// Joins, by [`RESULT`].
pub const JOINS: &str = "walcast_joins_total";
/// Row changes read from the WAL.
pub const CHANGES: &str = "walcast_changes_total";
/// Broadcasts that were accepted.
pub const BROADCASTS: &str = "walcast_broadcasts_total";
/// HTTP requests to broadcast, by [`RESULT`].
pub const BROADCAST_REQUESTS: &str = "walcast_broadcast_requests_total";
/// New rows of `realtime.messages` for rooms that somebody was in, by [`RESULT`]: `error` for
/// those that were too large.
pub const DATABASE_BROADCASTS: &str = "walcast_database_broadcasts_total";
/// HTTP requests for rows, by [`RESULT`].
pub const REST_REQUESTS: &str = "walcast_rest_requests_total";
/// Seconds from the head of such a request to that of its answer.
pub const REST_SECONDS: &str = "walcast_rest_seconds";
/// Commands of Socket.IO's clients, by [`RESULT`]: `ok`, `refused`, or `unavailable` where Postgres was.
pub const COMMANDS: &str = "walcast_commands_total";
/// Seconds from such a command to its answer, the way of its commit through the log included.
pub const COMMAND_SECONDS: &str = "walcast_command_seconds";
/// Frames offered to subscribers.
pub const DELIVERIES: &str = "walcast_deliveries_total";
/// Members of rooms whose right to be there was looked at again.
pub const DOUBTED: &str = "walcast_members_doubted_total";
/// Events of mapped tables told to rooms.
pub const DOMAIN_EVENTS: &str = "walcast_domain_events_total";
/// Row changes withheld from somebody who asked, by [`REASON`], and events of mapped tables that could
/// not be made (`mapping_…`): once for each party (subscribers
/// of one channel and the same claims) that a policy keeps it from, once for each audience
/// otherwise.
pub const WITHHELD: &str = "walcast_withheld_total";
/// Bytes of WAL between the server's head and what was published.
pub const WAL_LAG_BYTES: &str = "walcast_wal_lag_bytes";
/// Bytes of WAL that the slot keeps on the server's disk.
pub const WAL_RETAINED_BYTES: &str = "walcast_wal_retained_bytes";
/// Bytes of WAL that the slot may keep there.
pub const WAL_BUDGET_BYTES: &str = "walcast_wal_budget_bytes";
/// What that calls for: 0 nothing, 1 warn, 2 shed, 3 give up.
pub const WAL_PRESSURE: &str = "walcast_wal_pressure";
/// Bytes of WAL between the slot's confirmed position and the end of the log.
pub const SLOT_LAG_BYTES: &str = "walcast_slot_confirmed_lag_bytes";
/// Bytes of WAL that may still be written before the server gives the slot up; none without limit.
pub const SLOT_SAFE_BYTES: &str = "walcast_slot_safe_wal_bytes";
/// Age, in transactions, of the oldest one that the slot keeps catalog rows for.
pub const SLOT_CATALOG_AGE: &str = "walcast_slot_catalog_xmin_age";
/// 1 for the state the slot is in, by [`STATE`]; 0 for the others.
pub const SLOT_STATE: &str = "walcast_slot_state";
/// Slots named like ours that nobody reads.
pub const ORPHAN_SLOTS: &str = "walcast_orphan_slots";
/// Bytes of WAL that the worst of them keeps.
pub const ORPHAN_RETAINED_BYTES: &str = "walcast_orphan_slots_retained_bytes";
/// Replication connections opened.
pub const WAL_CONNECTS: &str = "walcast_wal_connects_total";
/// Gaps declared to clients, by [`REASON`].
pub const GAPS: &str = "walcast_gaps_total";
/// Channels that came back with a cursor, by [`RESULT`]: `ok` or `gap`.
pub const RESUMES: &str = "walcast_resumes_total";
/// Seconds from a commit on the server to its frames being offered.
pub const LATENCY_SECONDS: &str = "walcast_latency_seconds";
/// Seconds one round of policy checks took.
pub const CHECK_SECONDS: &str = "walcast_check_seconds";
/// Policy checks that gave no answer, by [`REASON`].
pub const CHECKS_FAILED: &str = "walcast_checks_failed_total";
/// Fetches of the key set, by [`RESULT`].
pub const KEY_SET_FETCHES: &str = "walcast_key_set_fetches_total";
/// Keys of the fetched key set that tokens are verified with.
pub const KEY_SET_KEYS: &str = "walcast_key_set_keys";
/// When the key set was last fetched or confirmed, in seconds since 1970.
pub const KEY_SET_FETCHED: &str = "walcast_key_set_fetched_timestamp_seconds";

/// Seconds it took to decide what somebody may read on a private channel, waiting included.
pub const READ_AUTHORIZATION_SECONDS: &str = "walcast_read_authorization_seconds";
/// Seconds it took to decide what somebody may write there, waiting included.
pub const WRITE_AUTHORIZATION_SECONDS: &str = "walcast_write_authorization_seconds";
/// Time to read the stored messages of a channel.
pub const REPLAY_SECONDS: &str = "walcast_replay_seconds";

/// Label: why.
pub const REASON: &str = "reason";
/// Label: a code of `feed::SlotState`.
pub const STATE: &str = "state";
/// Label: `ok` or `error`.
pub const RESULT: &str = "result";

/// Upper ends of the buckets of every histogram here, in seconds.
const BUCKETS: [f64; 14] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// An error and what caused it, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Starts logging to standard error, until the process ends.
///
/// # Errors
/// [`Error`] when the filter is malformed, or a subscriber is there already.
pub fn init(settings: &Log) -> Result<Logging, Error> {
    let filter = filter(&settings.filter)?;
    let written = Lines::to(io::stderr()).map_err(Error::Thread)?;
    let writer = written.clone();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || writer.clone())
        // It would say on the same standard error that it cannot be written to, and panic.
        .log_internal_errors(false);
    let result = match settings.format {
        LogFormat::Text => {
            lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init()
        }
        LogFormat::Json => lines.json().try_init(),
        LogFormat::Supabase => lines.with_ansi(false).event_format(OfficialLines).try_init(),
    };
    result.map_err(|_| Error::Twice)?;
    Ok(Logging::new(written))
}

/// Lines as the official container writes them: `HH:MM:SS.mmm [level] text`, in UTC.
struct OfficialLines;

impl<S, N> FormatEvent<S, N> for OfficialLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut text = String::new();
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG | Level::TRACE => "debug",
        };
        let clock = clock(SystemTime::now());
        // What reads them takes every line for an event.
        let text = text.trim_end().replace(['\r', '\n'], " ");
        writeln!(writer, "{clock} [{level}] {text}")
    }
}

/// The time of day.
fn clock(now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs() % 86_400;
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{:03}", seconds % 60, since.subsec_millis())
}

/// A name by which dashboards for the official container know one of our metrics.
struct Official {
    name: &'static str,
    ours: &'static str,
    /// The only series of ours that it means, by its labels; all of them when there is none.
    only: Option<&'static str>,
}

/// Names that mean the same there. Durations are not among them: there they are milliseconds.
const OFFICIAL: &[Official] = &[
    Official { name: "realtime_connections_connected", ours: CONNECTIONS, only: None },
    Official { name: "realtime_channel_joins", ours: JOINS, only: Some("{result=\"ok\"}") },
    Official { name: "phoenix_channel_joined_total", ours: JOINS, only: None },
    Official { name: "realtime_channel_db_events", ours: DELIVERIES, only: None },
    Official { name: "realtime_replication_poller_changes_dispatch", ours: CHANGES, only: None },
    Official {
        name: "realtime_subscriptions_manager_subscribers",
        ours: SUBSCRIPTIONS,
        only: None,
    },
];

/// Rendered metrics, and those again that dashboards know by another name.
pub fn with_official_names(mut rendered: String) -> String {
    let mut more = String::new();
    for Official { name, ours, only } in OFFICIAL {
        let (mut kind, mut samples) = ("", String::new());
        for line in rendered.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ").and_then(|it| it.strip_prefix(ours))
                && let Some(found) = rest.strip_prefix(' ')
            {
                kind = found;
            }
            let Some(sample) = line.strip_prefix(ours) else { continue };
            let sample = match only {
                Some(labels) => sample.strip_prefix(labels),
                None => Some(sample),
            };
            let Some(sample) = sample.filter(|it| it.starts_with([' ', '{'])) else { continue };
            samples.push_str(name);
            samples.push_str(sample);
            samples.push('\n');
        }
        if !samples.is_empty() {
            more.extend(["# TYPE ", name, " ", kind, "\n", &samples, "\n"]);
        }
    }
    rendered.push_str(&more);
    rendered
}

/// The filter, with the words of the official container's `LOG_LEVEL`, and without the lines of
/// the Postgres driver and of refinery that would show statements.
fn filter(text: &str) -> Result<EnvFilter, Error> {
    let text = match text.trim().to_ascii_lowercase().as_str() {
        "warning" => "warn".to_owned(),
        "notice" => "info".to_owned(),
        "critical" | "alert" | "emergency" => "error".to_owned(),
        _ => text.to_owned(),
    };
    let mut filter = EnvFilter::try_new(text).map_err(Error::Filter)?;
    for quiet in
        ["tokio_postgres=warn", "postgres_protocol=warn", "refinery_core=warn", "hyper=info"]
    {
        filter = filter.add_directive(quiet.parse().map_err(Error::Filter)?);
    }
    Ok(filter)
}

/// Starts recording metrics; what it returns renders them for `/metrics`. Its `run_upkeep` is to
/// be called every few seconds.
///
/// # Errors
/// [`Error::Twice`] when a recorder is there already.
pub fn record_metrics() -> Result<PrometheusHandle, Error> {
    let handle = builder().install_recorder().map_err(|_| Error::Twice)?;
    describe();
    Ok(handle)
}

fn builder() -> PrometheusBuilder {
    PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &BUCKETS)
        .expect("there are buckets")
}

fn describe() {
    describe_gauge!(CONNECTIONS, "Open sockets.");
    describe_gauge!(CHANNELS, "Joined channels.");
    describe_gauge!(SUBSCRIPTIONS, "Row-change subscriptions.");
    describe_counter!(CONNECTIONS_CLOSED, "Connections ended, by reason.");
    describe_counter!(JOINS, "Joins, by result.");
    describe_counter!(CHANGES, "Row changes read from the WAL.");
    describe_counter!(BROADCASTS, "Broadcasts that were accepted.");
    describe_counter!(BROADCAST_REQUESTS, "HTTP requests to broadcast, by result.");
    describe_counter!(REST_REQUESTS, "HTTP requests for rows, by result.");
    describe_histogram!(REST_SECONDS, Unit::Seconds, "HTTP requests for rows.");
    describe_counter!(COMMANDS, "Commands of Socket.IO's clients, by result.");
    describe_histogram!(COMMAND_SECONDS, Unit::Seconds, "Commands of Socket.IO's clients.");
    describe_counter!(DATABASE_BROADCASTS, "Broadcasts from the database, by result.");
    describe_counter!(DELIVERIES, "Frames offered to subscribers.");
    describe_counter!(DOUBTED, "Members of rooms asked about anew, because rows changed.");
    describe_counter!(DOMAIN_EVENTS, "Events of mapped tables told to rooms.");
    describe_counter!(WITHHELD, "Row changes withheld from somebody who asked, by reason.");
    describe_gauge!(WAL_LAG_BYTES, Unit::Bytes, "WAL not yet published.");
    describe_gauge!(WAL_RETAINED_BYTES, Unit::Bytes, "WAL that the slot keeps on the server.");
    describe_gauge!(WAL_BUDGET_BYTES, Unit::Bytes, "WAL that the slot may keep there.");
    describe_gauge!(WAL_PRESSURE, "What that calls for: 1 warn, 2 shed, 3 give up.");
    describe_gauge!(SLOT_LAG_BYTES, Unit::Bytes, "WAL that the slot has not confirmed.");
    describe_gauge!(SLOT_SAFE_BYTES, Unit::Bytes, "WAL until the server gives the slot up.");
    describe_gauge!(SLOT_CATALOG_AGE, "Transactions that vacuum of catalogs is held back by.");
    describe_gauge!(SLOT_STATE, "1 for the state the slot is in.");
    describe_gauge!(ORPHAN_SLOTS, "Slots named like ours that nobody reads.");
    describe_gauge!(ORPHAN_RETAINED_BYTES, Unit::Bytes, "WAL that the worst of them keeps.");
    describe_counter!(WAL_CONNECTS, "Replication connections opened.");
    describe_counter!(GAPS, "Gaps declared to clients, by reason.");
    describe_counter!(RESUMES, "Channels that came back with a cursor, by result.");
    describe_histogram!(LATENCY_SECONDS, Unit::Seconds, "Commit to frames offered.");
    describe_histogram!(CHECK_SECONDS, Unit::Seconds, "One round of policy checks.");
    describe_counter!(KEY_SET_FETCHES, "Fetches of the key set, by result.");
    describe_gauge!(KEY_SET_KEYS, "Keys of the fetched key set.");
    describe_gauge!(KEY_SET_FETCHED, Unit::Seconds, "Last good fetch, since 1970.");
    describe_counter!(CHECKS_FAILED, "Policy checks without an answer, by reason.");
    describe_histogram!(READ_AUTHORIZATION_SECONDS, Unit::Seconds, "Read checks of channels.");
    describe_histogram!(WRITE_AUTHORIZATION_SECONDS, Unit::Seconds, "Write checks of channels.");
    describe_histogram!(REPLAY_SECONDS, Unit::Seconds, "Reads of stored messages.");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn official_level_names_are_understood() {
        for (given, level) in [("warning", "warn"), ("notice", "info"), ("Emergency", "error")] {
            let shown = filter(given).unwrap().to_string();
            assert!(shown.split(',').any(|part| part == level), "{given}: {shown}");
        }
    }

    #[test]
    fn statements_stay_out_of_the_log_at_any_level() {
        let shown = filter("trace,tokio_postgres=trace").unwrap().to_string();
        assert!(shown.contains("tokio_postgres=warn"), "{shown}");
        assert!(!shown.contains("tokio_postgres=trace"), "{shown}");
    }

    #[test]
    fn metrics_are_rendered_with_their_help_and_buckets() {
        let recorder = builder().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe();
            metrics::gauge!(CONNECTIONS).set(2.0);
            metrics::counter!(GAPS, REASON => "slot_lost").increment(1);
            metrics::histogram!(LATENCY_SECONDS).record(0.003);
        });
        let text = recorder.handle().render();
        for line in [
            "# HELP walcast_connections Open sockets.",
            "walcast_connections 2",
            "walcast_gaps_total{reason=\"slot_lost\"} 1",
            "walcast_latency_seconds_bucket{le=\"0.0025\"} 0",
            "walcast_latency_seconds_bucket{le=\"0.005\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
    }

    #[test]
    fn dashboards_find_the_names_they_know() {
        let recorder = builder().build_recorder();
        metrics::with_local_recorder(&recorder, || {
            describe();
            metrics::gauge!(CONNECTIONS).set(2.0);
            metrics::counter!(JOINS, RESULT => "ok").increment(3);
            metrics::counter!(JOINS, RESULT => "error").increment(1);
            metrics::counter!(CONNECTIONS_CLOSED, REASON => "idle").increment(7);
        });
        let text = with_official_names(recorder.handle().render());
        let lines = |start: &str| -> Vec<String> {
            let mut found: Vec<_> =
                text.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect();
            found.sort();
            found
        };
        assert_eq!(lines("realtime_connections_connected"), ["realtime_connections_connected 2"]);
        assert_eq!(
            lines("# TYPE realtime_channel_joins"),
            ["# TYPE realtime_channel_joins counter"]
        );
        assert_eq!(lines("realtime_channel_joins"), ["realtime_channel_joins 3"]);
        assert_eq!(
            lines("phoenix_channel_joined_total"),
            [
                "phoenix_channel_joined_total{result=\"error\"} 1",
                "phoenix_channel_joined_total{result=\"ok\"} 3"
            ]
        );
        assert_eq!(lines("walcast_connections "), ["walcast_connections 2"]);
        assert_eq!(lines("realtime_subscriptions_manager"), [""; 0]);
    }

    #[test]
    fn official_lines_have_a_clock_a_level_and_no_second_line() {
        use std::sync::{Arc, Mutex};
        #[derive(Clone, Default)]
        struct Sink(Arc<Mutex<Vec<u8>>>);
        impl std::io::Write for Sink {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let sink = Sink::default();
        let writer = sink.clone();
        let lines = tracing_subscriber::fmt()
            .with_ansi(false)
            .event_format(OfficialLines)
            .with_writer(move || writer.clone())
            .finish();
        tracing::subscriber::with_default(lines, || {
            tracing::warn!(name = "x", "two\nlines");
        });
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        let (time, rest) = text.split_once(' ').unwrap();
        assert_eq!(rest, "[warning] two lines name=\"x\"\n");
        let digits = |c: char| if c.is_ascii_digit() { '0' } else { c };
        assert_eq!(time.chars().map(digits).collect::<String>(), "00:00:00.000");
        let noon = UNIX_EPOCH + std::time::Duration::from_millis(86_400_000 * 3 + 45_296_007);
        assert_eq!(clock(noon), "12:34:56.007");
    }

    #[test]
    fn a_malformed_filter_is_refused() {
        assert!(matches!(filter("walcast=loud"), Err(Error::Filter(_))));
    }
}

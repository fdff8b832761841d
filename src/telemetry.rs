//! What an operator sees: log lines on standard error, and the names of all metrics.
//!
//! In:     `[log]` settings.
//! Out:    the one tracing subscriber, the one metrics recorder.
//! Never:  row values, tokens, claims, passwords or SQL text with them.

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Why there is no log or no metrics.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `log.filter` is malformed.
    #[error("setting log.filter: must be like info or warn,walcast::wal=debug")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
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
/// Frames offered to subscribers.
pub const DELIVERIES: &str = "walcast_deliveries_total";
/// Row changes withheld from somebody who asked, by [`REASON`]: once for each party (subscribers
/// of one channel and the same claims) that a policy keeps it from, once for each audience
/// otherwise.
pub const WITHHELD: &str = "walcast_withheld_total";
/// Bytes of WAL between the server's head and what was published.
pub const WAL_LAG_BYTES: &str = "walcast_wal_lag_bytes";
/// Bytes of WAL that the slot keeps on the server's disk.
pub const WAL_RETAINED_BYTES: &str = "walcast_wal_retained_bytes";
/// Replication connections opened.
pub const WAL_CONNECTS: &str = "walcast_wal_connects_total";
/// Gaps declared to clients, by [`REASON`].
pub const GAPS: &str = "walcast_gaps_total";
/// Seconds from a commit on the server to its frames being offered.
pub const LATENCY_SECONDS: &str = "walcast_latency_seconds";
/// Seconds one round of policy checks took.
pub const CHECK_SECONDS: &str = "walcast_check_seconds";
/// Policy checks that gave no answer, by [`REASON`].
pub const CHECKS_FAILED: &str = "walcast_checks_failed_total";

/// Seconds it took to decide what somebody may read on a private channel, waiting included.
pub const READ_AUTHORIZATION_SECONDS: &str = "walcast_read_authorization_seconds";
/// Seconds it took to decide what somebody may write there, waiting included.
pub const WRITE_AUTHORIZATION_SECONDS: &str = "walcast_write_authorization_seconds";

/// Label: why.
pub const REASON: &str = "reason";
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

/// Starts logging to standard error.
///
/// # Errors
/// [`Error`] when the filter is malformed, or a subscriber is there already.
pub fn init(settings: &Log) -> Result<(), Error> {
    let filter = filter(&settings.filter)?;
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let result = match settings.format {
        LogFormat::Text => {
            lines.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).try_init()
        }
        LogFormat::Json => lines.json().try_init(),
    };
    result.map_err(|_| Error::Twice)
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
    describe_counter!(DELIVERIES, "Frames offered to subscribers.");
    describe_counter!(WITHHELD, "Row changes withheld from somebody who asked, by reason.");
    describe_gauge!(WAL_LAG_BYTES, Unit::Bytes, "WAL not yet published.");
    describe_gauge!(WAL_RETAINED_BYTES, Unit::Bytes, "WAL that the slot keeps on the server.");
    describe_counter!(WAL_CONNECTS, "Replication connections opened.");
    describe_counter!(GAPS, "Gaps declared to clients, by reason.");
    describe_histogram!(LATENCY_SECONDS, Unit::Seconds, "Commit to frames offered.");
    describe_histogram!(CHECK_SECONDS, Unit::Seconds, "One round of policy checks.");
    describe_counter!(CHECKS_FAILED, "Policy checks without an answer, by reason.");
    describe_histogram!(READ_AUTHORIZATION_SECONDS, Unit::Seconds, "Read checks of channels.");
    describe_histogram!(WRITE_AUTHORIZATION_SECONDS, Unit::Seconds, "Write checks of channels.");
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
    fn a_malformed_filter_is_refused() {
        assert!(matches!(filter("walcast=loud"), Err(Error::Filter(_))));
    }
}

//! `walcast tail`: prints what an event stream says, a line an event, and comes back when it breaks.
//!
//! In:     the URL of a service, a token, what to listen to, and since when.
//! Out:    events on standard output; gaps, notices and returns on standard error; exit code 1 when
//!         there is nothing to come back to.
//! Never:  a token on standard output or standard error; a line that is cut; a control character of
//!         somebody else's in a terminal.

mod blocks;
mod connection;

use std::io::{self, BufWriter, ErrorKind, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

use blocks::Event;
use connection::{Answer, Service};

/// Longest pause between two attempts.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The pause before the first attempt to come back, until the service says another.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Args)]
pub(crate) struct Flags {
    /// Where the service is; /events is added to the path.
    #[arg(long, value_name = "URL", env = "WALCAST_URL", default_value = "http://127.0.0.1:4000")]
    url: String,
    /// Whose rights decide; - reads it from standard input. Others on this machine can see
    /// arguments: better in the environment.
    #[arg(long, value_name = "TOKEN", env = "WALCAST_TOKEN", hide_env_values = true)]
    token: String,
    /// Row changes: table, schema.table or schema.*, with (columns), @INSERT, :filter after it.
    /// Several stand between commas, or in one flag each.
    #[arg(long, value_name = "TABLES", required_unless_present_any = ["topics", "topic"])]
    changes: Vec<String>,
    /// Rooms whose broadcasts are heard, between commas.
    #[arg(long, value_name = "NAMES")]
    topics: Vec<String>,
    /// One room, its name taken as it is.
    #[arg(long, value_name = "NAME")]
    topic: Vec<String>,
    /// The rooms are private: policies decide who hears them.
    #[arg(long)]
    private: bool,
    /// Begin after this cursor: one that came with an event.
    #[arg(long, value_name = "CURSOR")]
    since: Option<String>,
    /// Print each event as a JSON object.
    #[arg(long)]
    json: bool,
    /// Seconds of silence after which the service is taken for gone. It gives a sign of life every
    /// 15 s unless its settings say otherwise.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    silence_max: u64,
}

/// Where a tail stands between two streams.
struct Place {
    last_id: Option<String>,
    pause: Duration,
    attempts: u32,
    /// Some stream has begun.
    begun: bool,
}

/// Why a stream ended, if it is worth to come back.
enum End {
    /// The reason, and how long the service wants us to wait.
    ComeBack(String, Option<Duration>),
    /// Nobody reads what is printed, or the user ended it.
    Done,
}

/// Runs until `shutdown`, or until nobody reads what is printed.
///
/// # Errors
/// When the service will not answer this request, however often it is asked.
pub(crate) async fn run(flags: Flags, shutdown: CancellationToken) -> anyhow::Result<ExitCode> {
    let token = token(&flags.token)?;
    let silence_max = Duration::from_secs(flags.silence_max);
    let service = Service::new(&flags.url, &query(&flags), &token, silence_max)?;
    let mut place = Place { last_id: flags.since.clone(), pause: PAUSE, attempts: 0, begun: false };
    loop {
        let ended = tokio::select! {
            () = shutdown.cancelled() => End::Done,
            ended = follow(&service, &mut place, flags.json) => ended?,
        };
        let End::ComeBack(why, wait) = ended else { return Ok(ExitCode::SUCCESS) };
        let doubled = place.pause.saturating_mul(1 << place.attempts.min(6));
        let pause = wait.unwrap_or(doubled).min(PAUSE_MAX);
        place.attempts += 1;
        // Not all at once.
        let pause = pause.mul_f64(rand::random_range(0.75..1.25));
        say(&format!("{why}; back in {:.1} s", pause.as_secs_f64()));
        tokio::select! {
            () = shutdown.cancelled() => return Ok(ExitCode::SUCCESS),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One stream, to its end.
async fn follow(service: &Service, place: &mut Place, json: bool) -> anyhow::Result<End> {
    let answer = match service.ask(place.last_id.as_deref()).await {
        Ok(answer) => answer,
        Err(error) if place.begun => return Ok(End::ComeBack(format!("{error:#}"), None)),
        Err(error) => return Err(error),
    };
    let mut stream = match answer {
        Answer::Stream(stream) => stream,
        Answer::Later(text, wait) => return Ok(End::ComeBack(text, wait)),
        Answer::Never(text) => bail!("{text}"),
    };
    let mut out = BufWriter::new(io::stdout());
    loop {
        let events = match stream.next().await {
            Ok(Some(events)) => events,
            Ok(None) => return Ok(End::ComeBack("the stream ended".into(), None)),
            Err(error) => return Ok(End::ComeBack(format!("{error:#}"), None)),
        };
        if let Some(milliseconds) = stream.retry_ms() {
            place.pause = Duration::from_millis(milliseconds);
        }
        for event in &events {
            match heard(event, place, json, &mut out) {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(End::Done),
                Err(error) => return Err(error).context("cannot print"),
            }
            if let Some(id) = &event.id {
                place.last_id = Some(id.clone());
            }
        }
        if let Err(error) = out.flush() {
            ensure!(error.kind() == ErrorKind::BrokenPipe, "cannot print: {error}");
            return Ok(End::Done);
        }
    }
}

/// Prints an event, or does what the stream says of itself; how the stream ends, if that is it.
fn heard(
    event: &Event,
    place: &mut Place,
    json: bool,
    out: &mut impl Write,
) -> io::Result<Option<anyhow::Result<End>>> {
    #[derive(Deserialize, Default)]
    #[serde(default)]
    struct Said {
        reason: String,
        message: String,
        cursor: Option<String>,
        from: Option<String>,
        to: Option<String>,
    }
    let said = || serde_json::from_str::<Said>(&event.data).unwrap_or_default();
    let unknown = || "?".to_owned();
    match &*event.name {
        "ready" => {
            say(if place.begun { "listening again" } else { "listening" });
            (place.begun, place.attempts) = (true, 0);
        }
        "caught_up" => say(&format!("caught up at {}", said().cursor.unwrap_or_else(unknown))),
        "gap" => {
            let Said { from, to, reason, .. } = said();
            let (from, to) = (from.unwrap_or_else(unknown), to.unwrap_or_else(unknown));
            say(&format!("gap: what came after {from}, up to {to}, is missing ({reason})"));
        }
        "notice" => say(&said().message),
        "close" => {
            let Said { reason, message, .. } = said();
            if reason == "token_expired" {
                return Ok(Some(Err(anyhow::anyhow!("{message}"))));
            }
            return Ok(Some(Ok(End::ComeBack(message, None))));
        }
        _ if json => writeln!(out, "{}", as_json(event))?,
        _ => writeln!(out, "{}", as_text(event))?,
    }
    Ok(None)
}

/// Something about the stream itself.
fn say(text: &str) {
    // Nobody may read it; that is no reason to end.
    let _ = writeln!(io::stderr(), "walcast: {}", printable(text));
}

/// One line: what, where, and the row or the payload.
fn as_text(event: &Event) -> String {
    #[derive(Deserialize)]
    struct Change<'a> {
        #[serde(borrow)]
        schema: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        table: std::borrow::Cow<'a, str>,
        #[serde(borrow)]
        record: Option<&'a RawValue>,
        #[serde(borrow)]
        old_record: Option<&'a RawValue>,
    }
    let name = printable(&event.name);
    let is_row = matches!(&*event.name, "INSERT" | "UPDATE" | "DELETE");
    let change = is_row.then(|| serde_json::from_str::<Change<'_>>(&event.data).ok()).flatten();
    if let Some(Change { schema, table, record, old_record }) = change {
        let row = if event.name == "DELETE" { old_record } else { record };
        let row = row.map_or("", RawValue::get);
        return format!("{name} {}.{} {}", printable(&schema), printable(&table), printable(row));
    }
    let topic = event.topic.as_deref().unwrap_or_default();
    format!("{name} [{}] {}", printable(topic), printable(&event.data))
}

/// `{"event","id","topic","data"}`; `data` is text where it is no JSON.
fn as_json(event: &Event) -> String {
    // Line breaks stand between JSON's words only; numbers stay as they are.
    let one_line = event.data.replace('\n', " ");
    let data = match serde_json::from_str::<&RawValue>(&one_line) {
        Ok(data) => data.get().to_owned(),
        Err(_) => string(&event.data),
    };
    let option = |text: &Option<String>| text.as_deref().map_or("null".into(), string);
    let (name, id, topic) = (string(&event.name), option(&event.id), option(&event.topic));
    format!(r#"{{"event":{name},"id":{id},"topic":{topic},"data":{data}}}"#)
}

fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The text on one line, without anything that a terminal would obey.
fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '\n' => printable.push(' '),
            control if control.is_control() => printable.extend(control.escape_unicode()),
            character => printable.push(character),
        }
    }
    printable
}

fn token(given: &str) -> anyhow::Result<String> {
    if given != "-" {
        return Ok(given.trim().to_owned());
    }
    let mut line = String::new();
    io::stdin().read_line(&mut line).context("cannot read the token from standard input")?;
    Ok(line.trim().to_owned())
}

fn query(flags: &Flags) -> String {
    let mut query = String::new();
    let mut add = |name: &str, value: &str| {
        query.push(if query.is_empty() { '?' } else { '&' });
        query.push_str(name);
        query.push('=');
        query.extend(percent_encoding::utf8_percent_encode(
            value,
            percent_encoding::NON_ALPHANUMERIC,
        ));
    };
    for (name, values) in
        [("changes", &flags.changes), ("topics", &flags.topics), ("topic", &flags.topic)]
    {
        for value in values {
            add(name, value);
        }
    }
    if flags.private {
        add("private", "true");
    }
    query
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(name: &str, data: &str) -> Event {
        Event { name: name.into(), topic: Some("a".into()), id: None, data: data.into() }
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let row = r#"{"schema":"public","table":"t","record":{"id":1}}"#;
        assert_eq!(as_text(&event("INSERT", row)), r#"INSERT public.t {"id":1}"#);
        let row = r#"{"schema":"public","table":"t","old_record":{"id":1}}"#;
        assert_eq!(as_text(&event("DELETE", row)), r#"DELETE public.t {"id":1}"#);
        let text = as_text(&event("e\u{1b}[2J", "{\n\"a\":\"\u{9b}\"}"));
        assert_eq!(text, r#"e\u{1b}[2J [a] { "a":"\u{9b}"}"#);
        let json = as_json(&event("e", "{\n\"n\":12345678901234567890.10}"));
        assert_eq!(
            json,
            r#"{"event":"e","id":null,"topic":"a","data":{ "n":12345678901234567890.10}}"#
        );
        let json = as_json(&event("e\n", "data:application/octet-stream;base64,AA=="));
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["data"], "data:application/octet-stream;base64,AA==");
        assert_eq!(json.lines().count(), 1);
    }
}

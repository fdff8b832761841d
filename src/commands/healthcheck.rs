//! Container probes: our own, and the one that the official compose file runs inside the image.
//!
//! In:     the address we listen on; or the arguments of `curl`, or of `sh -c "curl …"`, when the
//!         program is called by that name.
//! Out:    an exit code: 0 when healthy; `curl`'s own when it is called so.
//! Never:  asks another machine; runs anything: as `sh` it knows the one command `curl`.

use std::ffi::OsString;
use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// How long a probe may take unless it says so itself.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes of an answer that are read.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// What curl's exit code says: the arguments are wrong.
const USAGE: u8 = 2;
/// Nobody answers there.
const UNREACHABLE: u8 = 7;
/// The status is an error, and `--fail` was given.
const REFUSED: u8 = 22;
/// It took too long.
const TIMED_OUT: u8 = 28;

/// Asks our own `/healthz`, on the port we would listen on.
pub(super) fn ask(bind: SocketAddr) -> anyhow::Result<ExitCode> {
    let address = SocketAddr::new(reachable(bind.ip()), bind.port());
    let answer = exchange(address, "GET", "/healthz", &[], TIMEOUT)
        .with_context(|| format!("nothing healthy at {address}"))?;
    if answer.status() != Some(200) {
        bail!("{address} is not healthy: {}", answer.first_line());
    }
    Ok(ExitCode::SUCCESS)
}

/// The address at which something that listens on `ip` is found from here.
fn reachable(ip: IpAddr) -> IpAddr {
    match ip {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// The exit code when the program is called `curl` or `sh`, as the links in its image do; `None`
/// when it is called by its own name.
pub(crate) fn called_by_another_name(
    mut arguments: impl Iterator<Item = OsString>,
) -> Option<ExitCode> {
    let program = arguments.next()?;
    let name = Path::new(&program).file_name()?.to_str()?.to_owned();
    let words: Option<Vec<String>> = arguments.map(|word| word.into_string().ok()).collect();
    let outcome = match name.as_str() {
        "curl" => words.ok_or_else(|| wrong("an argument is not text")).and_then(curl),
        "sh" => words.ok_or_else(|| wrong("an argument is not text")).and_then(shell),
        _ => return None,
    };
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure { code, text }) => {
            eprintln!("{name}: ({code}) {text}");
            ExitCode::from(code)
        }
    })
}

/// An exit code and why.
#[derive(Debug, PartialEq, Eq)]
struct Failure {
    code: u8,
    text: String,
}

fn wrong(text: impl Into<String>) -> Failure {
    Failure { code: USAGE, text: text.into() }
}

/// What a health check of a compose file asks `curl` for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Probe {
    method: Option<String>,
    head: bool,
    fail: bool,
    output: Option<String>,
    headers: Vec<String>,
    timeout: Option<Duration>,
    url: String,
}

/// Options of curl with a value that mean nothing to a probe.
const WITH_VALUE: &[&str] = &[
    "--user-agent",
    "--write-out",
    "--retry",
    "--retry-delay",
    "--retry-max-time",
    "--noproxy",
    "--max-redirs",
];

/// Those without one.
const WITHOUT_VALUE: &[&str] = &[
    "--silent",
    "--show-error",
    "--location",
    "--insecure",
    "--ipv4",
    "--ipv6",
    "--http1.1",
    "--verbose",
    "--globoff",
    "--retry-connrefused",
    "--retry-all-errors",
    "--no-progress-meter",
    "--compressed",
];

/// The long name of a short option.
fn long(short: char) -> Option<&'static str> {
    Some(match short {
        'f' => "--fail",
        's' => "--silent",
        'S' => "--show-error",
        'L' => "--location",
        'I' => "--head",
        'o' => "--output",
        'H' => "--header",
        'X' => "--request",
        'm' => "--max-time",
        'A' => "--user-agent",
        'w' => "--write-out",
        'k' => "--insecure",
        '4' => "--ipv4",
        '6' => "--ipv6",
        'v' => "--verbose",
        'g' => "--globoff",
        _ => return None,
    })
}

impl Probe {
    fn parse(words: Vec<String>) -> Result<Self, Failure> {
        let mut probe = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if let Some(option) = word.strip_prefix("--") {
                let (option, value) = match option.split_once('=') {
                    Some((option, value)) => (option, Some(value.to_owned())),
                    None => (option, None),
                };
                probe.take(&format!("--{option}"), value, &mut words)?;
            } else if let Some(letters) = word.strip_prefix('-').filter(|it| !it.is_empty()) {
                let mut letters = letters.chars();
                while let Some(letter) = letters.next() {
                    let unknown = || wrong(format!("option -{letter}: is unknown"));
                    let option = long(letter).ok_or_else(unknown)?;
                    let rest = Some(letters.as_str()).filter(|rest| !rest.is_empty());
                    if probe.take(option, rest.map(str::to_owned), &mut words)? {
                        break;
                    }
                }
            } else if probe.url.is_empty() {
                probe.url = word;
            } else {
                return Err(wrong("more than one URL"));
            }
        }
        if probe.url.is_empty() {
            return Err(wrong("no URL specified"));
        }
        Ok(probe)
    }

    /// Takes one option; whether it has a value, which is `value` or else the next word.
    fn take(
        &mut self,
        option: &str,
        value: Option<String>,
        words: &mut impl Iterator<Item = String>,
    ) -> Result<bool, Failure> {
        match option {
            "--head" => self.head = true,
            "--fail" | "--fail-with-body" => self.fail = true,
            _ if WITHOUT_VALUE.contains(&option) => {}
            _ => {
                let value = value.or_else(|| words.next());
                let value = value.ok_or_else(|| wrong(format!("option {option}: needs a value")));
                match option {
                    "--output" => self.output = Some(value?),
                    "--header" => self.headers.push(value?),
                    "--request" => self.method = Some(value?),
                    "--url" => self.url = value?,
                    "--max-time" | "--connect-timeout" => {
                        let seconds = value?.parse().ok();
                        let time = seconds.and_then(|it| Duration::try_from_secs_f64(it).ok());
                        let time = time.filter(|time| !time.is_zero());
                        self.timeout = Some(time.ok_or_else(|| wrong("expected a time"))?);
                    }
                    _ if WITH_VALUE.contains(&option) => drop(value?),
                    _ => return Err(wrong(format!("option {option}: is unknown"))),
                }
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// `curl`, as far as a health check needs it.
fn curl(words: Vec<String>) -> Result<(), Failure> {
    if words.iter().any(|word| word == "--version" || word == "-V") {
        println!("curl: a probe of this machine, part of walcast {}", env!("CARGO_PKG_VERSION"));
        return Ok(());
    }
    let probe = Probe::parse(words)?;
    let (address, path) = place(&probe.url)?;
    let method = match &probe.method {
        Some(method) if !["GET", "HEAD"].contains(&method.as_str()) => {
            return Err(wrong("only GET and HEAD"));
        }
        Some(method) => method,
        None if probe.head => "HEAD",
        None => "GET",
    };
    if probe.headers.iter().any(|header| header.contains(['\r', '\n'])) {
        return Err(wrong("a header is one line"));
    }
    let timeout = probe.timeout.unwrap_or(TIMEOUT);
    let answer = exchange(address, method, &path, &probe.headers, timeout).map_err(|error| {
        let late = [io::ErrorKind::TimedOut, io::ErrorKind::WouldBlock].contains(&error.kind());
        let code = if late { TIMED_OUT } else { UNREACHABLE };
        Failure { code, text: format!("no answer from {address}: {error}") }
    })?;
    match answer.status() {
        None => return Err(Failure { code: UNREACHABLE, text: "no HTTP answer".into() }),
        Some(status) if probe.fail && status >= 400 => {
            let text = format!("The requested URL returned error: {status}");
            return Err(Failure { code: REFUSED, text });
        }
        Some(_) => {}
    }
    if probe.output.is_none() {
        let shown = if method == "HEAD" { answer.head() } else { answer.body() };
        io::stdout().write_all(shown).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(())
}

/// Address and path of a URL on this machine.
fn place(url: &str) -> Result<(SocketAddr, String), Failure> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    if rest.contains("://") {
        return Err(wrong("only http"));
    }
    let (authority, path) = match rest.find(['/', '?']) {
        Some(end) => rest.split_at(end),
        None => (rest, ""),
    };
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    if path.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(wrong("the URL is malformed"));
    }
    // The port comes after the last colon, except inside the brackets of an IPv6 address.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()),
        _ => (authority, Some(80)),
    };
    let port = port.ok_or_else(|| wrong("the URL is malformed"))?;
    let address = match host.trim_matches(['[', ']']) {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        address => address.parse().ok().map(reachable),
    };
    let address = address.filter(IpAddr::is_loopback);
    let address = address.ok_or_else(|| wrong("only this machine is asked"))?;
    Ok((SocketAddr::new(address, port), path))
}

/// `sh -c "curl …"`, which is what a compose file's `CMD-SHELL` runs.
fn shell(words: Vec<String>) -> Result<(), Failure> {
    let script = match <[String; 2]>::try_from(words) {
        Ok([option, script]) if option == "-c" => script,
        _ => return Err(wrong("this is no shell: it runs -c with one curl command")),
    };
    // A probe often ends in "or fail", which is what it does anyhow.
    let script = script.trim();
    let script = script.strip_suffix("|| exit 1").unwrap_or(script);
    let words = split(script).ok_or_else(|| wrong("this is no shell: only words and quotes"))?;
    let mut words = words.into_iter();
    match words.next().as_deref() {
        Some("curl" | "/usr/bin/curl") => curl(words.collect()),
        _ => Err(wrong("this is no shell: the only command is curl")),
    }
}

/// Words as a shell splits them; `None` where it would do more than that.
fn split(script: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut rest = script.chars();
    while let Some(c) = rest.next() {
        match c {
            ' ' | '\t' => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match rest.next()? {
                        '\'' => break,
                        c => word.push(c),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match rest.next()? {
                        '"' => break,
                        '\\' => word.push(rest.next()?),
                        '$' | '`' => return None,
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(rest.next()?),
            '$' | '`' | '|' | '&' | ';' | '<' | '>' | '(' | ')' | '*' | '\n' => return None,
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

/// What came back.
struct Answer(Vec<u8>);

impl Answer {
    fn first_line(&self) -> String {
        let line = self.0.split(|&byte| byte == b'\r').next().unwrap_or_default();
        String::from_utf8_lossy(line).into_owned()
    }

    fn status(&self) -> Option<u16> {
        let line = self.first_line();
        line.starts_with("HTTP/1.").then(|| line.split(' ').nth(1)?.parse().ok())?
    }

    fn end_of_head(&self) -> usize {
        let end = self.0.windows(4).position(|four| four == b"\r\n\r\n");
        end.map_or(self.0.len(), |end| end + 4)
    }

    fn head(&self) -> &[u8] {
        self.0.get(..self.end_of_head()).unwrap_or_default()
    }

    fn body(&self) -> &[u8] {
        self.0.get(self.end_of_head()..).unwrap_or_default()
    }
}

/// One request and its answer, all within `timeout`.
fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[String],
    timeout: Duration,
) -> io::Result<Answer> {
    let deadline = Instant::now() + timeout;
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    let mut request =
        format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for header in headers {
        request.push_str(header);
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    stream.set_write_timeout(Some(timeout))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while answer.len() < ANSWER_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let read = stream.read(&mut part)?;
        if read == 0 {
            break;
        }
        answer.extend_from_slice(part.get(..read).unwrap_or_default());
        // To a HEAD there is nothing more, whatever the connection does.
        if method == "HEAD" && answer.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    Ok(Answer(answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        split(text).unwrap()
    }

    #[test]
    fn the_official_health_check_is_understood() {
        let probe = Probe::parse(words(
            "-sSfL --head -o /dev/null -H \"Authorization: Bearer a.b.c\" \
             http://localhost:4000/api/tenants/realtime-dev/health",
        ));
        let expected = Probe {
            head: true,
            fail: true,
            output: Some("/dev/null".into()),
            headers: vec!["Authorization: Bearer a.b.c".into()],
            url: "http://localhost:4000/api/tenants/realtime-dev/health".into(),
            ..Probe::default()
        };
        assert_eq!(probe.unwrap(), expected);
    }

    #[test]
    fn options_may_be_written_as_people_do() {
        let probe =
            Probe::parse(words("-fo/dev/null -XGET --max-time=1.5 -s -m2 localhost")).unwrap();
        assert_eq!(probe.output.as_deref(), Some("/dev/null"));
        assert_eq!(probe.method.as_deref(), Some("GET"));
        assert_eq!(probe.timeout, Some(Duration::from_secs(2)));
        assert!(probe.fail);
        for bad in ["", "-q a", "--data x a", "a b", "-H", "-m soon a", "-m 0 a"] {
            assert_eq!(Probe::parse(words(bad)).unwrap_err().code, USAGE, "{bad}");
        }
    }

    #[test]
    fn only_this_machine_is_asked() {
        let at = |url| place(url).map(|(address, path)| format!("{address}{path}"));
        assert_eq!(at("http://localhost:4000/a?b").unwrap(), "127.0.0.1:4000/a?b");
        assert_eq!(at("127.0.0.1").unwrap(), "127.0.0.1:80/");
        assert_eq!(at("http://[::1]:5/x").unwrap(), "[::1]:5/x");
        assert_eq!(at("http://0.0.0.0:4000/").unwrap(), "127.0.0.1:4000/");
        for url in [
            "https://localhost/",
            "http://db:5432/",
            "http://169.254.169.254/",
            "http://localhost@evil.example/",
            "http://localhost:x/",
            "http://localhost/a b",
            "file:///etc/passwd",
        ] {
            assert!(at(url).is_err(), "{url}");
        }
    }

    #[test]
    fn a_shell_that_knows_one_command_runs_nothing_else() {
        assert_eq!(
            words(r#"curl -H "a: \"b\"" 'c d' e\ f"#),
            ["curl", "-H", "a: \"b\"", "c d", "e f"]
        );
        for script in ["curl a; rm b", "curl $(id)", "curl \"`id`\"", "curl a > b", "curl 'a"] {
            assert_eq!(split(script), None, "{script}");
        }
        let code = |words: &[&str]| shell(words.iter().map(ToString::to_string).collect());
        for words in [&["-c", "id"][..], &["-c", ""], &[], &["script"], &["-c", "curl", "x"]] {
            assert_eq!(code(words).unwrap_err().code, USAGE, "{words:?}");
        }
        // Past the shell, curl itself refuses.
        let refused = code(&["-c", "curl http://db/ || exit 1"]).unwrap_err();
        assert_eq!(refused.text, "only this machine is asked");
    }
}

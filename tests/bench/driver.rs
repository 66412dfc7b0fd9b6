//! Benchmarks against a real agent, as one program: `tests/bench/run`. Prints numbers, and ratios to what the
//! cryptography alone costs on the same cores in the same run; asserts nothing.

#![expect(clippy::disallowed_methods, reason = "measures real time")]

mod attest;
mod decisions;
mod fan_out;
mod http;
mod record;
mod starts;
mod tasks;
mod trees;

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use mayfly_harness::tools::{Tool, compile};
use mayfly_harness::wire::Client;
use mayfly_harness::{Agent, Crl, Entry, Plan, files};
use tokio::task::JoinSet;

/// The driver's own uid: subscriber and holder of many streams.
const DRIVER: u32 = 0;
/// Uid of the processes that make up the population.
const CROWD: u32 = 20_901;
/// Uid of the processes that die to be measured.
const VICTIM: u32 = 20_902;

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(300);

const SETTINGS: &str = "[x509]\nttl = \"1h\"\n[jwt]\nttl = \"1h\"\n[revocation]\nnext_update = \"2h\"\n\
    [attest]\nper_second = 100000\nburst = 100000\nin_flight = 256\n\
    [limits]\nconnections = 16384\nconnections_per_uid = 16384\nconnections_per_cgroup = 16384\n\
    streams_per_connection = 64\nlive_leases_per_uid = 100000\njwt_leases_per_workload = 100000\n";

fn main() -> Result<()> {
    let mut held = std::env::args().skip_while(|word| word != tasks::HOLD).skip(1);
    if let (Some(socket), Some(roots)) = (held.next(), held.next()) {
        return tasks::hold(&socket, roots.parse()?);
    }
    anyhow::ensure!(nix::unistd::geteuid().is_root(), "run as root: the clients have uids of their own");
    let quick = std::env::args().any(|argument| argument == "--quick");
    // `--only PART`, several times if wanted; without it everything.
    let mut arguments = std::env::args();
    let mut only = Vec::new();
    while arguments.by_ref().any(|argument| argument == "--only") {
        only.extend(arguments.next());
    }
    let wanted = |part: &str| only.is_empty() || only.iter().any(|name| name == part);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        if wanted("start") {
            starts::measure(quick)?;
        }
        if wanted("mint") {
            mint_rates(&crypto_limit(if quick { 500 } else { 3_000 })?, quick).await?;
        }
        if wanted("first") {
            first_svid(quick)?;
        }
        for (processes, entries) in [(10, 1), (100, 10), (250, 40)] {
            if wanted("crl") && (!quick || processes < 250) {
                exit_to_crl(processes, entries, if quick { 20 } else { 200 }).await?;
            }
        }
        if wanted("storm") {
            all_at_once(if quick { 500 } else { room_for(10_000)? }).await?;
        }
        if wanted("attest") {
            tokio::task::block_in_place(|| attest::measure(quick))?;
        }
        if wanted("http") {
            http::asking(quick).await?;
            let (processes, each) = if quick { (20, 40) } else { (250, 40) };
            http::long_crl(processes, each, if quick { 10 } else { 50 }).await?;
        }
        if wanted("fan_out") {
            let (streams, rounds) = if quick { (&[1_000][..], 5) } else { (&[1_000, 10_000][..], 10) };
            fan_out::fan_out(streams, rounds).await?;
        }
        if wanted("decisions") || wanted("tasks") {
            tokio::task::block_in_place(|| decisions::measure(quick))?;
        }
        if wanted("tasks") {
            tasks::calls(if quick { 50 } else { 500 }).await?;
            tasks::cascade(if quick { 200 } else { 1_000 }).await?;
            trees::cores(if quick { &[1_000] } else { &[1_000, 10_000] })?;
            record::measure(quick).await?;
            if !quick {
                tasks::cascade(tasks::MOST).await?;
            }
        }
        if wanted("memory") {
            resident(if quick { &[1_000] } else { &[1_000, 10_000] }).await?;
        }
        Ok(())
    })
}

/// One line of the report.
fn line(what: &str, value: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{what:<58} {value}")?)
}

/// Certificates a second that the cryptography alone allows.
struct Crypto {
    one_core: f64,
    both_cores: f64,
}

/// P-256 key generation and one signature, with the library and the certificate shape of the product.
fn crypto_limit(rounds: u32) -> Result<Crypto> {
    let one_core = mint_loop(rounds)?;
    let both_cores = std::thread::scope(|scope| {
        let threads = [scope.spawn(|| mint_loop(rounds)), scope.spawn(|| mint_loop(rounds))];
        threads.into_iter().map(|t| t.join().map_err(|_panic| anyhow!("thread"))?).sum::<Result<f64>>()
    })?;
    line("crypto alone: P-256 key and certificate, one core", &format!("{one_core:.0} /s"))?;
    line("crypto alone, two threads", &format!("{both_cores:.0} /s"))?;
    Ok(Crypto { one_core, both_cores })
}

fn mint_loop(rounds: u32) -> Result<f64> {
    let issuer_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let issuer = rcgen::Issuer::new(params, issuer_key);
    let start = Instant::now();
    for _ in 0..rounds {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut leaf = rcgen::CertificateParams::default();
        leaf.subject_alt_names = vec![rcgen::SanType::URI("spiffe://example.org/bench".try_into()?)];
        std::hint::black_box(leaf.signed_by(&key, &issuer)?);
    }
    Ok(f64::from(rounds) / start.elapsed().as_secs_f64())
}

/// `count` entries for the crowd, one each for victim and driver.
fn entries(count: usize) -> Vec<Entry> {
    let crowd = format!("unix:uid:{CROWD}");
    let mut all: Vec<Entry> = (0..count).map(|n| Entry::new(&format!("/crowd/{n}"), &[&crowd])).collect();
    all.extend([Entry::for_uid(VICTIM), Entry::for_uid(DRIVER)]);
    all
}

/// An agent, and the programs that will call it. A program that was installed less than two seconds ago is measured
/// anew for each of its processes; what is to be seen here is the ordinary case.
fn start(count: usize) -> Agent {
    let agent = Plan::with_entries(&entries(count)).settings(SETTINGS).start();
    for program in ["press", "peer"] {
        files::install(agent.dir(), &compile(program));
    }
    std::thread::sleep(Duration::from_millis(2_200));
    agent
}

fn socket(agent: &Agent) -> Result<String> {
    Ok(agent.public().to_str().context("UTF-8 path")?.to_owned())
}

/// Certificates and tokens a second, through everything: attestation, ledger, audit log.
async fn mint_rates(crypto: &Crypto, quick: bool) -> Result<()> {
    let (processes, each) = if quick { (20, 20) } else { (100, 40) };
    let agent = start(each);
    let (begin, before) = (Instant::now(), cpu_seconds(agent.pid())?);
    let crowd = crowd(&agent, processes)?;
    let rate = count(processes * each) / begin.elapsed().as_secs_f64();
    let own = count(processes * each) / (cpu_seconds(agent.pid())? - before);
    line(
        &format!("X.509-SVIDs issued, {processes} new processes x {each} entries"),
        &format!(
            "{rate:.0} /s  ({:.2} of one core's crypto, {:.2} of both)",
            rate / crypto.one_core,
            rate / crypto.both_cores
        ),
    )?;
    line(
        "  for each second of the agent's own CPU time",
        &format!("{own:.0}  ({:.2} of the crypto)", own / crypto.one_core),
    )?;
    drop(crowd);
    let socket = agent.public();
    let tokens = if quick { 500 } else { 4_000 };
    let (begin, before) = (Instant::now(), cpu_seconds(agent.pid())?);
    let mut calls = JoinSet::new();
    for worker in 0..16 {
        let socket = socket.clone();
        calls.spawn(async move {
            let mut client = Client::connect(&socket).await?;
            for n in 0..tokens / 16 {
                // A connection may open 200 streams a second; no client of ours does, but this one would.
                if n % 150 == 149 {
                    client = Client::connect(&socket).await?;
                }
                client.jwt(vec![format!("audience-{worker}-{n}")], String::new()).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = calls.join_next().await {
        done??;
    }
    let rate = count(tokens) / begin.elapsed().as_secs_f64();
    let own = count(tokens) / (cpu_seconds(agent.pid())? - before);
    line(
        "JWT-SVIDs issued, 16 at a time",
        &format!("{rate:.0} /s  ({:.2} of one core's crypto)", rate / crypto.one_core),
    )?;
    line("  for each second of the agent's own CPU time", &format!("{own:.0}"))
}

/// Processes that hold every crowd entry.
fn crowd(agent: &Agent, processes: usize) -> Result<Tool> {
    let args = ["storm", &socket(agent)?, &processes.to_string()];
    let mut tool = Tool::run(agent, CROWD, "press", &args);
    tool.expect_within("ready", PATIENCE).context("the crowd was not served")?;
    Ok(tool)
}

/// From before `connect()` to the first certificate.
fn first_svid(quick: bool) -> Result<()> {
    let agent = start(0);
    let rounds = if quick { "50" } else { "500" };
    for (mode, what) in
        [("first", "connect to first X.509-SVID, new process"), ("again", "the same, process that has one")]
    {
        let mut tool = Tool::run(&agent, VICTIM, "press", &[mode, &socket(&agent)?, rounds]);
        let mut samples = Vec::new();
        // The first of all pays for the hash of the program.
        let skip = tool.expect_within("us", PATIENCE).context("not served")?;
        while samples.len() + 1 < rounds.parse::<usize>()? {
            samples.push(tool.expect_within("us", PATIENCE).context("not served")?.parse::<f64>()?);
        }
        line(what, &format!("{}  (very first {skip} us)", percentiles(&mut samples)))?;
    }
    Ok(())
}

/// From the `kill` of a small process to the CRL with its serial in a subscriber's hands.
async fn exit_to_crl(processes: usize, each: usize, samples: usize) -> Result<()> {
    let agent = start(each);
    let _crowd = crowd(&agent, processes)?;
    let client = Client::connect(&agent.public()).await?;
    let mut bundles = client.bundles().await?;
    bundles.message().await?.context("a first message")?;
    let mut took = Vec::new();
    for _ in 0..samples {
        let mut victim = Tool::run(&agent, VICTIM, "peer", &["call", &socket(&agent)?]);
        let serial = victim.expect_within("svid", PATIENCE).context("the victim was not served")?;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(victim.pid())?);
        let begin = Instant::now();
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
        loop {
            let message = tokio::time::timeout(PATIENCE, bundles.message()).await??.context("stream end")?;
            let elapsed = begin.elapsed();
            if message.crl.iter().any(|der| Crl::parse(der).serials.contains(&serial)) {
                took.push(elapsed.as_secs_f64() * 1e6);
                break;
            }
        }
        // One at a time, past the window in which revocations are gathered.
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    let live = processes * each;
    line(&format!("kill to CRL at a subscriber, {live} live leases"), &percentiles(&mut took))?;
    agent_latency(&agent)
}

fn agent_latency(agent: &Agent) -> Result<()> {
    let status = agent.admin();
    let rows = tokio::task::block_in_place(|| status.status()).revocation_latency;
    for row in rows {
        line(
            &format!("  {} (as the agent measures it)", row.gap),
            &format!("p50 {} us, p99 {} us, max {} us", row.p50_micros, row.p99_micros, row.max_micros),
        )?;
    }
    tokio::task::block_in_place(move || drop(status));
    Ok(())
}

/// As many processes as the agent's descriptors allow: two for each, a tenth is kept free, and some are its own.
fn room_for(processes: usize) -> Result<usize> {
    let (soft, _hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    Ok(usize::try_from(soft * 9 / 20)?.saturating_sub(500).min(processes))
}

/// Many processes killed at the same moment: until a subscriber has a CRL with all of them.
async fn all_at_once(processes: usize) -> Result<()> {
    let agent = start(1);
    let mut crowd = crowd(&agent, processes)?;
    let client = Client::connect(&agent.public()).await?;
    let mut bundles = client.bundles().await?;
    bundles.message().await?.context("a first message")?;
    let begin = Instant::now();
    crowd.tell("go");
    let mut messages = 0;
    loop {
        let message = tokio::time::timeout(PATIENCE, bundles.message()).await??.context("stream end")?;
        messages += 1;
        if message.crl.iter().any(|der| Crl::parse(der).serials.len() >= processes) {
            break;
        }
    }
    line(
        &format!("{processes} processes killed at once, to a CRL with them all"),
        &format!("{:.2} s  ({messages} CRLs)", begin.elapsed().as_secs_f64()),
    )?;
    agent_latency(&agent)
}

/// Memory with many streams over 200 connections.
async fn resident(sizes: &[usize]) -> Result<()> {
    const CONNECTIONS: usize = 200;
    let agent = start(0);
    let empty = resident_kib(agent.pid())?;
    line("resident, nobody connected", &format!("{:.1} MiB", empty / 1024.0))?;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        connections.push(Client::connect(&agent.public()).await?);
    }
    let mut streams = Vec::new();
    for size in sizes {
        while streams.len() < *size {
            let client = connections.get(streams.len() % CONNECTIONS).context("a connection")?;
            let mut stream = client.x509().await?;
            stream.message().await?.context("a first message")?;
            streams.push(stream);
        }
        let now = resident_kib(agent.pid())?;
        line(
            &format!("resident, {size} streams over {CONNECTIONS} connections"),
            &format!("{:.1} MiB  ({:.2} KiB a stream)", now / 1024.0, (now - empty) / count(*size)),
        )?;
    }
    let before = cpu_seconds(agent.pid())?;
    tokio::time::sleep(Duration::from_secs(5)).await;
    line(
        "CPU of the idle agent with all streams open, 5 s",
        &format!("{:.1} ms", (cpu_seconds(agent.pid())? - before) * 1e3),
    )?;
    for streaming in [false, true] {
        const MORE: usize = 500;
        let before = resident_kib(agent.pid())?;
        let first = connections.len();
        for _ in 0..MORE {
            connections.push(Client::connect(&agent.public()).await?);
        }
        for client in connections.iter().skip(if streaming { first } else { connections.len() }) {
            let mut stream = client.x509().await?;
            stream.message().await?.context("a first message")?;
            streams.push(stream);
        }
        let each = (resident_kib(agent.pid())? - before) / count(MORE);
        let what = if streaming { "with a stream" } else { "silent" };
        line(&format!("each of {MORE} further connections, {what}"), &format!("{each:.1} KiB"))?;
    }
    Ok(())
}

fn resident_kib(pid: u32) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let row = status.lines().find_map(|row| row.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(row.trim().trim_end_matches(" kB").parse()?)
}

/// What its threads that still live have run, to the nanosecond.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let mut nanos = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        nanos += text.split_whitespace().next().context("schedstat")?.parse::<f64>()?;
    }
    Ok(nanos / 1e9)
}

fn count(n: usize) -> f64 {
    u32::try_from(n).map_or(f64::MAX, f64::from)
}

/// `p50`, `p99` and maximum of microseconds.
fn percentiles(samples: &mut [f64]) -> String {
    let [p50, p99, max] = spread(samples);
    format!("p50 {p50:.0} us, p99 {p99:.0} us, max {max:.0} us  (n = {})", samples.len())
}

/// The same of nanoseconds.
fn nanos(samples: &mut [f64]) -> String {
    let [p50, p99, max] = spread(samples).map(|nanos| nanos / 1e3);
    format!("p50 {p50:.1} us, p99 {p99:.1} us, max {max:.1} us  (n = {})", samples.len())
}

fn spread(samples: &mut [f64]) -> [f64; 3] {
    samples.sort_by(f64::total_cmp);
    let at = |percent: usize| samples.get(samples.len() * percent / 100).or_else(|| samples.last()).copied();
    [at(50), at(99), samples.last().copied()].map(Option::unwrap_or_default)
}

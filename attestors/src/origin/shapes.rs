//! The shapes of container paths that runtimes make, matched from the left, whole component by whole component.
//!
//! Each comes from the code of the runtime that makes it: kubelet's slices and the `cgroupfs` driver's directories,
//! containerd's `cri-containerd-ID.scope`, CRI-O's `crio-ID`, moby's `docker-ID.scope` and `/docker/ID`, Podman's
//! `libpod-ID`, `libpod-payload-ID`. What only resembles one of them is refused: the host's own paths never do.

use super::{ContainerId, PodUid, Qos, Refusal, Runtime};

/// A container that a path names.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) runtime: Runtime,
    pub(super) id: ContainerId,
    pub(super) pod: Option<PodUid>,
    pub(super) qos: Option<Qos>,
    /// How many components stand before the container's own.
    pub(super) depth: usize,
}

type Parts<'a> = [&'a [u8]];
type Found = Result<Option<Shape>, Refusal>;

/// `None`: the host's own. `prefix` is where this node's tree begins.
pub(super) fn shape(path: &Parts<'_>, prefix: &Parts<'_>) -> Found {
    let Some(below) = path.strip_prefix(prefix) else {
        return if resembles_container(path) { Err(Refusal::UnknownShape) } else { Ok(None) };
    };
    if let Some(uid) = user_manager(below) {
        let theirs = below.get(3..).unwrap_or_default();
        return if resembles_container(theirs) { Err(Refusal::DelegatedToUser(uid)) } else { Ok(None) };
    }
    for known in [pod_by_systemd, pod_by_cgroupfs, pod_by_both, engine] {
        if let Some(found) = known(below)? {
            return Ok(Some(found));
        }
    }
    let unsupported = below.first().is_some_and(|first| is_lxc(first))
        || below.iter().any(|part| contains(part, b"systemd-nspawn@"));
    match () {
        () if unsupported => Err(Refusal::UnsupportedRuntime),
        () if resembles_container(below) => Err(Refusal::UnknownShape),
        () => Ok(None),
    }
}

/// `/user.slice/user-UID.slice/user@UID.service` and below.
fn user_manager(path: &Parts<'_>) -> Option<u32> {
    let [b"user.slice", _, unit, ..] = path else { return None };
    let uid = unit.strip_prefix(b"user@")?.strip_suffix(b".service")?;
    let digits = uid.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(uid).ok().filter(|_| digits)?.parse().ok()
}

/// `kubepods.slice/kubepods-QOS.slice/kubepods-QOS-podUID.slice/RUNTIME-ID.scope`, possibly below slices of the
/// kubelet's `cgroupRoot`, each of which then stands in every name below it: `a.slice/a-kubepods.slice/…`.
fn pod_by_systemd(path: &Parts<'_>) -> Found {
    let mut stem: Vec<u8> = Vec::new();
    for (at, part) in path.iter().enumerate().take(DEEPEST_ROOT) {
        let Some(name) = part.strip_prefix(&*stem).and_then(|rest| rest.strip_suffix(b".slice")) else {
            return Ok(None);
        };
        if name == b"kubepods" {
            stem.extend_from_slice(name);
            return below_kubepods(path, &stem, at + 1);
        }
        let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'_';
        if name.is_empty() || !name.iter().all(plain) {
            return Ok(None);
        }
        stem.extend_from_slice(name);
        stem.push(b'-');
    }
    Ok(None)
}

fn below_kubepods(path: &Parts<'_>, stem: &[u8], mut at: usize) -> Found {
    let slice = |name: &[u8]| [stem, b"-", name, b".slice"].concat();
    let mut qos = Qos::Guaranteed;
    for class in [Qos::Burstable, Qos::BestEffort] {
        if path.get(at).is_some_and(|part| *part == slice(class.as_str().as_bytes())) {
            (qos, at) = (class, at + 1);
            break;
        }
    }
    let Some(part) = path.get(at) else { return Ok(None) };
    let before = match qos {
        Qos::Guaranteed => [stem, b"-pod"].concat(),
        class => [stem, b"-", class.as_str().as_bytes(), b"-pod"].concat(),
    };
    let pod =
        part.strip_prefix(&*before).and_then(|rest| rest.strip_suffix(b".slice")).and_then(PodUid::parse);
    let pod = pod.ok_or(Refusal::UnknownShape)?;
    let scope = *path.get(at + 1).ok_or(Refusal::PodWithoutContainer)?;
    if scope_id(scope, b"crio-conmon-").is_some() {
        return Err(Refusal::Monitor);
    }
    let known: [(&[u8], Runtime); 3] =
        [(b"cri-containerd-", Runtime::Containerd), (b"crio-", Runtime::CriO), (b"docker-", Runtime::Docker)];
    let found = known.into_iter().find_map(|(before, runtime)| Some((runtime, scope_id(scope, before)?)));
    let (runtime, id) = found.ok_or(Refusal::UnknownShape)?;
    Ok(Some(Shape { runtime, id, pod: Some(pod), qos: Some(qos), depth: at + 1 }))
}

/// `kubepods/QOS/podUID/ID`, below `/kubelet` in kind and below another `/kubepods` in Docker Desktop.
fn pod_by_cgroupfs(path: &Parts<'_>) -> Found {
    let mut at = match path {
        [b"kubelet" | b"kubepods", b"kubepods", ..] => 2,
        [b"kubepods", ..] => 1,
        _ => return Ok(None),
    };
    let mut qos = Qos::Guaranteed;
    for class in [Qos::Burstable, Qos::BestEffort] {
        if path.get(at).is_some_and(|part| *part == class.as_str().as_bytes()) {
            (qos, at) = (class, at + 1);
            break;
        }
    }
    let Some(part) = path.get(at) else { return Ok(None) };
    let pod = part.strip_prefix(b"pod").and_then(PodUid::parse).ok_or(Refusal::UnknownShape)?;
    let name = *path.get(at + 1).ok_or(Refusal::PodWithoutContainer)?;
    if after(name, b"crio-conmon-").is_some() {
        return Err(Refusal::Monitor);
    }
    let found = after(name, b"crio-").map(|id| (Runtime::CriO, id));
    let found = found.or_else(|| Some((Runtime::Unknown, ContainerId::parse(name)?)));
    let (runtime, id) = found.ok_or(Refusal::UnknownShape)?;
    Ok(Some(Shape { runtime, id, pod: Some(pod), qos: Some(qos), depth: at + 1 }))
}

/// The kubelet speaks to systemd and containerd does not: what was meant for systemd, `SLICE:cri-containerd:ID`, is
/// one directory, at the top or below the runtime's own service.
fn pod_by_both(path: &Parts<'_>) -> Found {
    for (at, part) in path.iter().enumerate().take(3) {
        let Some((pod, qos, id)) = triple(part) else { continue };
        let (slices, service): (&Parts<'_>, _) = match at.checked_sub(1) {
            None => (Default::default(), None),
            Some(last) => (path.get(..last).unwrap_or_default(), path.get(last)),
        };
        let in_service = service.is_none_or(|service| RUNTIME_SERVICES.contains(service));
        let in_slices = slices.iter().all(|slice| slice.ends_with(b".slice"));
        if !in_service || !in_slices || path.first() == Some(&&b"user.slice"[..]) {
            return Err(Refusal::UnknownShape);
        }
        return Ok(Some(Shape {
            runtime: Runtime::Containerd,
            id,
            pod: Some(pod),
            qos: Some(qos),
            depth: at,
        }));
    }
    Ok(None)
}

fn triple(part: &[u8]) -> Option<(PodUid, Qos, ContainerId)> {
    let rest = part.strip_prefix(b"kubepods-")?;
    let classed = |class: Qos| {
        rest.strip_prefix(class.as_str().as_bytes())?.strip_prefix(b"-").map(|rest| (class, rest))
    };
    let found = classed(Qos::Burstable).or_else(|| classed(Qos::BestEffort));
    let (qos, rest) = found.unwrap_or((Qos::Guaranteed, rest));
    let mut fields = rest.strip_prefix(b"pod")?.split(|byte| *byte == b':');
    let (slice, middle, id, end) = (fields.next()?, fields.next()?, fields.next()?, fields.next());
    if middle != b"cri-containerd" || end.is_some() {
        return None;
    }
    Some((PodUid::parse(slice.strip_suffix(b".slice")?)?, qos, ContainerId::parse(id)?))
}

/// Containers outside Kubernetes.
fn engine(path: &Parts<'_>) -> Found {
    let slices = path.iter().take_while(|part| part.ends_with(b".slice")).count();
    if let Some(found) = in_slices(path, slices)? {
        return Ok(Some(found));
    }
    let plain = |runtime, id, depth| Ok(Some(Shape { runtime, id, pod: None, qos: None, depth }));
    match path {
        [b"docker", b"buildkit", ..] => Err(Refusal::BuildSandbox),
        [b"docker", id, ..] => match ContainerId::parse(id) {
            Some(id) => plain(Runtime::Docker, id, 1),
            None => Ok(None),
        },
        [b"crio", name, ..] => match after(name, b"crio-") {
            Some(id) => plain(Runtime::CriO, id, 1),
            None => Ok(None),
        },
        [b"libpod_parent", below @ ..] => libpod_parent(below),
        _ => Ok(None),
    }
}

/// `SLICES/RUNTIME-ID.scope`, or a quadlet's `SLICES/UNIT.service/libpod-payload-ID`.
fn in_slices(path: &Parts<'_>, slices: usize) -> Found {
    let Some(unit) = path.get(slices).copied() else { return Ok(None) };
    let is_monitor = |before: &[u8]| scope_id(unit, before).is_some();
    if is_monitor(b"libpod-conmon-") || is_monitor(b"crio-conmon-") {
        return Err(Refusal::Monitor);
    }
    if slices == 0 {
        return Ok(None);
    }
    let known: [(&[u8], Runtime); 4] = [
        (b"docker-", Runtime::Docker),
        (b"libpod-", Runtime::Podman),
        (b"crio-", Runtime::CriO),
        (b"nerdctl-", Runtime::Containerd),
    ];
    let found = known.into_iter().find_map(|(before, runtime)| Some((runtime, scope_id(unit, before)?)));
    if let Some((runtime, id)) = found {
        return Ok(Some(Shape { runtime, id, pod: None, qos: None, depth: slices }));
    }
    let Some(child) = path.get(slices + 1).filter(|_| unit.ends_with(b".service")) else { return Ok(None) };
    if matches!(*child, b"supervisor" | b"runtime") {
        return Err(Refusal::Monitor);
    }
    let payload = after(child, b"libpod-payload-");
    Ok(payload.map(|id| Shape { runtime: Runtime::Podman, id, pod: None, qos: None, depth: slices + 1 }))
}

/// Podman with the `cgroupfs` manager: `libpod-ID`, in a pod's directory or not.
fn libpod_parent(below: &Parts<'_>) -> Found {
    let monitor = |name: &[u8]| {
        name == b"conmon"
            || name == b"libpod-conmon"
            || after(name, b"conmon-").or_else(|| after(name, b"libpod-conmon-")).is_some()
    };
    let mut names = below.iter().take(2);
    let (first, second) = (names.next(), names.next());
    if first.is_some_and(|name| monitor(name)) {
        return Err(Refusal::Monitor);
    }
    let podman = |id, depth| Ok(Some(Shape { runtime: Runtime::Podman, id, pod: None, qos: None, depth }));
    if let Some(id) = first.and_then(|name| after(name, b"libpod-")) {
        return podman(id, 1);
    }
    if second.is_some_and(|name| monitor(name)) {
        return Err(Refusal::Monitor);
    }
    let in_pod = first.is_some_and(|name| ContainerId::parse(name).is_some());
    match second.filter(|_| in_pod).and_then(|name| after(name, b"libpod-")) {
        Some(id) => podman(id, 2),
        None => Err(Refusal::UnknownShape),
    }
}

/// The id in `BEFORE-ID.scope`.
fn scope_id(name: &[u8], before: &[u8]) -> Option<ContainerId> {
    after(name.strip_suffix(b".scope")?, before)
}

/// The id after `before`, and nothing else.
fn after(name: &[u8], before: &[u8]) -> Option<ContainerId> {
    ContainerId::parse(name.strip_prefix(before)?)
}

/// `lxc`, `lxc.payload` and `lxc.monitor`, alone or with a name after a dot.
fn is_lxc(name: &[u8]) -> bool {
    let Some(rest) = name.strip_prefix(b"lxc") else { return false };
    let ends = |rest: &[u8]| rest.is_empty() || rest.starts_with(b".");
    ends(rest)
        || [&b".payload"[..], b".monitor"].into_iter().any(|kind| rest.strip_prefix(kind).is_some_and(ends))
}

/// Whether any part of it is of a name that only containers have. The kernel and systemd make no such path by
/// themselves.
fn resembles_container(path: &Parts<'_>) -> bool {
    if path.is_empty() || path == [b"init.scope"] {
        return false;
    }
    let text = path.iter().fold(Vec::new(), |mut text, part| {
        text.push(b'/');
        text.extend_from_slice(part);
        text
    });
    has_long_hex(&text) || TOKENS.iter().any(|token| contains(&text, token))
}

/// A run of 64 hex digits or more.
fn has_long_hex(text: &[u8]) -> bool {
    let hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
    text.split(|byte| !hex(byte)).any(|run| run.len() >= 64)
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// How many components the kubelet's own root may have, with `kubepods.slice` itself.
const DEEPEST_ROOT: usize = 4;
const RUNTIME_SERVICES: [&[u8]; 5] = [
    b"containerd.service",
    b"k3s.service",
    b"k3s-agent.service",
    b"rke2-server.service",
    b"rke2-agent.service",
];
const TOKENS: [&[u8]; 9] = [
    b"kubepods",
    b"libpod",
    b"docker-",
    b"/docker/",
    b"cri-containerd",
    b"crio-",
    b"lxc",
    b"nspawn",
    b"/payload",
];

//! What must hold for every text of `/proc/PID/cgroup`: no panic, no answer that the text does not hold, and nothing
//! below a container that changes whose container it is.

use std::path::{Path, PathBuf};

use mayfly_attestors::origin::{Origin, View, origin};

pub(crate) fn check(data: &[u8]) {
    let machine = View::new(Some(PathBuf::from("/")), PathBuf::new());
    let within = View::new(Some(PathBuf::from("/docker/x/y")), PathBuf::from("/docker"));
    let blind = View::new(None, PathBuf::new());
    assert!(matches!(origin(data, &blind), Origin::Refused(_)), "nothing can be known without a place");
    origin(data, &within);
    let Origin::Container(found) = origin(data, &machine) else { return };
    let id = found.id.to_string();
    let text = String::from_utf8_lossy(data);
    assert!(text.contains(&id), "the id is made up");
    for dir in &found.root_owned {
        assert!(
            dir.is_absolute() && !dir.to_string_lossy().contains(&id),
            "{dir:?} is not above the container"
        );
        assert!(dir.components().all(|part| part.as_os_str() != ".."), "{dir:?}");
    }
    assert!(found.root_owned.contains(&Path::new("/").to_path_buf()));
    // Whoever is in a container may make what he likes below it.
    let mut deeper = Vec::new();
    for line in data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        deeper.extend_from_slice(line);
        let holds = line.windows(id.len()).any(|part| part == id.as_bytes());
        if holds && !line.ends_with(b"/") {
            deeper.extend_from_slice(
                b"/docker/0000000000000000000000000000000000000000000000000000000000000000",
            );
        }
        deeper.push(b'\n');
    }
    if deeper.len() <= 64 * 1024 {
        let below = origin(&deeper, &machine);
        // A neutral line that only mentions the id is refused once a container's name stands below it.
        assert!(below == Origin::Container(found) || matches!(below, Origin::Refused(_)), "{below:?}");
    }
}

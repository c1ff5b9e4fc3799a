//! Every key that may stand in the file of `up`; the documentation is made from this table.

/// A key that may stand in the file.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// The table it stands in, as a person writes it.
    pub table: &'static str,
    /// Its name.
    pub name: &'static str,
    /// What may stand behind the `=`.
    pub values: &'static str,
    /// What it does, a sentence.
    pub about: &'static str,
}

const fn key(table: &'static str, name: &'static str, values: &'static str, about: &'static str) -> Key {
    Key { table, name, values, about }
}

pub(super) const DEVICE: &str = "[[device]]";
pub(super) const EXPORT: &str = "[[export]]";
pub(super) const NBD: &str = "[nbd]";

const SPEC: &str = "What the disk is made of, as `attach` takes it. Must be there.";
const FILTERS: &str =
    "What lies on top of it, the first nearest to the client: a list of `NAME,key=value,…`.";
const QUEUES: &str = "Number of queues, each served by a thread of its own; at most the number of CPUs (1).";
const DEPTH: &str = "Requests that a queue takes at once, 1 to 4096 (128).";
const READ_ONLY: &str = "Refuse everything that would change the disk (false).";
const BLOCK_SIZE: &str =
    "Logical block size: a power of two from 512 up to the page size. Without it the backend chooses.";

/// Every key there is.
pub const KEYS: &[Key] = &[
    key(DEVICE, "spec", "\"SPEC\"", SPEC),
    key(
        DEVICE,
        "engine",
        "\"ENGINE\"",
        "What shows the disk: ublk (/dev/ublkbN), nbd (/dev/nbdN), fuse (a file, and /dev/loopN on it) or auto, the first that this machine has (auto).",
    ),
    key(
        DEVICE,
        "id",
        "N",
        "N of /dev/ublkbN or /dev/nbdN, or of the folder fuseN. Without it the lowest free one is taken.",
    ),
    key(
        DEVICE,
        "connections",
        "N",
        "With nbd: connections between the kernel and the server, 1 to 16; with fuse: threads that take requests (one a queue).",
    ),
    key(
        DEVICE,
        "timeout",
        "SECONDS",
        "With nbd: how long a request may take before its connection counts as dead, 1 to 3600 (30).",
    ),
    key(
        DEVICE,
        "dead-connection-timeout",
        "SECONDS",
        "With nbd: how long requests wait for a server while there is none, 0 to 86400 (120).",
    ),
    key(DEVICE, "queues", "N", QUEUES),
    key(DEVICE, "depth", "N", DEPTH),
    key(DEVICE, "block-size", "SIZE", BLOCK_SIZE),
    key(DEVICE, "read-only", "true or false", READ_ONLY),
    key(DEVICE, "partition-scan", "true or false", "Look for partitions on the disk (true)."),
    key(
        DEVICE,
        "data-path",
        "\"PATH\"",
        "How the bytes travel: auto, copy, user-copy, get-data, zero-copy, auto-buf, batch-copy or batch-auto-buf (auto).",
    ),
    key(
        DEVICE,
        "for",
        "\"LOAD\"",
        "What the load will be: latency (the queues' threads get real-time priority), throughput (auto takes batches, and they are SCHED_BATCH) or any (any).",
    ),
    key(
        DEVICE,
        "spin-us",
        "N",
        "How long a queue's thread looks for work before it sleeps, at most, 0 to 1000 microseconds (0).",
    ),
    key(DEVICE, "filters", "[\"NAME,key=value\", …]", FILTERS),
    key(
        DEVICE,
        "export",
        "\"NAME\"",
        "Offer the same disk to NBD clients too, under this name, as long as the device is there.",
    ),
    key(
        EXPORT,
        "name",
        "\"NAME\"",
        "What clients ask for; the empty name is the default export. Must be there.",
    ),
    key(EXPORT, "spec", "\"SPEC\"", SPEC),
    key(
        EXPORT,
        "description",
        "\"TEXT\"",
        "What clients are told about it, and everybody else who can connect, before anybody has shown who he is (nothing).",
    ),
    key(
        EXPORT,
        "queues",
        "N",
        "Number of queues, each served by a thread of its own; at most the number of CPUs (as many as CPUs, at most 4).",
    ),
    key(EXPORT, "depth", "N", DEPTH),
    key(
        EXPORT,
        "block-size",
        "SIZE",
        "Logical block size: a power of two from 512 up to the page size. Without it clients may read and write single \
         bytes.",
    ),
    key(EXPORT, "read-only", "true or false", READ_ONLY),
    key(EXPORT, "filters", "[\"NAME,key=value\", …]", FILTERS),
    key(
        NBD,
        "listen",
        "[\"unix:PATH\", \"tcp:HOST:PORT\", …]",
        "Where NBD clients connect: sockets in the file system, ports, ports for virtual machines (`vsock:PORT`, \
         `vsock:CONTEXT:PORT`), and sockets that systemd has passed on (`fd:NAME`). Must be there with exports.",
    ),
    key(
        NBD,
        "unix-mode",
        "\"MODE\"",
        "Who may connect to the sockets in the file system: their mode, in octal (0600).",
    ),
    key(
        NBD,
        "tls",
        "\"WHEN\"",
        "Whether connections are encrypted: off, on (where the client asks for it) or required (nobody is served \
         without) (off).",
    ),
    key(
        NBD,
        "tls-certificates",
        "\"FOLDER\"",
        "Where server-cert.pem and server-key.pem are, and for `tls-verify-peer` ca-cert.pem and, if there is one, \
         ca-crl.pem. Must be there with `tls`.",
    ),
    key(
        NBD,
        "tls-verify-peer",
        "true or false",
        "Serve only clients with a certificate that is signed by a CA in ca-cert.pem and not revoked by ca-crl.pem (false). \
         Needs `tls = \"required\"`.",
    ),
    key(
        NBD,
        "insecure-listen",
        "true or false",
        "Listen also where other machines can connect, although nothing need be encrypted and nobody is asked for a \
         password (false). With `tls = \"required\"` it is not needed.",
    ),
    key(
        NBD,
        "max-connections",
        "N",
        "Connections at once, to all exports together, 1 to 1024; one more is closed at once (64).",
    ),
];

/// The keys of a table.
pub(super) fn names(table: &str) -> Vec<&'static str> {
    KEYS.iter().filter(|key| key.table == table).map(|key| key.name).collect()
}

/// [`KEYS`] as Markdown, for the documentation.
pub fn markdown() -> String {
    let mut text = String::from("| in | key | what it does |\n|---|---|---|\n");
    for key in KEYS {
        text.push_str(&format!("| `{}` | `{} = {}` | {} |\n", key.table, key.name, key.values, key.about));
    }
    text
}

//! Generic netlink: a request to a family of the kernel's, what it answers, and how that went
//! (netlink(7), `Documentation/userspace-api/netlink/intro.rst`).
//!
//! The few lines that this takes are here, and no library is, since those that there are bring several
//! crates, or an asynchronous runtime, for the same few lines.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use super::clock::Deadline;
use super::socket::wait_readable;

/// Bytes of nlmsghdr and of genlmsghdr.
const HEADER: usize = 16;
const GENERIC_HEADER: usize = 4;
/// Bytes of nlattr.
const ATTRIBUTE_HEADER: usize = 4;
/// What messages and attributes are aligned to.
const ALIGNMENT: usize = 4;
/// Bits of an attribute's type that say how it is encoded.
const KIND_MASK: u16 = 0x3fff;

/// Longest datagram that is read: a kernel's answer is at most a few pages.
const MAX_DATAGRAM: usize = 64 << 10;

/// Attributes of a message, put together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes(Vec<u8>);

impl Attributes {
    /// None yet.
    pub fn new() -> Attributes {
        Attributes::default()
    }

    fn with(mut self, kind: u16, value: &[u8]) -> Attributes {
        // A length has 16 bits; nothing here is near that.
        debug_assert!(value.len() < usize::from(u16::MAX) - ATTRIBUTE_HEADER);
        let len = (ATTRIBUTE_HEADER + value.len()) as u16;
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(ALIGNMENT), 0);
        self
    }

    /// Adds 32 bits.
    pub fn u32(self, kind: u16, value: u32) -> Attributes {
        self.with(kind, &value.to_ne_bytes())
    }

    /// Adds 64 bits.
    pub fn u64(self, kind: u16, value: u64) -> Attributes {
        self.with(kind, &value.to_ne_bytes())
    }

    /// Adds a text with its final NUL.
    pub fn text(self, kind: u16, value: &str) -> Attributes {
        self.with(kind, &[value.as_bytes(), &[0]].concat())
    }

    /// Adds attributes inside of one.
    pub fn nested(self, kind: u16, inside: Attributes) -> Attributes {
        self.with(kind | libc::NLA_F_NESTED as u16, &inside.0)
    }
}

/// An attribute of an answer: its type and its bytes.
pub type Attribute<'a> = (u16, &'a [u8]);

/// The attributes in `bytes`, up to the first that is cut short.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & KIND_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The 32 bits of the first attribute of this type.
pub fn find_u32(bytes: &[u8], kind: u16) -> Option<u32> {
    let value = attributes(bytes).find(|found| found.0 == kind)?.1;
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// A message of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Message<'a> {
    kind: u16,
    sequence: u32,
    /// Behind the header.
    body: &'a [u8],
}

/// The messages of a datagram, up to the first that is cut short.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let sequence = u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?);
        let body = bytes.get(HEADER..len)?;
        bytes = bytes.get(len.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
        Some(Message { kind, sequence, body })
    })
}

fn request(family: u16, sequence: u32, command: u8, version: u8, attributes: &Attributes) -> Vec<u8> {
    let len = HEADER + GENERIC_HEADER + attributes.0.len();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut bytes = Vec::with_capacity(len);
    bytes.extend_from_slice(&(len as u32).to_ne_bytes());
    bytes.extend_from_slice(&family.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&[command, version, 0, 0]);
    bytes.extend_from_slice(&attributes.0);
    bytes
}

/// A socket to one family of the kernel's.
#[derive(Debug)]
pub struct Generic {
    socket: OwnedFd,
    family: u16,
    version: u8,
    /// The family's groups: name and number.
    groups: Vec<(String, u32)>,
    sequence: u32,
}

impl Generic {
    /// Finds a family by its name. NotFound where the kernel has none of this name, or not for this network
    /// namespace.
    pub fn open(name: &str, version: u8, deadline: Deadline) -> io::Result<Generic> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkGeneric)?;
        let controller = libc::GENL_ID_CTRL as u16;
        let mut generic = Generic { socket, family: controller, version: 1, groups: Vec::new(), sequence: 0 };
        let asked = Attributes::new().text(libc::CTRL_ATTR_FAMILY_NAME as u16, name);
        let answer = generic.ask(libc::CTRL_CMD_GETFAMILY as u8, &asked, deadline)?;
        let id = attributes(&answer).find(|found| found.0 == libc::CTRL_ATTR_FAMILY_ID as u16);
        let id = id.and_then(|(_, value)| Some(u16::from_ne_bytes(value.get(..2)?.try_into().ok()?)));
        generic.family = id.ok_or_else(|| io::Error::other("the kernel does not say the family's number"))?;
        generic.version = version;
        generic.groups = groups(&answer);
        Ok(generic)
    }

    /// Sends a command and waits until the kernel has carried it out. Yields the attributes that it answered
    /// with, none where it answered with nothing but success. Some commands do their work before this call can
    /// time out: they take as long as they take.
    pub fn ask(&mut self, command: u8, attributes: &Attributes, deadline: Deadline) -> io::Result<Vec<u8>> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request(self.family, self.sequence, command, self.version, attributes);
        sendto(self.socket.as_raw_fd(), &bytes, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut answer = Vec::new();
        let mut datagram = vec![0; MAX_DATAGRAM];
        loop {
            if !wait_readable(self.socket.as_fd(), deadline)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let len = match recv(self.socket.as_raw_fd(), &mut datagram, MsgFlags::empty()) {
                Ok(len) => len,
                Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => continue,
                Err(error) => return Err(error.into()),
            };
            for message in messages(&datagram[..len]).filter(|message| message.sequence == self.sequence) {
                if i32::from(message.kind) == libc::NLMSG_ERROR {
                    let code = message.body.get(..4).and_then(|code| code.try_into().ok());
                    return match code.map_or(-libc::EIO, i32::from_ne_bytes) {
                        0 => Ok(answer),
                        code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
                    };
                }
                answer = message.body.get(GENERIC_HEADER..).unwrap_or_default().to_vec();
            }
        }
    }

    /// Joins a group of the family: from now on its messages wake whoever polls this socket. Not to be asked
    /// anything more then.
    pub fn join(&self, group: &str) -> io::Result<()> {
        let found = self.groups.iter().find(|(name, _)| name == group);
        let number = found.ok_or(io::ErrorKind::NotFound)?.1;
        // SAFETY: the option takes a 32-bit number, which is read before the call returns.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_NETLINK,
                libc::NETLINK_ADD_MEMBERSHIP,
                (&raw const number).cast(),
                size_of::<u32>() as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Throws away what a group has said.
    pub fn discard(&self) {
        let mut datagram = [0; 4096];
        while recv(self.socket.as_raw_fd(), &mut datagram, MsgFlags::empty()).is_ok() {}
    }
}

impl AsFd for Generic {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The groups that the answer to GETFAMILY has.
fn groups(answer: &[u8]) -> Vec<(String, u32)> {
    let lists = attributes(answer).filter(|found| found.0 == libc::CTRL_ATTR_MCAST_GROUPS as u16);
    let group = |(_, bytes): Attribute<'_>| {
        let name = attributes(bytes).find(|found| found.0 == libc::CTRL_ATTR_MCAST_GRP_NAME as u16)?.1;
        let name = name.split(|&byte| byte == 0).next().unwrap_or_default();
        let number = find_u32(bytes, libc::CTRL_ATTR_MCAST_GRP_ID as u16)?;
        Some((String::from_utf8_lossy(name).into_owned(), number))
    };
    lists.flat_map(|(_, list)| attributes(list)).filter_map(group).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::port::clock::Duration;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    /// The controller is in every kernel that has generic netlink at all.
    #[test]
    fn the_kernel_answers_about_its_own_families() {
        let nlctrl = Generic::open("nlctrl", 1, soon()).unwrap();
        assert_eq!(nlctrl.family, libc::GENL_ID_CTRL as u16);
        assert!(nlctrl.groups.iter().any(|(name, _)| name == "notify"), "{:?}", nlctrl.groups);
        nlctrl.join("notify").unwrap();
        assert!(nlctrl.join("nobody").is_err());
        let error = Generic::open("no-such-family", 1, soon()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn an_attribute_is_a_length_a_type_and_bytes_and_ends_on_a_word() {
        let inside = Attributes::new().u32(1, 7);
        let all = Attributes::new().text(2, "abc").text(3, "abcd").u64(4, 5).nested(6, inside);
        let found: Vec<Attribute<'_>> = attributes(&all.0).collect();
        assert_eq!((found[0], found[1]), ((2, &b"abc\0"[..]), (3, &b"abcd\0"[..])));
        assert_eq!(found[2], (4, &5u64.to_ne_bytes()[..]));
        assert_eq!((found[3].0, find_u32(found[3].1, 1)), (6, Some(7)));
        assert_eq!(all.0.len(), 8 + 12 + 12 + 12);
        assert_eq!((find_u32(&all.0, 9), find_u32(&Attributes::new().text(9, "x").0, 9)), (None, None));
    }

    #[test]
    fn a_request_says_how_long_it_is() {
        let bytes = request(30, 5, 3, 1, &Attributes::new().u32(1, 2));
        let message = messages(&bytes).next().unwrap();
        assert_eq!((message.kind, message.sequence, bytes.len()), (30, 5, 28));
        assert_eq!(&message.body[..4], &[3, 1, 0, 0]);
        assert_eq!(find_u32(&message.body[4..], 1), Some(2));
    }

    proptest! {
        /// Whatever comes: no more is found than there is, and it ends.
        #[test]
        fn any_bytes_are_read_to_their_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let sum: usize = attributes(&bytes).map(|(_, value)| value.len() + ATTRIBUTE_HEADER).sum();
            prop_assert!(sum <= bytes.len());
            let sum: usize = messages(&bytes).map(|message| message.body.len() + HEADER).sum();
            prop_assert!(sum <= bytes.len());
            let _ = groups(&bytes);
        }
    }
}

//! What is done when all is measured, and may take as long as the disk wants.

use crate::cli::output;
use crate::error::{Error, Result};
use crate::port::channel::{RecvTimeoutError, bounded as channel};
use crate::port::clock::{Duration, Instant};
use crate::port::signal::{Signal, Signals};
use crate::port::thread;

/// How long somebody waits without asking why.
pub(super) const A_MOMENT: Duration = Duration::from_secs(1);

/// Between two looks at the signals.
const TICK: Duration = Duration::from_millis(50);

/// Does something in a thread of its own and waits for so long at most; yields whether it was done by then.
pub(super) fn bounded(
    patience: Duration,
    name: &str,
    body: impl FnOnce() + Send + 'static,
) -> std::io::Result<bool> {
    let (tell, told) = channel(1);
    thread::spawn(name.into(), move || {
        body();
        let _ = tell.send(());
    })?;
    Ok(told.recv_timeout(patience).is_ok())
}

/// Has `flush` make durable what was written. Yields the signal that ended the wait for it, if one did.
pub(super) fn close(
    flush: impl FnOnce() -> Result<()> + Send + 'static,
    signals: &mut Signals,
) -> Result<Option<Signal>> {
    let (tell, told) = channel(1);
    let flushing = thread::spawn("bench-flush".into(), move || {
        let _ = tell.send(flush());
    })
    .map_err(|error| Error::system("cannot flush what was written", error))?;
    let (began, mut is_said) = (Instant::now(), false);
    loop {
        match told.recv_timeout(TICK) {
            Ok(closed) => {
                // It has the disk until then.
                let _ = flushing.join();
                return closed.map(|()| None);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
        }
        if began.elapsed() >= A_MOMENT && !std::mem::replace(&mut is_said, true) {
            output::note("flushing what was written");
        }
        if let Some(signal) = signals.take() {
            output::note("ended before all that was written was flushed");
            return Ok(Some(signal));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_flush_is_waited_for_until_somebody_does_not_want_to() {
        let mut signals = Signals::block().unwrap();
        assert_eq!(close(|| Ok(()), &mut signals).unwrap(), None);
        let failed = close(|| Err(Error::new(Kind::Failed, "cannot flush", "it broke")), &mut signals);
        assert_eq!(failed.unwrap_err().kind(), Kind::Failed);
        let (end, ended) = channel::<()>(1);
        let forever = move || {
            let _ = ended.recv();
            Ok(())
        };
        // To this thread alone, which has it blocked.
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGINT).unwrap();
        assert_eq!(close(forever, &mut signals).unwrap(), Some(Signal::Interrupt));
        drop(end);
        assert!(!bounded(Duration::ZERO, "slow", || crate::port::clock::sleep(A_MOMENT / 10)).unwrap());
        assert!(bounded(A_MOMENT * 60, "quick", || {}).unwrap());
    }
}

//! A backend whose type is known when the program runs, so that a filter can stand on any other.
//!
//! A call of a virtual function more for each request; the futures of the queue below lie in places
//! that were made when it was opened, so that nothing is allocated.

use std::fmt;
use std::sync::Arc;

use crate::backend::{Backend, Queue, QueueContext, pass_on};
use crate::error::Result;
use crate::io::{Capabilities, Geometry, Io, IoResult};
use crate::payload::Payload;
use crate::port::arena::{Arena, Placed};
use crate::port::ring::Single;

/// Any backend.
#[derive(Clone)]
pub struct Dynamic(Arc<dyn ErasedBackend>);

impl Dynamic {
    /// Forgets the type of a backend.
    pub fn new(backend: Arc<impl Backend>) -> Dynamic {
        Dynamic(backend)
    }
}

impl fmt::Debug for Dynamic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dynamic").field(&self.0.geometry()).finish()
    }
}

impl Backend for Dynamic {
    type Queue = DynamicQueue;

    fn geometry(&self) -> Geometry {
        self.0.geometry()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<DynamicQueue> {
        self.0.open_queue(context).map(DynamicQueue)
    }

    fn notes(&self) -> Vec<String> {
        self.0.notes()
    }

    pass_on!(0);
}

/// One queue's handle on any backend.
pub struct DynamicQueue(Box<dyn ErasedQueue>);

impl DynamicQueue {
    /// How many requests had to be given memory of their own; 0 unless somebody serves several
    /// requests of one slot at once.
    pub fn spilled(&self) -> u64 {
        self.0.spilled()
    }
}

impl fmt::Debug for DynamicQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DynamicQueue").field("spilled", &self.spilled()).finish()
    }
}

impl Queue for DynamicQueue {
    #[inline]
    fn single(&self, io: &Io) -> Option<Single> {
        self.0.single(io)
    }

    #[inline]
    fn serve_now(&self, io: &Io, payload: &mut Payload<'_>) -> Option<IoResult> {
        self.0.serve_now(io, payload)
    }

    #[inline]
    async fn serve(&self, io: Io, payload: Payload<'_>) -> IoResult {
        self.0.serve(io, payload).await
    }
}

/// [`Backend`], as far as it can be called through a pointer.
trait ErasedBackend: Send + Sync {
    fn geometry(&self) -> Geometry;
    fn capabilities(&self) -> Capabilities;
    fn open_queue(&self, context: &QueueContext<'_>) -> Result<Box<dyn ErasedQueue>>;
    fn started(&self);
    fn abandoned(&self);
    fn close(&self) -> Result<()>;
    fn memory_used(&self) -> Option<u64>;
    fn outlives_process(&self) -> bool;
    fn notes(&self) -> Vec<String>;
}

impl<B: Backend> ErasedBackend for B {
    fn geometry(&self) -> Geometry {
        Backend::geometry(self)
    }

    fn capabilities(&self) -> Capabilities {
        Backend::capabilities(self)
    }

    fn open_queue(&self, context: &QueueContext<'_>) -> Result<Box<dyn ErasedQueue>> {
        let queue = Backend::open_queue(self, context)?;
        let serve = <B::Queue as Queue>::serve;
        let arena = Arena::for_futures_of::<&'static B::Queue, Io, Payload<'static>, _>(context.depth, serve);
        Ok(Box::new(Erased { queue, arena }))
    }

    fn started(&self) {
        Backend::started(self);
    }

    fn abandoned(&self) {
        Backend::abandoned(self);
    }

    fn close(&self) -> Result<()> {
        Backend::close(self)
    }

    fn memory_used(&self) -> Option<u64> {
        Backend::memory_used(self)
    }

    fn outlives_process(&self) -> bool {
        Backend::outlives_process(self)
    }

    fn notes(&self) -> Vec<String> {
        Backend::notes(self)
    }
}

/// [`Queue`], as far as it can be called through a pointer.
trait ErasedQueue {
    fn single(&self, io: &Io) -> Option<Single>;
    fn serve_now(&self, io: &Io, payload: &mut Payload<'_>) -> Option<IoResult>;
    fn serve<'a>(&'a self, io: Io, payload: Payload<'a>) -> Placed<'a, IoResult>;
    fn spilled(&self) -> u64;
}

struct Erased<Q> {
    queue: Q,
    arena: Arena,
}

impl<Q: Queue> ErasedQueue for Erased<Q> {
    #[inline]
    fn single(&self, io: &Io) -> Option<Single> {
        self.queue.single(io)
    }

    #[inline]
    fn serve_now(&self, io: &Io, payload: &mut Payload<'_>) -> Option<IoResult> {
        self.queue.serve_now(io, payload)
    }

    #[inline]
    fn serve<'a>(&'a self, io: Io, payload: Payload<'a>) -> Placed<'a, IoResult> {
        self.arena.put(io.slot, self.queue.serve(io, payload))
    }

    fn spilled(&self) -> u64 {
        self.arena.spilled()
    }
}

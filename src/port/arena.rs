//! Places for futures of one type, made once: a queue whose type was erased keeps there what serves
//! its requests, so that nothing is allocated for one.

use std::alloc::{self, Layout};
use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};

/// A place for each slot of a queue.
pub struct Arena {
    memory: NonNull<u8>,
    /// Of one place, whose size is a multiple of its alignment.
    place: Layout,
    taken: Box<[Cell<bool>]>,
    spilled: Cell<u64>,
}

impl Arena {
    /// Places for `slots` futures of the type that `_make` returns.
    pub fn for_futures_of<A, B, C, F: Future>(slots: u16, _make: impl Fn(A, B, C) -> F) -> Arena {
        Arena::new(slots, Layout::new::<F>())
    }

    fn new(slots: u16, of_one: Layout) -> Arena {
        // On lines of their own, so that no two slots share one.
        let place = match Layout::from_size_align(of_one.size().max(1), of_one.align().max(64)) {
            Ok(layout) => layout.pad_to_align(),
            Err(_) => Layout::new::<[u64; 8]>(),
        };
        let slots = usize::from(slots.max(1));
        let Ok(whole) = Layout::from_size_align(place.size().saturating_mul(slots), place.align()) else {
            alloc::handle_alloc_error(place)
        };
        // SAFETY: there is at least one place of at least one byte.
        let memory = unsafe { alloc::alloc(whole) };
        let Some(memory) = NonNull::new(memory) else { alloc::handle_alloc_error(whole) };
        Arena { memory, place, taken: (0..slots).map(|_| Cell::new(false)).collect(), spilled: Cell::new(0) }
    }

    /// How many futures did not find a place and went to the heap.
    pub fn spilled(&self) -> u64 {
        self.spilled.get()
    }

    /// Puts a future in the place of `slot`; where that is taken or too small, on the heap.
    #[inline]
    pub fn put<'a, F: Future + 'a>(&'a self, slot: u16, future: F) -> Placed<'a, F::Output> {
        let fits = size_of::<F>() <= self.place.size() && align_of::<F>() <= self.place.align();
        match self.taken.get(usize::from(slot)) {
            Some(taken) if fits && !taken.get() => {
                // SAFETY: `taken` has this slot, so the place lies inside the memory.
                let place = unsafe { self.memory.add(usize::from(slot) * self.place.size()) }.cast::<F>();
                taken.set(true);
                // SAFETY: nobody has the place, and the future fits there, aligned.
                unsafe { place.write(future) };
                Placed { future: place, taken: Some(taken) }
            }
            _ => self.spill(future),
        }
    }

    #[cold]
    fn spill<'a, F: Future + 'a>(&'a self, future: F) -> Placed<'a, F::Output> {
        self.spilled.set(self.spilled.get() + 1);
        let future: Box<dyn Future<Output = F::Output> + 'a> = Box::new(future);
        Placed { future: NonNull::from(Box::leak(future)), taken: None }
    }
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("place", &self.place).field("spilled", &self.spilled).finish()
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.taken.iter().any(Cell::get) {
            // Somebody forgot a future instead of dropping it. It is pinned: its place stays.
            return;
        }
        let size = self.place.size() * self.taken.len();
        if let Ok(whole) = Layout::from_size_align(size, self.place.align()) {
            // SAFETY: allocated in `new` with this layout, and no place is taken.
            unsafe { alloc::dealloc(self.memory.as_ptr(), whole) };
        }
    }
}

/// A future in its place, pinned there until it is dropped.
#[must_use = "a future does nothing unless it is polled"]
pub struct Placed<'a, T> {
    future: NonNull<dyn Future<Output = T> + 'a>,
    /// Of the place; `None` on the heap.
    taken: Option<&'a Cell<bool>>,
}

impl<T> fmt::Debug for Placed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placed").field("on_the_heap", &self.taken.is_none()).finish()
    }
}

impl<T> Future for Placed<'_, T> {
    type Output = T;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // SAFETY: the future lies where `put` wrote it, this is the only pointer to it, and it is
        // neither moved nor is its memory used otherwise before `drop` below has dropped it.
        unsafe { Pin::new_unchecked(self.future.as_mut()) }.poll(context)
    }
}

impl<T> Drop for Placed<'_, T> {
    #[inline]
    fn drop(&mut self) {
        match self.taken {
            Some(taken) => {
                // SAFETY: written by `put`, and dropped nowhere else.
                unsafe { self.future.drop_in_place() };
                taken.set(false);
            }
            // SAFETY: from a box that `spill` leaked.
            None => drop(unsafe { Box::from_raw(self.future.as_ptr()) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::task::Waker;

    use super::*;

    fn poll<T>(future: &mut Placed<'_, T>) -> Poll<T> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_place_is_used_again_and_a_second_future_goes_to_the_heap() {
        let alive = Rc::new(());
        let arena = Arena::new(2, Layout::new::<[u64; 4]>());
        let make = |number: u64| {
            let alive = alive.clone();
            async move {
                let _alive = alive;
                number
            }
        };
        let mut first = arena.put(0, make(1));
        let mut second = arena.put(1, make(2));
        assert_eq!((arena.spilled(), Rc::strong_count(&alive)), (0, 3));
        let mut third = arena.put(1, make(3));
        let beyond = arena.put(9, make(4));
        assert_eq!((arena.spilled(), Rc::strong_count(&alive)), (2, 5));
        assert_eq!(
            (poll(&mut first), poll(&mut second), poll(&mut third)),
            (Poll::Ready(1), Poll::Ready(2), Poll::Ready(3))
        );
        drop((first, second, third, beyond));
        assert_eq!(Rc::strong_count(&alive), 1);
        drop(arena.put(1, make(5)));
        assert_eq!(arena.spilled(), 2);
        let large = [0u8; 1000];
        drop(arena.put(0, async move { large.len() }));
        assert_eq!(arena.spilled(), 3);
    }

    #[test]
    fn futures_without_size_have_places_too() {
        let arena = Arena::new(1, Layout::new::<()>());
        let mut nothing = arena.put(0, std::future::ready(()));
        assert_eq!(poll(&mut nothing), Poll::Ready(()));
        drop(nothing);
        assert_eq!(arena.spilled(), 0);
    }
}

//! An array that grows without moving its elements.

/// Segments of 2^`BITS` elements each. No step copies elements or touches more fresh memory
/// than one element needs.
#[derive(Debug)]
pub(super) struct Segments<T, const BITS: u32> {
    parts: Vec<Vec<T>>,
    len: usize,
    capacity: usize,
}

impl<T, const BITS: u32> Segments<T, BITS> {
    const SEGMENT: usize = 1 << BITS;

    /// An empty array for at most `capacity` elements.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            parts: Vec::with_capacity(capacity.div_ceil(Self::SEGMENT)),
            len: 0,
            capacity,
        }
    }

    /// Bytes that so many elements need, the table of segments included.
    pub(super) fn needed(elements: usize) -> usize {
        elements * size_of::<T>() + elements.div_ceil(Self::SEGMENT) * size_of::<Vec<T>>()
    }

    /// Bytes in use: elements that were ever pushed, and the whole table of segments.
    pub(super) fn bytes(&self) -> usize {
        self.len * size_of::<T>() + self.parts.capacity() * size_of::<Vec<T>>()
    }

    /// Elements in use.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Elements that may still be pushed.
    pub(super) fn room(&self) -> usize {
        self.capacity - self.len
    }

    /// Appends an element and returns its index; `None` when the array is full.
    pub(super) fn push(&mut self, element: T) -> Option<usize> {
        if self.room() == 0 {
            return None;
        }
        let at = self.len;
        if at.is_multiple_of(Self::SEGMENT) {
            let size = self.room().min(Self::SEGMENT);
            self.parts.push(Vec::with_capacity(size));
        }
        self.parts.last_mut()?.push(element);
        self.len += 1;
        Some(at)
    }

    /// The element at an index below [`len`](Self::len).
    pub(super) fn at(&self, at: usize) -> &T {
        &self.parts[at >> BITS][at & (Self::SEGMENT - 1)]
    }

    /// The same element, mutable.
    pub(super) fn at_mut(&mut self, at: usize) -> &mut T {
        &mut self.parts[at >> BITS][at & (Self::SEGMENT - 1)]
    }
}

impl<const BITS: u32> Segments<u32, BITS> {
    /// An array of `count` zeros. The system provides zeroed memory only as it is used.
    pub(super) fn zeros(count: usize) -> Self {
        let mut zeros = Self::new(count);
        while zeros.room() > 0 {
            let size = zeros.room().min(Self::SEGMENT);
            zeros.parts.push(vec![0; size]);
            zeros.len += size;
        }
        zeros
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pushed_elements_keep_their_index_and_are_counted() {
        let mut numbers = Segments::<usize, 2>::new(11);
        for number in 0..11 {
            assert_eq!(numbers.push(number), Some(number));
            assert_eq!(numbers.bytes(), 8 * (number + 1) + 3 * 24);
        }
        assert_eq!(numbers.push(11), None);
        *numbers.at_mut(6) += 100;
        let all: Vec<_> = (0..numbers.len()).map(|at| *numbers.at(at)).collect();
        assert_eq!(all, [0, 1, 2, 3, 4, 5, 106, 7, 8, 9, 10]);
        assert_eq!(numbers.bytes(), Segments::<usize, 2>::needed(11));
    }

    #[test]
    fn zeros_fill_the_array() {
        let zeros = Segments::<u32, 2>::zeros(9);
        assert_eq!((zeros.len(), zeros.room()), (9, 0));
        assert!((0..9).all(|at| *zeros.at(at) == 0));
    }
}
